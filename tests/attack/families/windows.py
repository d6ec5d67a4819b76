"""Windows and slow readers: who takes no answers makes the proxy keep them."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

from tests.attack.attacker import BATCH, SECONDS, Attacker
from tests.attack.family import BIG, Family, first_message, nothing, request
from tests.support.frames import (
    DATA,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    PROTOCOL_ERROR,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    number,
    setting,
)
from tests.support.messages import framed, keyed

if TYPE_CHECKING:
    from tests.attack.arena import Arena

family = Family()


def hoard(arena: Arena, attacker: Attacker, count: int) -> None:
    """Calls with large answers."""
    attacker.flood(
        itertools.islice(
            attacker.streams(request(BIG), lambda sid: frame(DATA, END_STREAM, sid, first_message(arena))),
            count // BATCH,
        ),
        seconds=5.0,
    )


@family.entry("W1 answers that are taken byte by byte")
def dribble(arena: Arena) -> int:
    with Attacker(arena.port, settings=setting(4, 1)) as attacker:
        hoard(arena, attacker, 100)
        until = time.monotonic() + 2 * SECONDS
        while time.monotonic() < until and not attacker.closed:
            attacker.send(b"".join(frame(WINDOW_UPDATE, 0, sid, number(1)) for sid in range(1, 200, 2)))
            attacker.wait(lambda: False, 0.01)
        return attacker.goes_on()


@family.entry("W1 answers that are never taken")
def never_taken(arena: Arena) -> int:
    with Attacker(arena.port, settings=setting(4, 0)) as attacker:
        hoard(arena, attacker, 100)
        assert attacker.wait(lambda: attacker.resets[ENHANCE_YOUR_CALM] >= 100), f"{attacker.resets}"
        return attacker.goes_on()


@family.entry("W2 a thousand answers that are never taken")
def thousand_answers(arena: Arena) -> int:
    with Attacker(arena.port, settings=setting(4, 0)) as attacker:
        hoard(arena, attacker, 1000)
        assert attacker.wait(lambda: attacker.resets[ENHANCE_YOUR_CALM] >= 500), f"{attacker.resets}"
        return attacker.goes_on()


@family.entry("W2 a socket that is never read")
def socket_not_read(arena: Arena) -> int:
    with Attacker(arena.port, settings=setting(4, 2**31 - 1)) as attacker:
        attacker.send(frame(WINDOW_UPDATE, 0, 0, number(2**30)))
        attacker.reads = False
        hoard(arena, attacker, 1000)
        time.sleep(2 * SECONDS)
        return attacker.sent


@family.entry("W3 windows that flip")
def window_flips(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        attacker.flood(itertools.islice(attacker.streams(request(), nothing), 5))
        flip = frame(SETTINGS, 0, 0, setting(4, 1)) + frame(SETTINGS, 0, 0, setting(4, 65_535))
        attacker.flood(itertools.repeat(flip * BATCH))
        return attacker.ends_with(ENHANCE_YOUR_CALM)


@family.entry("W3 windows below zero")
def negative_windows(arena: Arena) -> int:
    with Attacker(arena.port, settings=setting(4, 20_000)) as attacker:
        hoard(arena, attacker, 100)
        attacker.send(frame(SETTINGS, 0, 0, setting(4, 0)))
        attacker.send(b"".join(frame(WINDOW_UPDATE, 0, sid, number(10_000)) for sid in range(1, 200, 2)))
        return attacker.goes_on()


@family.entry("W3 window too large")
def window_too_large(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        attacker.send(frame(SETTINGS, 0, 0, setting(4, 2**31)))
        return attacker.ends_with(FLOW_CONTROL_ERROR)


family.frames("W4 connection window that overflows", frame(WINDOW_UPDATE, 0, 0, number(2**31 - 1)), FLOW_CONTROL_ERROR)
family.frames("W4 connection window update of zero", frame(WINDOW_UPDATE, 0, 0, number(0)), PROTOCOL_ERROR)


@family.entry("W5 more data than the window")
def over_the_window(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        stream = attacker.stream()
        start = framed(keyed(arena.key, bytes(8 << 20)))[:16_384]
        attacker.send(attacker.headers(stream, request()) + frame(DATA, 0, stream, start))
        attacker.flood(itertools.repeat(frame(DATA, 0, stream, bytes(16_384))))
        return attacker.ends_with(FLOW_CONTROL_ERROR)


@family.entry("W5 data of streams that are over")
def data_of_dead_streams(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        data = bytes(16_384)
        for _ in range(300):
            stream = attacker.stream()
            attacker.send(attacker.headers(stream, request(method=b"GET")) + frame(DATA, 0, stream, data) * 3)
        return attacker.goes_on()
