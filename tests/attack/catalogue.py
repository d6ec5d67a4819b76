"""The attacks: each says for itself what it sends, and checks what it was told."""

from __future__ import annotations

import gzip
import itertools
import time
from typing import TYPE_CHECKING

from tests.attack.attacker import SECONDS, Attacker
from tests.support.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    number,
    setting,
)
from tests.support.messages import field, framed, keyed, varint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.attack.arena import Arena
    from tests.attack.attacker import Fields

    Attack = Callable[[Arena], int]
    """Attacks, checks what it was told, and returns how many bytes it sent."""

NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, SETTINGS_TIMEOUT, STREAM_CLOSED = 0, 1, 3, 4, 5
FRAME_SIZE_ERROR, REFUSED_STREAM, COMPRESSION_ERROR, CALM = 6, 7, 9, 11
INVALID_ARGUMENT, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, INTERNAL = b"3", b"4", b"8", b"13"

HOLD, BIG, ANSWER = b"/attack.X/Hold", b"/attack.X/Big", b"/attack.X/Answer"
BATCH = 100
"""Streams or frames in one write."""


def request(path: bytes = HOLD, *extra: tuple[bytes, bytes], **replaced: bytes | None) -> Fields:
    """The headers of a call. `replaced`: pseudo-headers by name, None to leave one out."""
    pseudo = {"method": b"POST", "scheme": b"http", "path": path, "authority": b"t", **replaced}
    return [
        *((b":" + name.encode(), value) for name, value in pseudo.items() if value is not None),
        (b"content-type", b"application/grpc"),
        *((b"te", b"trailers"),),
        *extra,
    ]


def streams(attacker: Attacker, fields: Fields, after: Callable[[int], bytes], *, end: bool = False) -> Iterator[bytes]:
    """Chunks of streams with these headers, and what follows each."""
    while True:
        chunk = []
        for _ in range(BATCH):
            stream = attacker.stream()
            chunk.append(attacker.headers(stream, fields, end=end) + after(stream))
        yield b"".join(chunk)


def nothing(_stream: int) -> bytes:
    return b""


def ends_with(attacker: Attacker, *codes: int) -> int:
    """The peer closed, with one of these codes."""
    assert attacker.ended(), f"was not stopped; {vars(attacker)}"
    assert attacker.goaway in codes, f"GOAWAY {attacker.goaway}, not {codes}; {attacker.resets} {attacker.statuses}"
    return attacker.sent


def goes_on(attacker: Attacker) -> int:
    """The peer bears it."""
    assert attacker.alive(), f"the connection ended with GOAWAY {attacker.goaway}"
    return attacker.sent


CATALOGUE: dict[str, Attack] = {}


def entry(name: str) -> Callable[[Attack], Attack]:
    """Put an attack into the catalogue."""

    def put(attack: Attack) -> Attack:
        assert name not in CATALOGUE, name
        CATALOGUE[name] = attack
        return attack

    return put


def flood_of_streams(
    name: str, fields: Fields, after: Callable[[Arena, int], bytes], *codes: int, end: bool = False
) -> None:
    """An entry that opens stream after stream until it is stopped with one of these codes."""

    @entry(name)
    def attack(arena: Arena) -> int:
        with Attacker(arena.port) as attacker:
            attacker.flood(streams(attacker, fields, lambda stream: after(arena, stream), end=end))
            return ends_with(attacker, *codes)


def flood_of_frames(name: str, one: bytes, *codes: int, stream: bool = False) -> None:
    """An entry that sends the same frame again and again, until it is stopped; without codes, it is borne."""

    @entry(name)
    def attack(arena: Arena) -> int:
        with Attacker(arena.port) as attacker:
            if stream:
                attacker.send(attacker.headers(attacker.stream(), request()))
            attacker.flood(itertools.repeat(one * BATCH))
            return ends_with(attacker, *codes) if codes else goes_on(attacker)


# R. Resets.

CANCEL = number(8)


def first_message(arena: Arena) -> bytes:
    return framed(keyed(arena.key))


flood_of_streams(
    "R1 rapid reset before the first message", request(), lambda _, sid: frame(RST_STREAM, 0, sid, CANCEL), CALM
)
flood_of_streams(
    "R1 rapid reset of calls that reach a server",
    request(),
    lambda arena, sid: frame(DATA, 0, sid, first_message(arena)) + frame(RST_STREAM, 0, sid, CANCEL),
    CALM,
)
flood_of_streams(
    "R2 window update of zero", request(), lambda _, sid: frame(WINDOW_UPDATE, 0, sid, number(0)), PROTOCOL_ERROR
)
flood_of_streams(
    "R2 window update that overflows",
    request(),
    lambda _, sid: frame(WINDOW_UPDATE, 0, sid, number(2**31 - 1)),
    FLOW_CONTROL_ERROR,
)
flood_of_streams(
    "R2 priority of the wrong length", request(), lambda _, sid: frame(PRIORITY, 0, sid, b"1234"), FRAME_SIZE_ERROR
)
flood_of_streams("R2 data after the end", request(), lambda _, sid: frame(DATA, 0, sid, b"x"), STREAM_CLOSED, end=True)
flood_of_streams(
    "R2 priority on itself",
    request(),
    lambda _, sid: frame(PRIORITY, 0, sid, number(sid) + b"\x10") * 10,
    CALM,
)


@entry("R2 headers after the end")
def headers_after_the_end(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        stream = attacker.stream()
        attacker.send(attacker.headers(stream, request(), end=True) + attacker.headers(stream, request(), end=True))
        return ends_with(attacker, STREAM_CLOSED)


@entry("R3 reset flood that is not read")
def reset_flood(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        attacker.reads = False
        attacker.flood(streams(attacker, request(HOLD, (b"content-length", b"7")), nothing, end=True))
        return ends_with(attacker, CALM, PROTOCOL_ERROR)


# F. Floods.

flood_of_frames("F settings", frame(SETTINGS, 0, 0), CALM)
flood_of_frames("F empty data", frame(DATA, 0, 1), CALM, stream=True)
flood_of_frames("F priority churn", frame(PRIORITY, 0, 1, number(3) + b"\x10"), CALM, stream=True)
flood_of_frames("F window updates", frame(WINDOW_UPDATE, 0, 0, number(1)))
flood_of_frames("F unknown frames", frame(0x77, 0, 0, b"abc"), CALM)
flood_of_frames("F padded data of one byte", frame(DATA, PADDED, 1, b"\xff" + b"\0" + bytes(255)), stream=True)


@entry("F pings without end")
def endless_pings(arena: Arena) -> int:
    """Borne by a proxy that gets to answer them, and stopped if too many come in one read."""
    with Attacker(arena.port) as attacker:
        attacker.flood(itertools.repeat(frame(PING, 0, 0, b"12345678") * BATCH))
        return attacker.sent if attacker.alive() else ends_with(attacker, CALM)


@entry("F pings that are answered")
def pings(arena: Arena) -> int:
    """What estimates of bandwidth look like (grpc-go, C-core), only more of it: borne."""
    with Attacker(arena.port) as attacker:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            wanted = attacker.pongs + BATCH
            assert attacker.send(frame(PING, 0, 0, b"12345678") * BATCH)
            assert attacker.wait(lambda wanted=wanted: attacker.pongs >= wanted)  # type: ignore[misc]
        return goes_on(attacker)


@entry("F pings that are not read")
def pings_not_read(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        attacker.reads = False
        attacker.flood(itertools.repeat(frame(PING, 0, 0, b"12345678") * BATCH), limit=64 << 20, seconds=3.0)
        return ends_with(attacker, CALM)


@entry("F goaway")
def goaway(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        attacker.flood(itertools.repeat(frame(GOAWAY, 0, 0, bytes(8)) * BATCH))
        assert attacker.ended()
        return attacker.sent


# H. Headers.


@entry("H1 continuations without end")
def continuations(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        attacker.send(frame(HEADERS, 0, 1, attacker.encoder.encode(request())))
        attacker.flood(itertools.repeat(frame(CONTINUATION, 0, 1, b"\x00\x01a\x01b" * 100)))
        return ends_with(attacker, CALM)


@entry("H1 header block that never ends")
def half_headers(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        attacker.acknowledges = False
        attacker.send(frame(HEADERS, 0, 1, attacker.encoder.encode(request())))
        return ends_with(attacker, CALM)


def blocks(name: str, block: bytes, *codes: int) -> None:
    """An entry that sends one header block, made by hand."""

    @entry(name)
    def attack(arena: Arena) -> int:
        with Attacker(arena.port) as attacker:
            for start in range(0, len(block), 16_384):
                last = start + 16_384 >= len(block)
                kind, flags = (CONTINUATION if start else HEADERS), (END_HEADERS if last else 0)
                attacker.send(frame(kind, flags | (0 if start else END_STREAM), 1, block[start : start + 16_384]))
            return ends_with(attacker, *codes)


blocks("H2 hpack bomb", b"\x40\x01a\x7f\xa1\x1e" + b"y" * 4000 + b"\xbe" * 15_000, CALM)
blocks("H3 one-byte references to a tiny entry", b"\x40\x01a\x00" + b"\xbe" * 16_000, CALM)
blocks("H3 crumbs of cookies", b"\x40\x06cookie\x00" + b"\xbe" * 100_000, CALM)
blocks("H4 integer that never ends", b"\x00\x7f" + b"\xff" * 30, COMPRESSION_ERROR)
blocks("H4 integer padded with zeros", b"\x00\x7f" + b"\x80" * 30 + b"\x00", COMPRESSION_ERROR)
blocks("H6 table larger than allowed", b"\x3f\xe1\xff\x03\x83", COMPRESSION_ERROR)
blocks("H6 table size in the middle of a block", b"\x83\x20", COMPRESSION_ERROR)

MALFORMED: dict[str, list[Fields]] = {
    "H5 names and values that are none": [
        request(HOLD, (b"", b"v")),
        request(HOLD, (b"X-Upper", b"v")),
        request(HOLD, (b"x", b"a\r\nhost: b")),
        request(HOLD, (b"x", b"a\0b")),
        request(HOLD, (b"x", b" a")),
        request(HOLD, (b"x", b"a ")),
        request(b"/attack.X/Ho\0ld"),
    ],
    "S1 pseudo-headers": [
        request(HOLD, (b":unknown", b"1")),
        request(HOLD, (b":status", b"200")),
        request(HOLD, (b":path", b"/other")),
        [(b":path", b"/x"), *request()],
        request(method=None),
        request(scheme=None),
        [each for each in request() if each[0] != b":path"],
        request(b""),
        request(b"attack.X/Hold"),
    ],
    "S2 fields of the connection": [
        request(HOLD, (b"connection", b"close")),
        request(HOLD, (b"keep-alive", b"1")),
        request(HOLD, (b"proxy-connection", b"close")),
        request(HOLD, (b"transfer-encoding", b"chunked")),
        request(HOLD, (b"upgrade", b"h2c")),
        [*request()[:5], (b"te", b"gzip")],
    ],
    "S3 content-length": [
        request(HOLD, (b"content-length", b"x")),
        request(HOLD, (b"content-length", b"5")),
        request(HOLD, (b"content-length", b"0"), (b"content-length", b"1")),
    ],
}
"""What the protocol itself forbids (RFC 9113, 8.2 and 8.3): each variant, until it is stopped."""


def malformed(name: str, variants: list[Fields]) -> None:
    """An entry that floods with each of the variants in turn."""

    @entry(name)
    def attack(arena: Arena) -> int:
        sent = 0
        for fields in variants:
            with Attacker(arena.port) as attacker:
                attacker.flood(streams(attacker, fields, nothing, end=True))
                # PROTOCOL_ERROR: as many in one read are more streams than allowed, before the first is reset.
                sent += ends_with(attacker, CALM, PROTOCOL_ERROR)
        return sent


for _name, _variants in MALFORMED.items():
    malformed(_name, _variants)


@entry("H6 table sizes that flip under way")
def table_sizes(arena: Arena) -> int:
    """The proxy's encoder must follow each change: what it sends must stay readable."""
    with Attacker(arena.port) as attacker:
        for value in itertools.islice(itertools.cycle((0, 4096, 2**32 - 1, 100)), 200):
            acks = attacker.acks
            attacker.send(frame(SETTINGS, 0, 0, setting(1, value)))
            attacker.wait(lambda acks=acks: attacker.acks > acks)  # type: ignore[misc]
            stream = attacker.stream()
            body = frame(DATA, END_STREAM, stream, first_message(arena))
            answered = attacker.statuses[b"0"]
            attacker.decoder.max_allowed_table_size = 4096
            attacker.send(attacker.headers(stream, request(ANSWER)) + body)
            assert attacker.wait(lambda answered=answered: attacker.statuses[b"0"] > answered), "no readable answer"  # type: ignore[misc]
        return goes_on(attacker)


def answered(
    arena: Arena, fields: Fields, body: bytes, *, end: bool = True, status: bytes, seconds: float = SECONDS
) -> int:
    """Calls like this as fast as they are answered, each with this status; the connection is borne."""
    with Attacker(arena.port) as attacker:
        count = 0
        until = time.monotonic() + seconds
        while time.monotonic() < until and attacker.sent < 8 << 20:
            for _ in range(10):
                stream = attacker.stream()
                if not attacker.send(attacker.headers(stream, fields, end=not body and end)):
                    break
                for start in range(0, len(body), 16_384):
                    flags = END_STREAM if end and start + 16_384 >= len(body) else 0
                    attacker.send(frame(DATA, flags, stream, body[start : start + 16_384]))
                count += 1
            assert attacker.wait(lambda: sum(attacker.statuses.values()) >= count), (  # noqa: B023
                f"{attacker.statuses} of {count}; {attacker.resets}, GOAWAY {attacker.goaway}"
            )
        assert attacker.statuses == {status: count}, f"{attacker.statuses}, not only {status!r}"
        return goes_on(attacker)


def calls(name: str, fields: Fields, body: Callable[[Arena], bytes], status: bytes, *, end: bool = True) -> None:
    """An entry of calls that are answered with `status`, over and over."""

    @entry(name)
    def attack(arena: Arena) -> int:
        return answered(arena, fields, body(arena), end=end, status=status)


calls("H7 rejected calls with ever new fields", request(HOLD, (b"x-bin", b"?")), first_message, INVALID_ARGUMENT)
calls("H8 metadata that is not base64", request(HOLD, (b"trace-bin", b"AAE-")), first_message, INVALID_ARGUMENT)
calls("H8 names that gRPC does not have", request(HOLD, (b"a!b", b"1")), first_message, INVALID_ARGUMENT)
calls(
    "H8 more metadata than the server takes",
    request(ANSWER, (b"x-a", b"y" * 4000), (b"x-b", b"y" * 5000)),
    first_message,
    RESOURCE_EXHAUSTED,
)
calls("S1 host that disagrees", request(HOLD, (b"host", b"other")), first_message, INVALID_ARGUMENT)
calls("S1 scheme that is none", request(HOLD, scheme=b"ftp"), first_message, INVALID_ARGUMENT)
calls("S1 method other than POST", request(HOLD, method=b"GET"), lambda _: b"", b"405")
calls("S5 CONNECT", [(b":method", b"CONNECT"), (b":authority", b"t:1")], lambda _: b"", b"415")
calls(
    "S6 metadata that only the proxy may write",
    request(ANSWER, (b"x-districhat-attempt", b"9")),
    first_message,
    b"0",
)
calls("S6 key of enormous length", request(), lambda _: framed(keyed(b"k" * 5000)), INVALID_ARGUMENT)


@entry("S4 trailers without an end")
def trailers_without_end(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:

        def after(stream: int) -> bytes:
            return attacker.headers(stream, [(b"x", b"1")])

        attacker.flood(streams(attacker, request(), after))
        return ends_with(attacker, CALM, PROTOCOL_ERROR)


@entry("S4 pseudo-headers in trailers")
def pseudo_in_trailers(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:

        def after(stream: int) -> bytes:
            return attacker.headers(stream, [(b":path", b"/x")], end=True)

        attacker.flood(streams(attacker, request(), after))
        return ends_with(attacker, CALM, PROTOCOL_ERROR)


@entry("S5 HTTP/1 and an upgrade")
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


# W. Windows and slow readers.


def hoard(arena: Arena, attacker: Attacker, count: int) -> None:
    """Calls with large answers."""
    attacker.flood(
        itertools.islice(
            streams(attacker, request(BIG), lambda sid: frame(DATA, END_STREAM, sid, first_message(arena))),
            count // BATCH,
        ),
        seconds=5.0,
    )


@entry("W1 answers that are taken byte by byte")
def dribble(arena: Arena) -> int:
    with Attacker(arena.port, settings=setting(4, 1)) as attacker:
        hoard(arena, attacker, 100)
        until = time.monotonic() + 2 * SECONDS
        while time.monotonic() < until and not attacker.closed:
            attacker.send(b"".join(frame(WINDOW_UPDATE, 0, sid, number(1)) for sid in range(1, 200, 2)))
            attacker.wait(lambda: False, 0.01)
        return goes_on(attacker)


@entry("W1 answers that are never taken")
def never_taken(arena: Arena) -> int:
    with Attacker(arena.port, settings=setting(4, 0)) as attacker:
        hoard(arena, attacker, 100)
        assert attacker.wait(lambda: attacker.resets[CALM] >= 100), f"{attacker.resets}"
        return goes_on(attacker)


@entry("W2 a thousand answers that are never taken")
def thousand_answers(arena: Arena) -> int:
    with Attacker(arena.port, settings=setting(4, 0)) as attacker:
        hoard(arena, attacker, 1000)
        assert attacker.wait(lambda: attacker.resets[CALM] >= 500), f"{attacker.resets}"
        return goes_on(attacker)


@entry("W2 a socket that is never read")
def socket_not_read(arena: Arena) -> int:
    with Attacker(arena.port, settings=setting(4, 2**31 - 1)) as attacker:
        attacker.send(frame(WINDOW_UPDATE, 0, 0, number(2**30)))
        attacker.reads = False
        hoard(arena, attacker, 1000)
        time.sleep(2 * SECONDS)
        return attacker.sent


@entry("W3 windows that flip")
def window_flips(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        attacker.flood(itertools.islice(streams(attacker, request(), nothing), 5))
        flip = frame(SETTINGS, 0, 0, setting(4, 1)) + frame(SETTINGS, 0, 0, setting(4, 65_535))
        attacker.flood(itertools.repeat(flip * BATCH))
        return ends_with(attacker, CALM)


@entry("W3 windows below zero")
def negative_windows(arena: Arena) -> int:
    with Attacker(arena.port, settings=setting(4, 20_000)) as attacker:
        hoard(arena, attacker, 100)
        attacker.send(frame(SETTINGS, 0, 0, setting(4, 0)))
        attacker.send(b"".join(frame(WINDOW_UPDATE, 0, sid, number(10_000)) for sid in range(1, 200, 2)))
        return goes_on(attacker)


@entry("W3 window too large")
def window_too_large(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        attacker.send(frame(SETTINGS, 0, 0, setting(4, 2**31)))
        return ends_with(attacker, FLOW_CONTROL_ERROR)


flood_of_frames(
    "W4 connection window that overflows", frame(WINDOW_UPDATE, 0, 0, number(2**31 - 1)), FLOW_CONTROL_ERROR
)
flood_of_frames("W4 connection window update of zero", frame(WINDOW_UPDATE, 0, 0, number(0)), PROTOCOL_ERROR)


@entry("W5 more data than the window")
def over_the_window(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        stream = attacker.stream()
        start = framed(keyed(arena.key, bytes(8 << 20)))[:16_384]
        attacker.send(attacker.headers(stream, request()) + frame(DATA, 0, stream, start))
        attacker.flood(itertools.repeat(frame(DATA, 0, stream, bytes(16_384))))
        return ends_with(attacker, FLOW_CONTROL_ERROR)


@entry("W5 data of streams that are over")
def data_of_dead_streams(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        data = bytes(16_384)
        for _ in range(300):
            stream = attacker.stream()
            attacker.send(attacker.headers(stream, request(method=b"GET")) + frame(DATA, 0, stream, data) * 3)
        return goes_on(attacker)


# G. gRPC.

bomb = gzip.compress(b"\x12" + varint(30 << 20) + bytes(30 << 20))
GZIP = (b"grpc-encoding", b"gzip")

calls("G length of 4 GiB", request(), lambda _: b"\0\xff\xff\xff\xff", RESOURCE_EXHAUSTED, end=False)
calls("G end in the middle of a message", request(), lambda arena: first_message(arena)[:-3], INTERNAL)
calls("G compressed without an encoding", request(), lambda _: framed(b"xx", 1), INTERNAL)
calls("G flag that is none", request(), lambda _: framed(b"xx", 2), INTERNAL)
calls("G flag of all ones", request(), lambda _: framed(b"xx", 255), INTERNAL)
calls("G gzip bomb", request(HOLD, GZIP), lambda _: framed(bomb, 1), RESOURCE_EXHAUSTED)
calls("G nested groups", request(), lambda _: framed(b"\x13" * 10_000), INVALID_ARGUMENT)
calls("G varint that never ends", request(), lambda _: framed(b"\x10" + b"\xff" * 20), INVALID_ARGUMENT)
calls("G length beyond the message", request(), lambda _: framed(b"\x12\xff\xff\xff\x7f" + b"x" * 10), INVALID_ARGUMENT)
calls("G fields without end", request(), lambda _: framed(b"\x10\0" * 20_000), RESOURCE_EXHAUSTED)
calls("G no message at all", request(), lambda _: b"", INVALID_ARGUMENT)
TIMEOUTS = (b"1", b"H", b"-1S", b"1 S", b"123456789S", b"1x", b"+1S", b"0x1S", "\u0661S".encode())


@entry("G grpc-timeout that is none")
def timeouts(arena: Arena) -> int:
    return sum(
        answered(
            arena, request(HOLD, (b"grpc-timeout", value)), first_message(arena), status=INVALID_ARGUMENT, seconds=0.1
        )
        for value in TIMEOUTS
    )


calls("G grpc-timeout that overflows", request(ANSWER, (b"grpc-timeout", b"99999999H")), first_message, b"0")
calls("G grpc-timeout of zero", request(HOLD, (b"grpc-timeout", b"0S")), first_message, DEADLINE_EXCEEDED)
calls("G no gRPC", [*request()[:4], (b"content-type", b"text/html")], lambda _: b"", b"415")
calls("G metadata beyond ASCII", request(ANSWER, (b"x", bytes(range(128, 256)))), first_message, b"0")
calls("G message of percents", request(HOLD, (b"grpc-timeout", b"%" * 400)), first_message, INVALID_ARGUMENT)


@entry("G first message byte by byte")
def byte_by_byte(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:

        def after(stream: int) -> bytes:
            return b"".join(frame(DATA, 0, stream, bytes((byte,))) for byte in first_message(arena)) + frame(
                DATA, END_STREAM, stream
            )

        attacker.flood(itertools.islice(streams(attacker, request(ANSWER), after), 10))
        assert attacker.wait(lambda: attacker.statuses[b"0"] == 1000), f"{attacker.statuses} {attacker.goaway}"
        return goes_on(attacker)


@entry("G first messages that never end")
def endless_messages(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        start = framed(field(2, bytes(3 << 20)) + keyed(arena.key))[:16_384]
        part = frame(DATA, 0, 0, bytes(16_384))
        opened = []
        for _ in range(200):
            stream = attacker.stream()
            opened.append(stream)
            attacker.send(attacker.headers(stream, request()) + frame(DATA, 0, stream, start))
        for _ in range(14):
            for stream in opened:
                attacker.send(part[:5] + number(stream) + part[9:])
        assert attacker.wait(lambda: attacker.statuses[RESOURCE_EXHAUSTED] > 0), f"{vars(attacker)}"[:800]
        return goes_on(attacker)


# L. Life cycle.


@entry("L preface that trickles")
def slow_preface(arena: Arena) -> int:
    with Attacker(arena.port, hello=False) as attacker:
        for byte in PREFACE * 10:
            if not attacker.send(bytes((byte,))) or attacker.wait(lambda: attacker.closed, 0.3):
                break
        return ends_with(attacker, PROTOCOL_ERROR)


@entry("L silence")
def silence(arena: Arena) -> int:
    with Attacker(arena.port, hello=False) as attacker:
        return ends_with(attacker, PROTOCOL_ERROR)


@entry("L no settings after the preface")
def no_settings(arena: Arena) -> int:
    with Attacker(arena.port, hello=False) as attacker:
        attacker.send(PREFACE + frame(PING, 0, 0, b"12345678"))
        return ends_with(attacker, PROTOCOL_ERROR)


@entry("L settings that are never acknowledged")
def never_acknowledged(arena: Arena) -> int:
    with Attacker(arena.port, acknowledges=False) as attacker:
        return ends_with(attacker, SETTINGS_TIMEOUT)


@entry("L headers that trickle")
def slow_headers(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        attacker.acknowledges = False
        data = frame(HEADERS, END_HEADERS, 1, attacker.encoder.encode(request(HOLD, (b"x", b"y" * 1000))))
        for byte in data:
            if not attacker.send(bytes((byte,))) or attacker.wait(lambda: attacker.closed, 0.2):
                break
        return ends_with(attacker, CALM)


@entry("L first messages that never come")
def no_first_message(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        attacker.flood(itertools.islice(streams(attacker, request(), nothing), 9))
        assert attacker.wait(lambda: attacker.statuses[DEADLINE_EXCEEDED] == 900), f"{attacker.statuses}"
        return goes_on(attacker)


@entry("L more streams than allowed, before the settings are seen")
def too_many_streams(arena: Arena) -> int:
    """envoy #13948: refused, and the connection lives."""
    with Attacker(arena.port, hello=False) as attacker:
        chunks = itertools.islice(streams(attacker, request(), nothing), 14)
        attacker.send(PREFACE + frame(SETTINGS, 0, 0) + b"".join(chunks))
        assert attacker.wait(lambda: attacker.resets[REFUSED_STREAM] == 400), f"{attacker.resets} {attacker.goaway}"
        return goes_on(attacker)


flood_of_streams("L streams without end", request(), lambda *_: b"", CALM, PROTOCOL_ERROR)


@entry("L even stream ids")
def even_ids(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        attacker.next_stream = 2
        attacker.send(attacker.headers(attacker.stream(), request()))
        return ends_with(attacker, PROTOCOL_ERROR)


@entry("L stream ids that go down")
def decreasing_ids(arena: Arena) -> int:
    """RFC 9113, 5.1.1: an unexpected id is a connection error; the engine drops the block, having decoded it."""
    with Attacker(arena.port) as attacker:
        for stream in range(2001, 1, -2):
            attacker.send(attacker.headers(stream, request(ANSWER), end=True))
        assert attacker.ended(0.5) or attacker.alive()
        return attacker.sent


@entry("L push promise")
def push_promise(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        attacker.send(frame(PUSH_PROMISE, END_HEADERS, 1, number(2)))
        return ends_with(attacker, PROTOCOL_ERROR)


@entry("L frame inside a header block")
def frame_in_block(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        attacker.send(frame(HEADERS, 0, 1, attacker.encoder.encode(request())) + frame(0x77, 0, 0))
        return ends_with(attacker, PROTOCOL_ERROR)


@entry("L unknown settings and a few unknown frames")
def unknown(arena: Arena) -> int:
    with Attacker(arena.port, settings=setting(0x77, 1) + setting(0xFFFF, 2**32 - 1)) as attacker:
        attacker.send(frame(0x77, 255, 0, b"x" * 1000) * 20)
        return goes_on(attacker)


@entry("L frame larger than allowed")
def large_frame(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        attacker.send(attacker.headers(attacker.stream(), request()) + frame(DATA, 0, 1, bytes(16_385)))
        return ends_with(attacker, FRAME_SIZE_ERROR)


@entry("L connections without end")
def connections(arena: Arena) -> int:
    """More than one address may have: the last ones are turned away, and none of the good ones is lost."""
    attackers = [Attacker(arena.port, hello=False) for _ in range(400)]
    try:
        assert attackers[-1].wait(lambda: attackers[-1].goaway == CALM)
        return sum(each.sent for each in attackers)
    finally:
        for each in attackers:
            each.socket.close()
