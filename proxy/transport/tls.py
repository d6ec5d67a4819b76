"""TLS of both sides: contexts made from the files that the settings name, and made anew when those change.

Rules of this file:

1. A context is never changed but replaced: connections keep the one they began with. Session tickets end with their
   context, so that nobody resumes what a CA that was taken away had vouched for.
2. HTTP/2 is agreed on by ALPN (RFC 9113, 3.2), and only TLS 1.2 or later with the suites of RFC 9113, 9.2 is spoken.
   Who agrees on nothing is not served: `objection` says so, once the handshake is over.
3. Files that are bad at the start end it. Bad ones that come later, such as a certificate whose key is still to be
   written, are said in the log, and what was good stays.
4. Cleartext pays nothing for it: calls do not know whether their connections are secured. What TLS itself costs a call
   lies in uvloop and OpenSSL: 8 us at 8 clients with 32 calls each, 17 us at 64 clients with one (a record a call and
   direction), 4 us and 7 us between proxy and servers. The handshake runs on the event loop, too.

Kernel TLS is not used: Python's ssl module cannot switch it on for connections that an event loop drives.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from proxy.cluster.endpoint import Endpoint
from proxy.errors import ConfigError
from proxy.transport.reactor import Handle, Reactor, ssl_reason
from proxy.transport.settings import ListenerTlsSettings, TlsVersion, UpstreamTlsSettings

log = logging.getLogger(__name__)

ALPN: Final = "h2"
"""RFC 9113, 3.1."""
REMIND_WITHIN: Final = 7
"""Days before the end of a certificate from which on the log tells of it."""
CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2, what RFC 9113, appendix A leaves: ephemeral keys and AEAD. TLS 1.3 has nothing else."""
_VERSIONS: Final[dict[TlsVersion, ssl.TLSVersion]] = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class Pem(NamedTuple):
    """What the files hold, for those who make credentials of their own: the health checks."""

    ca: bytes
    chain: bytes | None
    key: bytes | None


class _Renewable:
    """Something made from files: made again when they change."""

    expires: datetime | None = None
    """When our certificate, or one that leads to its CA, does. None: there is none."""

    def __init__(self, section: str, files: Sequence[Path | None], interval: float) -> None:
        """`section`: the settings' key, for messages. `files`: those that matter. `interval`: seconds between looks."""
        self.section = section
        self._files = [file for file in files if file is not None]
        self._interval = interval
        self._timer: Handle | None = None
        self._seen: list[bytes | None] = self._look()
        self._reminded = REMIND_WITHIN
        """Days that were left when the log was told last."""
        self._make()

    def _make(self) -> None:
        """Make it. Raises ConfigError, with nothing changed."""
        raise NotImplementedError

    def watch(self, reactor: Reactor) -> None:
        """Look at the files every `interval` from now on, until `stop`."""

        def look() -> None:
            self.renew()
            self.remind(datetime.now(UTC))
            self.watch(reactor)

        self._timer = reactor.call_later(self._interval, look)

    def stop(self) -> None:
        """Look no more. Nothing happens if it does not."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def renew(self) -> bool:
        """Make it again if what the files hold has changed. Returns whether that was so, and good."""
        seen = self._look()
        if seen == self._seen:
            return False
        self._seen = seen
        try:
            self._make()
        except ConfigError as error:
            log.warning("the files of [%s] have changed, but the old ones stay: %s", self.section, error)
            return False
        log.info("the files of [%s] have changed: new connections use them", self.section)
        return True

    def remind(self, now: datetime) -> None:
        """Tell the log, once a day, of a certificate that ends soon, or has ended."""
        left = (self.expires - now).days if self.expires is not None else REMIND_WITHIN
        if left < REMIND_WITHIN and left != self._reminded:
            what = f"expires in {left} days" if left >= 0 else "has expired"
            log.warning("the certificate of [%s] %s", self.section, what)
        self._reminded = left

    def _look(self) -> list[bytes | None]:
        return [_content(file) for file in self._files]


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None


class ServerTls(_Renewable):
    """How clients' connections are secured."""

    def __init__(self, settings: ListenerTlsSettings, section: str = "listener.tls") -> None:
        """Raises ConfigError, with every file that is wrong."""
        self._settings = settings
        self._allowed = frozenset(map(_comparable, settings.allowed_clients))
        self.handshake_timeout = settings.handshake_timeout
        self.context: ssl.SSLContext
        """For the next connection."""
        super().__init__(section, [settings.certificate, settings.key, settings.client_ca], settings.reload_interval)

    def _make(self) -> None:
        from proxy.transport import certificates  # noqa: PLC0415 - some 50 ms at the start that a proxy without TLS saves

        settings, section = self._settings, self.section
        problems = _Problems()
        with problems:
            identity = certificates.read_identity(section, settings.certificate, settings.key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if settings.client_ca is not None:
            with problems:
                ca = certificates.read_authorities(f"{section}.client_ca", settings.client_ca)
                _trust(context, ca, f"{section}.client_ca")
                context.verify_mode = ssl.CERT_REQUIRED
        problems.end()
        _harden(context, settings.min_version)
        _show(context, settings.certificate, settings.key, section)
        self.context, self.expires = context, identity.expires

    def objection(self, connection: ssl.SSLObject) -> str | None:
        """Why the client of a finished handshake is not to be served; None: it is. Of ALPN `speaks_http2` tells."""
        if self._allowed and self._allowed.isdisjoint(names_of(connection)):
            return f"its certificate is for {_listed(names_of(connection))}, none of which is allowed"
        return None


class ClientTls(_Renewable):
    """How connections to the servers are secured."""

    def __init__(self, settings: UpstreamTlsSettings, section: str = "upstream.tls") -> None:
        """Raises ConfigError, with every file that is wrong."""
        self._settings = settings
        self._allowed = frozenset(map(_comparable, settings.allowed_servers))
        self.by_identity = bool(self._allowed)
        """Servers are known by their identities, not by their host names."""
        self.context: ssl.SSLContext
        """For the next connection."""
        self.pem: Pem
        """What it was made of; another object each time."""
        super().__init__(section, [settings.ca, settings.certificate, settings.key], settings.reload_interval)

    def _make(self) -> None:
        from proxy.transport import certificates  # noqa: PLC0415 - as above

        settings, section = self._settings, self.section
        problems = _Problems()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = not self.by_identity
        with problems:
            ca = certificates.read_authorities(f"{section}.ca", settings.ca)
            _trust(context, ca, f"{section}.ca")
        identity = None
        if settings.certificate is not None and settings.key is not None:
            with problems:
                identity = certificates.read_identity(section, settings.certificate, settings.key)
                _show(context, settings.certificate, settings.key, section)
        problems.end()
        _harden(context, settings.min_version)
        self.context = context
        self.pem = Pem(ca, identity and identity.chain, identity and identity.key)
        self.expires = identity and identity.expires

    def of(self, endpoint: Endpoint) -> EndpointTls:
        """For connections to `endpoint`, which is known by its own name, else by that of all, else by its host."""
        return EndpointTls(self, endpoint.server_name or self._settings.server_name or endpoint.address.host)

    def objection(self, connection: ssl.SSLObject) -> str | None:
        """Why the server of a finished handshake is not who it should be; None: it is."""
        if self._allowed and self._allowed.isdisjoint(names_of(connection)):
            return f"its certificate is for {_listed(names_of(connection))}, none of which is allowed"
        return None


class EndpointTls(NamedTuple):
    """How connections to one server are secured."""

    tls: ClientTls
    server_name: str

    @property
    def secured(self) -> Secured:
        """For the next connection."""
        return Secured(self.tls.context, self.server_name)

    def objection(self, connection: ssl.SSLObject) -> str | None:
        """Why the server of a finished handshake is not to be given calls; None: it is."""
        if not speaks_http2(connection):
            return "it does not offer HTTP/2 over TLS (ALPN h2)"
        return self.tls.objection(connection)


class Secured(NamedTuple):
    """What one connection to a server needs to be secured."""

    context: ssl.SSLContext
    server_name: str
    """Is verified and told (SNI)."""


class Tls:
    """Both sides of one proxy; None where it speaks cleartext."""

    def __init__(self, listener: ListenerTlsSettings | None, upstream: UpstreamTlsSettings | None) -> None:
        """Raises ConfigError, with every file that is wrong."""
        problems = _Problems()
        self.downstream: ServerTls | None = None
        self.upstream: ClientTls | None = None
        with problems:
            self.downstream = ServerTls(listener) if listener is not None else None
        with problems:
            self.upstream = ClientTls(upstream) if upstream is not None else None
        problems.end()
        self._sides = [side for side in (self.downstream, self.upstream) if side is not None]

    def watch(self, reactor: Reactor) -> None:
        """Look at the files now and then from now on, until `stop`."""
        for side in self._sides:
            side.watch(reactor)

    def expirations(self) -> dict[str, float]:
        """When the certificates that we show end, in seconds since the epoch, by the section that names them."""
        return {side.section: side.expires.timestamp() for side in self._sides if side.expires is not None}

    def stop(self) -> None:
        """Look no more. May be called twice, and without `watch`."""
        for side in self._sides:
            side.stop()


def speaks_http2(connection: ssl.SSLObject) -> bool:
    """Whether the handshake has agreed on HTTP/2."""
    return connection.selected_alpn_protocol() == ALPN


def names_of(connection: ssl.SSLObject) -> tuple[str, ...]:
    """The URIs and DNS names that the peer's verified certificate is for; empty without a certificate. The common name
    is none of them (RFC 9525, 2).
    """
    certificate = connection.getpeercert() or {}
    alternatives = certificate.get("subjectAltName", ())
    assert isinstance(alternatives, tuple)  # noqa: S101 - as ssl documents it
    return tuple(_comparable(str(name)) for kind, name in alternatives if kind in ("URI", "DNS"))


def _comparable(name: str) -> str:
    """DNS names know no case. Of URIs only scheme and authority know none, and SPIFFE ids have those in lower case."""
    return name if "://" in name else name.lower()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) or "no URI or DNS name"


class _Problems:
    """Collects the ConfigErrors of several steps: `with` it around each, then `end`."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> bool:
        if isinstance(error, ConfigError):
            self._lines += error.problems
            return True
        return False

    def end(self) -> None:
        """Raise what was collected, if anything was."""
        if self._lines:
            raise ConfigError(self._lines)


def _harden(context: ssl.SSLContext, min_version: TlsVersion) -> None:
    context.minimum_version = _VERSIONS[min_version]
    context.set_ciphers(CIPHERS)
    # RFC 9113, 9.2.1: neither compression nor renegotiation.
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols([ALPN])


def _trust(context: ssl.SSLContext, ca: bytes, key: str) -> None:
    try:
        context.load_verify_locations(cadata=ca.decode("latin-1"))
    except (ssl.SSLError, UnicodeError) as error:
        raise ConfigError([f"{key}: cannot be used: {error}"]) from error
    # A certificate that the operator trusts is trusted, whether it is a root or not; grpcio, which makes the health
    # checks, sees it the same way.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN


def _show(context: ssl.SSLContext, certificate: Path, key: Path, section: str) -> None:
    try:
        # Without a passphrase to offer, OpenSSL would ask for one at the terminal.
        context.load_cert_chain(certificate, key, password=b"")
    except (OSError, ValueError) as error:
        why = ssl_reason(error) if isinstance(error, ssl.SSLError) else str(error)
        raise ConfigError([f"{section}.certificate: {certificate}: cannot be used: {why}"]) from error
