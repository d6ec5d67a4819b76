"""The few things the data path needs from an event loop, so that tests can drive it with a clock of numbers."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from typing import Protocol

from proxy.cluster.address import Address


class Handle(Protocol):
    """Something under way that can be called off."""

    def cancel(self) -> object:
        """Call it off. Nothing happens if it is over."""


class Reactor(Protocol):
    """Time, callbacks, connections, chance."""

    def now(self) -> float:
        """Seconds on a clock that never goes back; it may stand still during one pass of the loop."""

    def call_soon(self, callback: Callable[[], None]) -> object:
        """Run `callback` in the next pass of the loop."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> Handle:
        """Run `callback` after `delay` seconds."""

    def connect(self, address: Address, protocol: asyncio.Protocol, on_failure: Callable[[str], None]) -> Handle:
        """Connect `protocol`; without success call `on_failure` with the reason, for people."""

    def random(self) -> float:
        """A number from 0 up to, not including, 1."""


class AsyncioReactor:
    """The real one."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.now = loop.time
        self.call_soon = loop.call_soon
        self.call_later = loop.call_later
        self.random = random.random

    def connect(
        self, address: Address, protocol: asyncio.Protocol, on_failure: Callable[[str], None]
    ) -> asyncio.Task[None]:
        """See `Reactor.connect`."""

        async def connect() -> None:
            try:
                await self._loop.create_connection(lambda: protocol, address.host, address.port)
            except OSError as error:
                on_failure(reason(error))

        return self._loop.create_task(connect(), name=f"connect {address}")


def reason(error: Exception | None) -> str:
    """What went wrong with a connection, in plain words."""
    if error is None:
        return "closed by the server"
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()  # asyncio's own text repeats the address
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()  # the resolver's, whose numbers are its own
    return str(error) or type(error).__name__
