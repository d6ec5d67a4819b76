"""The life of a connection: prefaces, silence, stream ids, and frames where none belong."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from tests.attack.attacker import Attacker
from tests.attack.family import ANSWER, DEADLINE_EXCEEDED, HOLD, Family, nothing, request
from tests.support.frames import (
    DATA,
    END_HEADERS,
    ENHANCE_YOUR_CALM,
    FRAME_SIZE_ERROR,
    HEADERS,
    PING,
    PREFACE,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    REFUSED_STREAM,
    SETTINGS,
    SETTINGS_TIMEOUT,
    frame,
    number,
    setting,
)

if TYPE_CHECKING:
    from tests.attack.arena import Arena

family = Family()


@family.entry("L preface that trickles")
def slow_preface(arena: Arena) -> int:
    with Attacker(arena.port, hello=False) as attacker:
        for byte in PREFACE * 10:
            if not attacker.send(bytes((byte,))) or attacker.wait(lambda: attacker.closed, 0.3):
                break
        return attacker.ends_with(PROTOCOL_ERROR)


@family.entry("L silence")
def silence(arena: Arena) -> int:
    with Attacker(arena.port, hello=False) as attacker:
        return attacker.ends_with(PROTOCOL_ERROR)


@family.entry("L no settings after the preface")
def no_settings(arena: Arena) -> int:
    with Attacker(arena.port, hello=False) as attacker:
        attacker.send(PREFACE + frame(PING, 0, 0, b"12345678"))
        return attacker.ends_with(PROTOCOL_ERROR)


@family.entry("L settings that are never acknowledged")
def never_acknowledged(arena: Arena) -> int:
    with Attacker(arena.port, acknowledges=False) as attacker:
        return attacker.ends_with(SETTINGS_TIMEOUT)


@family.entry("L headers that trickle")
def slow_headers(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        attacker.acknowledges = False
        data = frame(HEADERS, END_HEADERS, 1, attacker.encoder.encode(request(HOLD, (b"x", b"y" * 1000))))
        for byte in data:
            if not attacker.send(bytes((byte,))) or attacker.wait(lambda: attacker.closed, 0.2):
                break
        return attacker.ends_with(ENHANCE_YOUR_CALM)


@family.entry("L first messages that never come")
def no_first_message(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        attacker.flood(itertools.islice(attacker.streams(request(), nothing), 9))
        assert attacker.wait(lambda: attacker.statuses[DEADLINE_EXCEEDED] == 900), f"{attacker.statuses}"
        return attacker.goes_on()


@family.entry("L more streams than allowed, before the settings are seen")
def too_many_streams(arena: Arena) -> int:
    """envoy #13948: refused, and the connection lives."""
    with Attacker(arena.port, hello=False) as attacker:
        chunks = itertools.islice(attacker.streams(request(), nothing), 14)
        attacker.send(PREFACE + frame(SETTINGS, 0, 0) + b"".join(chunks))
        assert attacker.wait(lambda: attacker.resets[REFUSED_STREAM] == 400), f"{attacker.resets} {attacker.goaway}"
        return attacker.goes_on()


family.streams("L streams without end", request(), lambda *_: b"", ENHANCE_YOUR_CALM, PROTOCOL_ERROR)


@family.entry("L even stream ids")
def even_ids(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        attacker.next_stream = 2
        attacker.send(attacker.headers(attacker.stream(), request()))
        return attacker.ends_with(PROTOCOL_ERROR)


@family.entry("L stream ids that go down")
def decreasing_ids(arena: Arena) -> int:
    """RFC 9113, 5.1.1: an unexpected id is a connection error; the engine drops the block, having decoded it."""
    with Attacker(arena.port) as attacker:
        for stream in range(2001, 1, -2):
            attacker.send(attacker.headers(stream, request(ANSWER), end=True))
        assert attacker.ended(0.5) or attacker.alive()
        return attacker.sent


@family.entry("L push promise")
def push_promise(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        attacker.send(frame(PUSH_PROMISE, END_HEADERS, 1, number(2)))
        return attacker.ends_with(PROTOCOL_ERROR)


@family.entry("L frame inside a header block")
def frame_in_block(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        attacker.send(frame(HEADERS, 0, 1, attacker.encoder.encode(request())) + frame(0x77, 0, 0))
        return attacker.ends_with(PROTOCOL_ERROR)


@family.entry("L unknown settings and a few unknown frames")
def unknown(arena: Arena) -> int:
    with Attacker(arena.port, settings=setting(0x77, 1) + setting(0xFFFF, 2**32 - 1)) as attacker:
        attacker.send(frame(0x77, 255, 0, b"x" * 1000) * 20)
        return attacker.goes_on()


@family.entry("L frame larger than allowed")
def large_frame(arena: Arena) -> int:
    with Attacker(arena.port) as attacker:
        attacker.send(attacker.headers(attacker.stream(), request()) + frame(DATA, 0, 1, bytes(16_385)))
        return attacker.ends_with(FRAME_SIZE_ERROR)


@family.entry("L connections without end")
def connections(arena: Arena) -> int:
    """More than one address may have: the last ones are turned away, and none of the good ones is lost."""
    attackers = [Attacker(arena.port, hello=False) for _ in range(400)]
    try:
        assert attackers[-1].wait(lambda: attackers[-1].goaway == ENHANCE_YOUR_CALM)
        return sum(each.sent for each in attackers)
    finally:
        for each in attackers:
            each.socket.close()
