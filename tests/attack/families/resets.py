"""Resets: streams that are opened and given up at once, or that make the proxy give them up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.attack.attacker import Attacker
from tests.attack.family import HOLD, Family, first_message, nothing, request
from tests.support.frames import (
    CANCEL,
    DATA,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    PRIORITY,
    PROTOCOL_ERROR,
    RST_STREAM,
    STREAM_CLOSED,
    WINDOW_UPDATE,
    frame,
    number,
)

if TYPE_CHECKING:
    from tests.attack.arena import Arena

family = Family()

family.streams(
    "R1 rapid reset before the first message",
    request(),
    lambda _, sid: frame(RST_STREAM, 0, sid, number(CANCEL)),
    ENHANCE_YOUR_CALM,
)
family.streams(
    "R1 rapid reset of calls that reach a server",
    request(),
    lambda arena, sid: frame(DATA, 0, sid, first_message(arena)) + frame(RST_STREAM, 0, sid, number(CANCEL)),
    ENHANCE_YOUR_CALM,
)
family.streams(
    "R2 window update of zero", request(), lambda _, sid: frame(WINDOW_UPDATE, 0, sid, number(0)), PROTOCOL_ERROR
)
family.streams(
    "R2 window update that overflows",
    request(),
    lambda _, sid: frame(WINDOW_UPDATE, 0, sid, number(2**31 - 1)),
    FLOW_CONTROL_ERROR,
)
family.streams(
    "R2 priority of the wrong length", request(), lambda _, sid: frame(PRIORITY, 0, sid, b"1234"), FRAME_SIZE_ERROR
)
family.streams("R2 data after the end", request(), lambda _, sid: frame(DATA, 0, sid, b"x"), STREAM_CLOSED, end=True)
family.streams(
    "R2 priority on itself",
    request(),
    lambda _, sid: frame(PRIORITY, 0, sid, number(sid) + b"\x10") * 10,
    ENHANCE_YOUR_CALM,
)


@family.entry("R2 headers after the end")
def headers_after_the_end(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        stream = attacker.stream()
        attacker.send(attacker.headers(stream, request(), end=True) + attacker.headers(stream, request(), end=True))
        return attacker.ends_with(STREAM_CLOSED)


@family.entry("R3 reset flood that is not read")
def reset_flood(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        attacker.reads = False
        attacker.flood(attacker.streams(request(HOLD, (b"content-length", b"7")), nothing, end=True))
        return attacker.ends_with(ENHANCE_YOUR_CALM, PROTOCOL_ERROR)
