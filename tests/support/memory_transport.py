"""The two ends of a connection in memory, which can cut what is written anywhere, and can stall."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio

    from tests.support.world import World


class Reading(Protocol):
    """An end of a connection, as far as it is needed for handing bytes to it."""

    protocol: asyncio.BaseProtocol
    reading: bool


class MemoryTransport:
    """One end of a connection. What is written arrives at `peer` when the world runs."""

    def __init__(self, world: World, protocol: asyncio.BaseProtocol) -> None:
        self.world = world
        self.protocol = protocol
        self.peer: MemoryTransport
        self.outgoing: deque[bytes] = deque()
        self.closing = False
        self.lost = False
        self.told = False
        """The protocol knows that it is lost."""
        self.stalled = False
        """The peer does not read: bytes stay in `outgoing`, and the protocol is told to pause."""
        self.reading = True
        self.high_water = 65_536
        self.address = ""
        """Of the peer, if it has one."""

    def get_extra_info(self, name: str) -> tuple[str, int] | None:
        return (self.address, 40000) if name == "peername" and self.address else None

    def get_write_buffer_size(self) -> int:
        return self.buffered()

    def set_write_buffer_limits(self, high: int) -> None:
        self.high_water = high

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def write(self, data: bytes) -> None:
        assert not self.told, "written to a lost connection"
        if self.lost:
            return  # as event loops do until they tell of it
        self.outgoing.append(bytes(data))
        if self.stalled and self.buffered() > self.high_water:
            self.protocol.pause_writing()

    def buffered(self) -> int:
        return sum(map(len, self.outgoing))

    def stall(self) -> None:
        self.stalled = True

    def resume(self) -> None:
        self.stalled = False
        self.protocol.resume_writing()

    def drain(self, amount: int) -> None:
        """A line that stalls lets so many bytes through; with room in the buffer the protocol goes on."""
        before = self.buffered()
        data = b"".join(self.outgoing)
        self.outgoing = deque([data[amount:]] if amount < before else [])
        feed(self.peer, data[:amount])
        if before > self.high_water // 4 >= self.buffered():
            self.protocol.resume_writing()

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self.world.call_soon(self._finish)

    def _finish(self) -> None:
        if self.outgoing and not self.stalled and not self.peer.lost:
            self.world.call_soon(self._finish)
        else:
            self.abort()

    def abort(self) -> None:
        self.closing = True
        self.outgoing.clear()
        for end in (self, self.peer):
            if not end.lost:
                end.lost = True
                self.world.call_soon(end._tell)

    def _tell(self) -> None:
        self.told = True
        self.protocol.connection_lost(None)

    def deliver(self) -> bool:
        """Hand what was written to the peer, cut as the world says. Returns whether there was anything."""
        if self.stalled or not self.outgoing or not self.peer.reading:
            return False
        pieces = deque(self.world.cut(b"".join(self.outgoing)))
        self.outgoing.clear()
        while pieces and not self.peer.lost and not self.peer.closing:
            if not self.peer.reading:
                self.outgoing.extend(pieces)
                break
            if rest := feed(self.peer, pieces.popleft()):
                pieces.appendleft(rest)
        return True


def feed(end: Reading, data: bytes) -> bytes:
    """Hand bytes to a protocol as an event loop does it, for as long as it reads. Returns the rest."""
    protocol = end.protocol
    if not hasattr(protocol, "get_buffer"):
        protocol.data_received(data)  # type: ignore[attr-defined]  # the other kind
        return b""
    while data and end.reading:
        room = protocol.get_buffer(-1)
        assert isinstance(room, memoryview)
        size = min(len(room), len(data))
        room[:size] = data[:size]
        protocol.buffer_updated(size)
        room[:size] = bytes(size)  # whoever kept a view of it will notice
        data = data[size:]
    return data
