"""Smuggling: requests that the proxy and a server could read differently."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.attack.attacker import SECONDS, Attacker
from tests.attack.family import ANSWER, HOLD, INVALID_ARGUMENT, OK, Family, first_message, request
from tests.support.frames import ENHANCE_YOUR_CALM, PROTOCOL_ERROR
from tests.support.messages import framed, keyed

if TYPE_CHECKING:
    from tests.attack.arena import Arena

family = Family()

family.malformed(
    "S1 pseudo-headers",
    request(HOLD, (b":unknown", b"1")),
    request(HOLD, (b":status", b"200")),
    request(HOLD, (b":path", b"/other")),
    [(b":path", b"/x"), *request()],
    request(method=None),
    request(scheme=None),
    [each for each in request() if each[0] != b":path"],
    request(b""),
    request(b"attack.X/Hold"),
)
family.malformed(
    "S2 fields of the connection",
    request(HOLD, (b"connection", b"close")),
    request(HOLD, (b"keep-alive", b"1")),
    request(HOLD, (b"proxy-connection", b"close")),
    request(HOLD, (b"transfer-encoding", b"chunked")),
    request(HOLD, (b"upgrade", b"h2c")),
    [*request()[:5], (b"te", b"gzip")],
)
family.malformed(
    "S3 content-length",
    request(HOLD, (b"content-length", b"x")),
    request(HOLD, (b"content-length", b"5")),
    request(HOLD, (b"content-length", b"0"), (b"content-length", b"1")),
)
family.calls("S1 host that disagrees", request(HOLD, (b"host", b"other")), first_message, INVALID_ARGUMENT)
family.calls("S1 scheme that is none", request(HOLD, scheme=b"ftp"), first_message, INVALID_ARGUMENT)
family.calls("S1 method other than POST", request(HOLD, method=b"GET"), lambda _: b"", b"405")
family.calls("S5 CONNECT", [(b":method", b"CONNECT"), (b":authority", b"t:1")], lambda _: b"", b"415")
family.calls(
    "S6 metadata that only the proxy may write",
    request(ANSWER, (b"x-districhat-attempt", b"9")),
    first_message,
    OK,
)
family.calls("S6 key of enormous length", request(), lambda _: framed(keyed(b"k" * 5000)), INVALID_ARGUMENT)


@family.entry("S4 trailers without an end")
def trailers_without_end(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        attacker.flood(attacker.streams(request(), lambda stream: attacker.headers(stream, [(b"x", b"1")])))
        return attacker.ends_with(ENHANCE_YOUR_CALM, PROTOCOL_ERROR)


@family.entry("S4 pseudo-headers in trailers")
def pseudo_in_trailers(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        trailers = [(b":path", b"/x")]
        attacker.flood(attacker.streams(request(), lambda stream: attacker.headers(stream, trailers, end=True)))
        return attacker.ends_with(ENHANCE_YOUR_CALM, PROTOCOL_ERROR)


@family.entry("S5 HTTP/1 and an upgrade")
def http1(arena: Arena) -> int:
    sent = 0
    until = time.monotonic() + SECONDS
    fields = (b"host: x", b"connection: upgrade, http2-settings", b"upgrade: h2c", b"http2-settings: AA", b"", b"")
    upgrade = b"\r\n".join((b"GET / HTTP/1.1", *fields))
    while time.monotonic() < until:
        with Attacker(arena.port, hello=False) as attacker:
            attacker.send(upgrade)
            assert attacker.ended()
            assert attacker.text.startswith(b"HTTP/1.1 505 ")
            sent += attacker.sent
    return sent
