"""Floods of frames that cost their sender next to nothing."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

from tests.attack.attacker import BATCH, SECONDS, Attacker
from tests.attack.family import Family
from tests.support.frames import (
    DATA,
    ENHANCE_YOUR_CALM,
    GOAWAY,
    PADDED,
    PING,
    PRIORITY,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    number,
)

if TYPE_CHECKING:
    from tests.attack.arena import Arena

family = Family()

family.frames("F settings", frame(SETTINGS, 0, 0), ENHANCE_YOUR_CALM)
family.frames("F empty data", frame(DATA, 0, 1), ENHANCE_YOUR_CALM, stream=True)
family.frames("F priority churn", frame(PRIORITY, 0, 1, number(3) + b"\x10"), ENHANCE_YOUR_CALM, stream=True)
family.frames("F window updates", frame(WINDOW_UPDATE, 0, 0, number(1)))
family.frames("F unknown frames", frame(0x77, 0, 0, b"abc"), ENHANCE_YOUR_CALM)
family.frames("F padded data of one byte", frame(DATA, PADDED, 1, b"\xff" + b"\0" + bytes(255)), stream=True)


@family.entry("F pings without end")
def endless_pings(arena: Arena) -> int:
    """Borne by a proxy that gets to answer them, and stopped if too many come in one read."""
    with Attacker(arena.port) as attacker:
        attacker.flood(itertools.repeat(frame(PING, 0, 0, b"12345678") * BATCH))
        return attacker.sent if attacker.alive() else attacker.ends_with(ENHANCE_YOUR_CALM)


@family.entry("F pings that are answered")
def pings(arena: Arena) -> int:
    """What estimates of bandwidth look like (grpc-go, C-core), only more of it: borne."""
    with Attacker(arena.port) as attacker:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            wanted = attacker.pongs + BATCH
            assert attacker.send(frame(PING, 0, 0, b"12345678") * BATCH)
            assert attacker.wait(lambda wanted=wanted: attacker.pongs >= wanted)  # type: ignore[misc]
        return attacker.goes_on()


@family.entry("F pings that are not read")
def pings_not_read(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        attacker.reads = False
        attacker.flood(itertools.repeat(frame(PING, 0, 0, b"12345678") * BATCH), limit=64 << 20, seconds=3.0)
        return attacker.ends_with(ENHANCE_YOUR_CALM)


@family.entry("F goaway")
def goaway(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        attacker.flood(itertools.repeat(frame(GOAWAY, 0, 0, bytes(8)) * BATCH))
        assert attacker.ended()
        return attacker.sent
