"""What the families of attacks have in common: good headers to start from, and ways to say an attack in one line."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

from tests.attack.attacker import BATCH, SECONDS, Attacker
from tests.support.frames import DATA, END_STREAM, ENHANCE_YOUR_CALM, PROTOCOL_ERROR, frame
from tests.support.messages import framed, keyed

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.attack.arena import Arena
    from tests.attack.attacker import Fields

    Attack = Callable[[Arena], int]
    """Attacks, checks what it was told, and returns how many bytes it sent."""

OK, INVALID_ARGUMENT, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, INTERNAL = b"0", b"3", b"4", b"8", b"13"
"""Of `grpc-status`."""

HOLD, BIG, ANSWER = b"/attack.X/Hold", b"/attack.X/Big", b"/attack.X/Answer"
"""Paths: what the arena's servers do with a call."""


def request(path: bytes = HOLD, *extra: tuple[bytes, bytes], **replaced: bytes | None) -> Fields:
    """The headers of a call. `replaced`: pseudo-headers by name, None to leave one out."""
    pseudo = {"method": b"POST", "scheme": b"http", "path": path, "authority": b"t", **replaced}
    return [
        *((b":" + name.encode(), value) for name, value in pseudo.items() if value is not None),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        *extra,
    ]


def first_message(arena: Arena) -> bytes:
    """A good one, for a chat of the server under attack."""
    return framed(keyed(arena.key))


def nothing(_stream: int) -> bytes:
    """What follows the headers of a stream: nothing."""
    return b""


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
        return attacker.goes_on()


class Family:
    """Attacks of one kind, by name."""

    def __init__(self) -> None:
        self.attacks: dict[str, Attack] = {}

    def entry(self, name: str) -> Callable[[Attack], Attack]:
        """An attack that is written out."""

        def put(attack: Attack) -> Attack:
            assert name not in self.attacks, name
            self.attacks[name] = attack
            return attack

        return put

    def streams(
        self, name: str, fields: Fields, after: Callable[[Arena, int], bytes], *codes: int, end: bool = False
    ) -> None:
        """Stream after stream, each with these headers and what `after` says, until one of these codes ends it."""

        @self.entry(name)
        def attack(arena: Arena) -> int:
            with Attacker(arena.port) as attacker:
                attacker.flood(attacker.streams(fields, lambda stream: after(arena, stream), end=end))
                return attacker.ends_with(*codes)

    def frames(self, name: str, one: bytes, *codes: int, stream: bool = False) -> None:
        """The same frame again and again, until one of these codes ends it; without any, it is borne."""

        @self.entry(name)
        def attack(arena: Arena) -> int:
            with Attacker(arena.port) as attacker:
                if stream:
                    attacker.send(attacker.headers(attacker.stream(), request()))
                attacker.flood(itertools.repeat(one * BATCH))
                return attacker.ends_with(*codes) if codes else attacker.goes_on()

    def malformed(self, name: str, *variants: Fields) -> None:
        """What the protocol itself forbids (RFC 9113, 8.2 and 8.3): each variant, over and over, until it is ended."""

        @self.entry(name)
        def attack(arena: Arena) -> int:
            sent = 0
            for fields in variants:
                with Attacker(arena.port) as attacker:
                    attacker.flood(attacker.streams(fields, nothing, end=True))
                    # PROTOCOL_ERROR: as many in one read are more streams than allowed, before the first is reset.
                    sent += attacker.ends_with(ENHANCE_YOUR_CALM, PROTOCOL_ERROR)
            return sent

    def calls(
        self, name: str, fields: Fields, body: Callable[[Arena], bytes], status: bytes, *, end: bool = True
    ) -> None:
        """Calls that are answered with `status`, over and over."""

        @self.entry(name)
        def attack(arena: Arena) -> int:
            return answered(arena, fields, body(arena), end=end, status=status)
