"""What a server does beside its calls: writes out what write-back holds, and frees sessions whose time is over."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from backend.errors import StoreError

if TYPE_CHECKING:
    from backend.cache.hierarchical import HierarchicalCache
    from backend.store.base import SessionStore

_log = logging.getLogger(__name__)

_RETRY: Final = 0.5
"""Seconds before messages are written again that could not be, so that a store that is away is not hammered."""
_SWEEPS: Final = 10
"""Sweeps in a session's time to live: one is freed at most a tenth of it late."""


class Maintenance:
    """Two loops, each while it has something to do. `write_interval`: seconds that a message may wait to be written;
    `session_ttl`: as in the cache, None for none.
    """

    def __init__(
        self, cache: HierarchicalCache, store: SessionStore, *, write_interval: float | None, session_ttl: float | None
    ) -> None:
        loop = asyncio.get_running_loop()
        self._cache = cache
        self._store = store
        self._tasks = []
        if write_interval is not None:
            self._tasks.append(loop.create_task(self._write(write_interval), name="write-back"))
        if session_ttl is not None:
            self._tasks.append(loop.create_task(self._sweep(max(0.05, session_ttl / _SWEEPS)), name="session sweep"))

    async def stop(self) -> None:
        """Ends both. A second call does nothing."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _write(self, interval: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + interval
        while True:
            try:
                async with asyncio.timeout_at(due):
                    await self._cache.eviction.wait()
            except TimeoutError:
                due = loop.time() + interval
                everything = True
            else:
                everything = False
            try:
                await self._cache.write_out(evicted_only=not everything)
            except StoreError as error:
                _log.warning("messages cannot be written yet: %s", error)
                await asyncio.sleep(_RETRY)

    async def _sweep(self, interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            self._cache.forget_idle()
            try:
                await self._store.sweep()
            except StoreError as error:
                _log.warning("sessions whose time is over cannot be freed yet: %s", error)
