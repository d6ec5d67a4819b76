"""gRPC: length prefixes, compression, protobuf and timeouts as no client writes them."""

from __future__ import annotations

import gzip
import itertools
from typing import TYPE_CHECKING

from tests.attack.attacker import Attacker
from tests.attack.family import (
    ANSWER,
    DEADLINE_EXCEEDED,
    HOLD,
    INTERNAL,
    INVALID_ARGUMENT,
    OK,
    RESOURCE_EXHAUSTED,
    Family,
    answered,
    first_message,
    request,
)
from tests.support.frames import DATA, END_STREAM, frame, number
from tests.support.messages import field, framed, keyed, varint

if TYPE_CHECKING:
    from tests.attack.arena import Arena

family = Family()

BOMB = gzip.compress(b"\x12" + varint(30 << 20) + bytes(30 << 20))
GZIP = (b"grpc-encoding", b"gzip")

family.calls("G length of 4 GiB", request(), lambda _: b"\0\xff\xff\xff\xff", RESOURCE_EXHAUSTED, end=False)
family.calls("G end in the middle of a message", request(), lambda arena: first_message(arena)[:-3], INTERNAL)
family.calls("G compressed without an encoding", request(), lambda _: framed(b"xx", 1), INTERNAL)
family.calls("G flag that is none", request(), lambda _: framed(b"xx", 2), INTERNAL)
family.calls("G flag of all ones", request(), lambda _: framed(b"xx", 255), INTERNAL)
family.calls("G gzip bomb", request(HOLD, GZIP), lambda _: framed(BOMB, 1), RESOURCE_EXHAUSTED)
family.calls("G nested groups", request(), lambda _: framed(b"\x13" * 10_000), INVALID_ARGUMENT)
family.calls("G varint that never ends", request(), lambda _: framed(b"\x10" + b"\xff" * 20), INVALID_ARGUMENT)
family.calls(
    "G length beyond the message", request(), lambda _: framed(b"\x12\xff\xff\xff\x7f" + b"x" * 10), INVALID_ARGUMENT
)
family.calls("G fields without end", request(), lambda _: framed(b"\x10\0" * 20_000), RESOURCE_EXHAUSTED)
family.calls("G no message at all", request(), lambda _: b"", INVALID_ARGUMENT)

TIMEOUTS = (b"1", b"H", b"-1S", b"1 S", b"123456789S", b"1x", b"+1S", b"0x1S", "\u0661S".encode())


@family.entry("G grpc-timeout that is none")
def timeouts(arena: Arena) -> int:
    return sum(
        answered(
            arena, request(HOLD, (b"grpc-timeout", value)), first_message(arena), status=INVALID_ARGUMENT, seconds=0.1
        )
        for value in TIMEOUTS
    )


family.calls("G grpc-timeout that overflows", request(ANSWER, (b"grpc-timeout", b"99999999H")), first_message, OK)
family.calls("G grpc-timeout of zero", request(HOLD, (b"grpc-timeout", b"0S")), first_message, DEADLINE_EXCEEDED)
family.calls("G no gRPC", [*request()[:4], (b"content-type", b"text/html")], lambda _: b"", b"415")
family.calls("G metadata beyond ASCII", request(ANSWER, (b"x", bytes(range(128, 256)))), first_message, OK)
family.calls("G message of percents", request(HOLD, (b"grpc-timeout", b"%" * 400)), first_message, INVALID_ARGUMENT)


@family.entry("G first message byte by byte")
def byte_by_byte(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:

        def after(stream: int) -> bytes:
            return b"".join(frame(DATA, 0, stream, bytes((byte,))) for byte in first_message(arena)) + frame(
                DATA, END_STREAM, stream
            )

        attacker.flood(itertools.islice(attacker.streams(request(ANSWER), after), 10))
        assert attacker.wait(lambda: attacker.statuses[OK] == 1000), f"{attacker.statuses} {attacker.goaway}"
        return attacker.goes_on()


@family.entry("G first messages that never end")
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
        return attacker.goes_on()
