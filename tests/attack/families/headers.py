"""Header blocks: endless, exploding, broken, and metadata that a server would take amiss."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from tests.attack.attacker import Attacker
from tests.attack.family import ANSWER, HOLD, INVALID_ARGUMENT, OK, RESOURCE_EXHAUSTED, Family, first_message, request
from tests.support.frames import (
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    HEADERS,
    SETTINGS,
    frame,
    setting,
)

if TYPE_CHECKING:
    from tests.attack.arena import Arena

family = Family()


@family.entry("H1 continuations without end")
def continuations(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        attacker.send(frame(HEADERS, 0, 1, attacker.encoder.encode(request())))
        attacker.flood(itertools.repeat(frame(CONTINUATION, 0, 1, b"\x00\x01a\x01b" * 100)))
        return attacker.ends_with(ENHANCE_YOUR_CALM)


@family.entry("H1 header block that never ends")
def half_headers(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        attacker.acknowledges = False
        attacker.send(frame(HEADERS, 0, 1, attacker.encoder.encode(request())))
        return attacker.ends_with(ENHANCE_YOUR_CALM)


def block(name: str, data: bytes, code: int) -> None:
    """One header block, made by hand, which ends the connection with this code."""

    @family.entry(name)
    def attack(arena: Arena) -> int:
        with Attacker(arena.port) as attacker:
            for start in range(0, len(data), 16_384):
                last = start + 16_384 >= len(data)
                kind, flags = (CONTINUATION if start else HEADERS), (END_HEADERS if last else 0)
                attacker.send(frame(kind, flags | (0 if start else END_STREAM), 1, data[start : start + 16_384]))
            return attacker.ends_with(code)


block("H2 hpack bomb", b"\x40\x01a\x7f\xa1\x1e" + b"y" * 4000 + b"\xbe" * 15_000, ENHANCE_YOUR_CALM)
block("H3 one-byte references to a tiny entry", b"\x40\x01a\x00" + b"\xbe" * 16_000, ENHANCE_YOUR_CALM)
block("H3 crumbs of cookies", b"\x40\x06cookie\x00" + b"\xbe" * 100_000, ENHANCE_YOUR_CALM)
block("H4 integer that never ends", b"\x00\x7f" + b"\xff" * 30, COMPRESSION_ERROR)
block("H4 integer padded with zeros", b"\x00\x7f" + b"\x80" * 30 + b"\x00", COMPRESSION_ERROR)
block("H6 table larger than allowed", b"\x3f\xe1\xff\x03\x83", COMPRESSION_ERROR)
block("H6 table size in the middle of a block", b"\x83\x20", COMPRESSION_ERROR)
family.malformed(
    "H5 names and values that are none",
    request(HOLD, (b"", b"v")),
    request(HOLD, (b"X-Upper", b"v")),
    request(HOLD, (b"x", b"a\r\nhost: b")),
    request(HOLD, (b"x", b"a\0b")),
    request(HOLD, (b"x", b" a")),
    request(HOLD, (b"x", b"a ")),
    request(b"/attack.X/Ho\0ld"),
)


@family.entry("H6 table sizes that flip under way")
def table_sizes(arena: Arena) -> int:
    """The proxy's encoder must follow each change: what it sends must stay readable."""
    with Attacker(arena.port) as attacker:
        for value in itertools.islice(itertools.cycle((0, 4096, 2**32 - 1, 100)), 200):
            acks = attacker.acks
            attacker.send(frame(SETTINGS, 0, 0, setting(1, value)))
            attacker.wait(lambda acks=acks: attacker.acks > acks)  # type: ignore[misc]
            stream = attacker.stream()
            body = frame(DATA, END_STREAM, stream, first_message(arena))
            answered = attacker.statuses[OK]
            attacker.decoder.max_allowed_table_size = 4096
            attacker.send(attacker.headers(stream, request(ANSWER)) + body)
            assert attacker.wait(lambda answered=answered: attacker.statuses[OK] > answered), "no readable answer"  # type: ignore[misc]
        return attacker.goes_on()


family.calls("H7 rejected calls with ever new fields", request(HOLD, (b"x-bin", b"?")), first_message, INVALID_ARGUMENT)
family.calls("H8 metadata that is not base64", request(HOLD, (b"trace-bin", b"AAE-")), first_message, INVALID_ARGUMENT)
family.calls("H8 names that gRPC does not have", request(HOLD, (b"a!b", b"1")), first_message, INVALID_ARGUMENT)
family.calls(
    "H8 more metadata than the server takes",
    request(ANSWER, (b"x-a", b"y" * 4000), (b"x-b", b"y" * 5000)),
    first_message,
    RESOURCE_EXHAUSTED,
)
