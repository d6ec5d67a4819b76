"""Messages over a socket pair: four bytes of length, then the pickled message.

Bounded at the sender: above `MAX_BACKLOG` unsent bytes the other side counts as slow and `send` drops the message,
except those that must not be lost; when it has caught up, `on_caught_up` may make good for what was dropped.
"""

from __future__ import annotations

import asyncio
import pickle  # of our own child's, or our parent's, over a socket pair that nobody else has
from collections import deque
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from proxy.workers.messages import Message

MAX_BACKLOG: Final = 4_194_304
"""Unsent bytes above which messages are dropped."""
_LENGTH: Final = 4


class Channel(asyncio.Protocol):
    """One end. Made by `open`; messages are taken with `receive`."""

    def __init__(self, on_caught_up: Callable[[], None] | None = None) -> None:
        """`on_caught_up`: called when messages were dropped and can be sent again."""
        self._on_caught_up = on_caught_up
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._messages: deque[Message] = deque()
        self._something = asyncio.Event()
        self._lost = False
        self.slow = False
        """The other side is behind: what is sent now is dropped."""
        self.dropped = 0
        """Messages that were dropped since it last caught up."""

    @classmethod
    async def open(cls, end: socket.socket, on_caught_up: Callable[[], None] | None = None) -> Channel:
        """The channel over this end of a socket pair, which it owns from now on."""
        loop = asyncio.get_running_loop()
        _, channel = await loop.create_connection(lambda: cls(on_caught_up), sock=end)
        return channel

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The channel is open."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are not of the base class
        self._transport.set_write_buffer_limits(high=MAX_BACKLOG, low=0)

    def data_received(self, data: bytes) -> None:
        """Some bytes of messages."""
        received = self._received
        received += data
        while len(received) >= _LENGTH:
            end = _LENGTH + int.from_bytes(received[:_LENGTH], "big")
            if len(received) < end:
                return
            self._messages.append(pickle.loads(received[_LENGTH:end]))  # noqa: S301 - see the import
            del received[:end]
            self._something.set()

    def pause_writing(self) -> None:
        """The other side is slow."""
        self.slow = True

    def resume_writing(self) -> None:
        """It has caught up."""
        self.slow = False
        if self.dropped:
            self.dropped = 0
            if self._on_caught_up is not None:
                self._on_caught_up()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - gone is gone
        """The other side has ended."""
        self._lost = True
        self._something.set()

    # For its owner.

    def send(self, message: Message, *, must: bool = False) -> None:
        """Send, or drop if the other side is slow; not if it `must` arrive. To nobody if the other side has ended."""
        if self._transport is None or self._lost:
            return
        if self.slow and not must:
            self.dropped += 1
            return
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        self._transport.write(len(data).to_bytes(_LENGTH, "big") + data)

    async def receive(self) -> Message | None:
        """The next message; None: there will be none, the other side has ended."""
        while not self._messages:
            if self._lost:
                return None
            self._something.clear()
            await self._something.wait()
        return self._messages.popleft()

    async def closed(self) -> None:
        """Returns after `close`, or the other side's end, when nothing is left of it."""
        while await self.receive() is not None:
            pass

    def close(self) -> None:
        """What was sent still arrives. May be called twice."""
        if self._transport is not None:
            self._transport.close()
