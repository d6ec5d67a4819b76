"""Contexts from files: what is refused and how it is said, handshakes in memory, files that change."""

from __future__ import annotations

import ssl
import warnings
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from proxy.cluster.address import Address
from proxy.cluster.endpoint import Endpoint
from proxy.errors import ConfigError
from proxy.transport.certificates import read_file
from proxy.transport.settings import ListenerTlsSettings, UpstreamTlsSettings
from proxy.transport.tls import ClientTls, ServerTls, Tls, names_of, speaks_http2
from tests.support.tls import Authority, Certificate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

YESTERDAY = datetime.now(UTC) - timedelta(days=1)
TOMORROW = datetime.now(UTC) + timedelta(days=1)

SERVER = Endpoint("A", Address("server.test", 443))


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def certificate(ca: Authority) -> Certificate:
    return ca.issue("server.test")


def server_tls(certificate: Certificate, **settings: Any) -> ServerTls:
    return ServerTls(ListenerTlsSettings.model_validate({**certificate.table, **settings}))


def client_tls(ca: Authority, **settings: Any) -> ClientTls:
    return ClientTls(UpstreamTlsSettings.model_validate({"ca": ca.file, **settings}))


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str = "server.test") -> list[ssl.SSLObject]:
    """Both ends, server first, once each has read what the other said. Raises ssl.SSLError of whoever refuses."""
    pipes = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        server.wrap_bio(pipes[0], pipes[1], server_side=True),
        client.wrap_bio(pipes[1], pipes[0], server_hostname=name),
    ]
    waiting = [1, 0]
    while waiting:
        for end in tuple(waiting):
            try:
                ends[end].do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(end)
    ends[0].write(b"hello")
    assert ends[1].read() == b"hello"
    return ends


# Files.


def missing(certificate: Certificate) -> None:
    certificate.certificate.unlink()


def not_pem(certificate: Certificate) -> None:
    certificate.certificate.write_text("not a certificate\n")


def broken(certificate: Certificate) -> None:
    certificate.certificate.write_bytes(certificate.certificate.read_bytes().replace(b"MII", b"XII", 1))


def no_key(certificate: Certificate) -> None:
    certificate.key.write_bytes(certificate.certificate.read_bytes())


def key_of_another(certificate: Certificate) -> None:
    key = certificate.key.read_bytes()
    certificate.authority.again(certificate, "server.test")
    certificate.key.write_bytes(key)


def passphrase(certificate: Certificate) -> None:
    key = load_pem_private_key(certificate.key.read_bytes(), None)
    certificate.key.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    )


@pytest.mark.parametrize(
    ("spoil", "key", "problem"),
    [
        (missing, "certificate", "cannot be read: no such file or directory"),
        (not_pem, "certificate", "holds no certificate in PEM form"),
        (broken, "certificate", "holds no certificate in PEM form, or one that is broken"),
        (no_key, "key", "holds no private key in PEM form"),
        (key_of_another, "key", "does not belong to the first certificate in"),
        (passphrase, "key", "needs a passphrase; give it a key without one"),
    ],
)
def test_a_bad_file_is_one_line_with_its_key_and_its_path(
    certificate: Certificate, spoil: Callable[[Certificate], None], key: str, problem: str
) -> None:
    spoil(certificate)
    with pytest.raises(ConfigError) as refused:
        server_tls(certificate)
    (line,) = refused.value.problems
    assert line.startswith(f"listener.tls.{key}: {getattr(certificate, key)}: ")
    assert problem in line


def test_a_file_name_that_no_file_can_have_is_a_problem_of_the_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^listener.tls.key: .*: cannot be read: embedded null byte"):
        read_file("listener.tls.key", tmp_path / "a\0b")


@pytest.mark.parametrize(
    ("times", "problem"),
    [
        ({"not_before": YESTERDAY - timedelta(days=9), "not_after": YESTERDAY}, f"expired on {YESTERDAY:%Y-%m-%d}"),
        ({"not_before": TOMORROW, "not_after": TOMORROW + timedelta(9)}, f"not valid before {TOMORROW:%Y-%m-%d}"),
    ],
)
def test_a_certificate_that_is_not_valid_today_is_refused(
    ca: Authority, times: dict[str, datetime], problem: str
) -> None:
    certificate = ca.issue("server.test", **times)
    with pytest.raises(ConfigError, match=problem):
        server_tls(certificate)
    with pytest.raises(ConfigError, match=problem):
        client_tls(ca, **certificate.table)


def test_a_bundle_of_cas_may_hold_some_that_are_over_but_not_only_those(ca: Authority, tmp_path: Path) -> None:
    over = ca.issue("old.test", file="over", not_before=YESTERDAY - timedelta(days=9), not_after=YESTERDAY)
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(over.certificate.read_bytes() + ca.pem)
    ClientTls(UpstreamTlsSettings(ca=bundle))
    with pytest.raises(ConfigError, match=r"^upstream.tls.ca: .* expired on"):
        ClientTls(UpstreamTlsSettings(ca=over.certificate))


def test_all_that_is_wrong_with_both_sides_is_said_at_once(certificate: Certificate, tmp_path: Path) -> None:
    not_pem(certificate)
    absent = tmp_path / "absent"
    with pytest.raises(ConfigError) as refused:
        Tls(
            ListenerTlsSettings.model_validate({**certificate.table, "client_ca": absent}),
            UpstreamTlsSettings(ca=absent),
        )
    keys = [line.partition(":")[0] for line in refused.value.problems]
    assert keys == ["listener.tls.certificate", "listener.tls.client_ca", "upstream.tls.ca"]


def test_the_day_on_which_the_certificate_ends_is_known(ca: Authority) -> None:
    certificate = ca.issue("server.test", not_after=TOMORROW)
    expires = server_tls(certificate).expires
    assert expires is not None
    assert abs(expires - TOMORROW) < timedelta(seconds=1)


def test_the_log_is_told_once_a_day_of_a_certificate_that_ends_soon(
    ca: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    now = datetime.now(UTC)
    certificate = ca.issue("server.test", not_after=now + timedelta(days=9))
    tls = server_tls(certificate)
    for hours in range(0, 11 * 24, 3):
        tls.remind(now + timedelta(hours=hours))
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        *(f"the certificate of [listener.tls] expires in {left} days" for left in (6, 5, 4, 3, 2, 1, 0)),
        *["the certificate of [listener.tls] has expired"] * 2,
    ]
    ca.again(certificate, "server.test")
    assert tls.renew()
    caplog.clear()
    tls.remind(now + timedelta(days=11))
    assert not caplog.records


# Handshakes.


def test_both_sides_agree_on_http2_over_tls_1_3(ca: Authority, certificate: Certificate) -> None:
    server, client = shake_hands(server_tls(certificate).context, client_tls(ca).context)
    assert speaks_http2(server)
    assert speaks_http2(client)
    assert server.version() == "TLSv1.3"


def old_client(certificate: Certificate, version: ssl.TLSVersion, ciphers: str = "ALL:@SECLEVEL=0") -> ssl.SSLContext:
    context = certificate.client_context("h2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the oldest version, which is the point
        context.minimum_version = context.maximum_version = version
    context.set_ciphers(ciphers)
    return context


def test_tls_1_2_is_spoken_unless_the_operator_says_1_3(certificate: Certificate) -> None:
    client = old_client(certificate, ssl.TLSVersion.TLSv1_2)
    server, _ = shake_hands(server_tls(certificate).context, client)
    assert server.version() == "TLSv1.2"
    with pytest.raises(ssl.SSLError, match="UNSUPPORTED_PROTOCOL"):
        shake_hands(server_tls(certificate, min_version="1.3").context, client)


def test_tls_1_1_is_not_spoken(certificate: Certificate) -> None:
    with pytest.raises(ssl.SSLError, match=r"UNSUPPORTED_PROTOCOL|NO_PROTOCOLS_AVAILABLE"):
        shake_hands(server_tls(certificate).context, old_client(certificate, ssl.TLSVersion.TLSv1_1))


@pytest.mark.parametrize("ciphers", ["AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA", "ECDHE-RSA-AES128-SHA"])
def test_suites_that_http2_forbids_are_not_spoken(certificate: Certificate, ciphers: str) -> None:
    with pytest.raises(ssl.SSLError, match="NO_SHARED_CIPHER"):
        shake_hands(server_tls(certificate).context, old_client(certificate, ssl.TLSVersion.TLSv1_2, ciphers))


def test_a_client_without_alpn_gets_through_the_handshake_and_is_recognised(certificate: Certificate) -> None:
    server, _ = shake_hands(server_tls(certificate).context, certificate.client_context())
    assert not speaks_http2(server)


def test_a_server_is_known_by_its_name(ca: Authority, certificate: Certificate) -> None:
    tls = client_tls(ca)
    assert tls.of(SERVER).server_name == "server.test"
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(server_tls(certificate).context, tls.context, "other.test")


def test_the_name_is_the_endpoints_own_or_that_of_all_or_the_host(ca: Authority) -> None:
    named = Endpoint("B", Address("10.0.0.1", 443), server_name="b.test")
    assert client_tls(ca).of(named).server_name == "b.test"
    assert client_tls(ca, server_name="all.test").of(named).server_name == "b.test"
    assert client_tls(ca, server_name="all.test").of(SERVER).server_name == "all.test"


@pytest.mark.parametrize(
    ("names", "allowed", "welcome"),
    [
        (["spiffe://test/chat"], ["spiffe://test/chat"], True),
        (["spiffe://test/chat"], ["spiffe://test/other", "spiffe://test/chat"], True),
        (["spiffe://test/chat"], ["spiffe://test/cha", "spiffe://test/chats", "spiffe://TEST/Chat"], False),
        (["gateway.test"], ["Gateway.TEST"], True),
        (["gateway.test"], ["*.test", "test"], False),
        (["*.gateway.test"], ["a.gateway.test"], False),
        (["10.0.0.1"], ["10.0.0.1"], False),
    ],
)
def test_identities_are_uris_and_dns_names_and_compared_whole(
    ca: Authority, certificate: Certificate, names: list[str], allowed: list[str], welcome: bool
) -> None:
    peer = ca.issue(*names, file="peer")
    server = server_tls(certificate, client_ca=ca.file, allowed_clients=allowed)
    accepted, _ = shake_hands(server.context, peer.client_context("h2"))
    objection = server.objection(accepted)
    assert (objection is None) == welcome
    client = client_tls(ca, allowed_servers=allowed)
    _, connected = shake_hands(server_tls(peer).context, client.context, "whatever.test")
    assert (client.of(SERVER).objection(connected) is None) == welcome
    if not welcome and names != ["10.0.0.1"]:
        assert objection is not None
        assert names[0] in objection


def test_a_certificate_that_names_nobody_has_no_names(ca: Authority, certificate: Certificate) -> None:
    server, client = shake_hands(server_tls(certificate).context, certificate.client_context("h2"))
    assert names_of(server) == ()  # the client showed no certificate, as it was not asked for one
    assert names_of(client) == ("server.test",)


def test_a_client_of_another_ca_is_refused(ca: Authority, certificate: Certificate, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "other").issue("gateway.test", file="stranger")
    context = certificate.client_context("h2")
    context.load_cert_chain(stranger.certificate, stranger.key)
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        shake_hands(server_tls(certificate, client_ca=ca.file).context, context)


# Files that change.


def test_files_that_stay_make_no_new_context(certificate: Certificate) -> None:
    tls = server_tls(certificate)
    context = tls.context
    certificate.certificate.touch()
    assert not tls.renew()
    assert tls.context is context


def test_a_new_certificate_is_for_new_connections(ca: Authority, certificate: Certificate) -> None:
    tls = server_tls(certificate)
    before = tls.context
    ca.again(certificate, "server.test", "new.test")
    assert tls.renew()
    _, client = shake_hands(tls.context, client_tls(ca).context)
    assert names_of(client) == ("server.test", "new.test")
    _, client = shake_hands(before, client_tls(ca).context)
    assert names_of(client) == ("server.test",)


def test_a_bad_change_is_said_once_and_the_old_files_hold(
    ca: Authority, certificate: Certificate, caplog: pytest.LogCaptureFixture
) -> None:
    tls = server_tls(certificate)
    context = tls.context
    key_of_another(certificate)  # the certificate is written, its key not yet
    assert not tls.renew()
    assert not tls.renew()
    assert tls.context is context
    (record,) = caplog.records
    assert "the old ones stay: listener.tls.key" in record.getMessage()
    ca.again(certificate, "server.test")
    assert tls.renew()


def test_a_client_of_a_ca_that_was_taken_away_is_refused_even_if_it_resumes(
    ca: Authority, certificate: Certificate, tmp_path: Path
) -> None:
    clients = Authority(tmp_path, "clients")
    tls = server_tls(certificate, client_ca=clients.file)
    client = clients.issue("gateway.test", file="client")
    context = certificate.client_context("h2")
    context.load_cert_chain(client.certificate, client.key)
    _, first = shake_hands(tls.context, context)

    def resume() -> bool | None:
        pipes = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = tls.context.wrap_bio(pipes[0], pipes[1], server_side=True)
        again = context.wrap_bio(pipes[1], pipes[0], server_hostname="server.test", session=first.session)
        for end in (again, server, again, server):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
        return server.session_reused

    assert resume(), "tickets are good as long as the files are the same"
    clients.file.write_bytes(Authority(tmp_path, "fresh").pem)
    assert tls.renew()
    with pytest.raises(ssl.SSLCertVerificationError):
        resume()


def test_new_material_is_another_object_for_those_who_make_credentials(ca: Authority, tmp_path: Path) -> None:
    own = ca.issue("proxy.test", file="own")
    tls = client_tls(ca, **own.table)
    before = tls.pem
    assert (before.ca, before.chain, before.key) == (ca.pem, own.certificate.read_bytes(), own.key.read_bytes())
    assert not tls.renew()
    assert tls.pem is before
    ca.again(own, "proxy.test")
    assert tls.renew()
    assert tls.pem.chain == own.certificate.read_bytes()


class Clock:
    """A reactor of which only the timers are asked for."""

    def __init__(self) -> None:
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.cancelled = 0

    def call_later(self, delay: float, callback: Callable[[], None]) -> Clock:
        self.timers.append((delay, callback))
        return self

    def cancel(self) -> None:
        self.cancelled += 1


def test_the_files_are_looked_at_every_interval_until_the_end(ca: Authority, certificate: Certificate) -> None:
    listener = ListenerTlsSettings.model_validate({**certificate.table, "reload_interval": 7.0})
    tls, clock = Tls(listener, None), Clock()
    assert tls.downstream is not None
    tls.watch(clock)  # type: ignore[arg-type]
    for _ in range(3):
        before = tls.downstream.context
        ca.again(certificate, "server.test")
        delay, look = clock.timers.pop()
        assert delay == 7.0
        assert not clock.timers
        look()
        assert tls.downstream.context is not before
    tls.stop()
    tls.stop()
    assert clock.cancelled == 1
