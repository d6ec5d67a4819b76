"""Whose turn it is to be read from, among those who have much to say.

An event loop reads from a connection for as long as that fills the room it is given; libuv does so 32 times in a row.
As DATA, 256 KB are a few events and a fifth of a millisecond; as the smallest frames they are thirty thousand, as a
message that hides its key two hundred thousand steps: all others would wait for 30 ms and more. So a connection's room
is what takes a fair time to parse, and who fills it waits until the others have been heard. Servers are no exception:
what they answer is as much as somebody has asked for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

MIN_ROOM: Final = 4096
FIRST_ROOM: Final = 8192
MAX_ROOM: Final = 262_144
"""Bytes of a connection that are read at once: at least, at first, at most. Less than the least is not even timed."""
FAIR: Final = 0.0005
"""Seconds that such a read may take."""
AT_ONCE: Final = 4
"""Connections that may read on in one pass of the event loop."""


class Reader(Protocol):
    """A connection that waits for its turn."""

    def read_on(self) -> None:
        """It has come. May be called after the connection was closed."""


class Turns:
    """Those who wait. `call_soon(callback)` runs a callback in the next pass of the event loop; `now` gives seconds on
    a clock that never stands still.
    """

    def __init__(self, call_soon: Callable[[Callable[[], None]], object], now: Callable[[], float]) -> None:
        self._call_soon = call_soon
        self.now = now
        self._waiting: deque[Reader] = deque()

    def wait(self, reader: Reader) -> None:
        """Let it read on when it is its turn. The caller sees to it that it does not wait already."""
        if not self._waiting:
            self._call_soon(self._next)
        self._waiting.append(reader)

    def _next(self) -> None:
        waiting = self._waiting
        try:
            for _ in range(min(AT_ONCE, len(waiting))):
                waiting.popleft().read_on()
        finally:
            # Whatever happened: with anybody left in it, no pass would ever be asked for again.
            if waiting:
                self._call_soon(self._next)


def fair_room(room: int, taken: int, seconds: float) -> int:
    """How many bytes to read at once from a connection of which `taken` bytes, out of a room of so many, took so long.

    It grows only for those who fill it, to the double at most: what came before says little about what comes.
    """
    fair = MAX_ROOM if seconds * MAX_ROOM <= taken * FAIR else int(taken * FAIR / seconds)
    return max(MIN_ROOM, min(fair, 2 * room if taken == room else room, MAX_ROOM))
