"""Asks reference servers how their session cache does (`chat.ChatService/GetCacheStats`), for whoever looks at them.

Nothing is asked while nobody looks: `want` starts it, and it ends by itself. A server that does not know the method is
left alone for a while, as it will hardly learn it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final, NamedTuple

import grpc
import grpc.aio
from districhat import chat_pb2
from google.protobuf.message import DecodeError

from proxy.cluster.endpoint import Endpoint
from proxy.control.channel import EndpointChannel
from proxy.control.probe import NOT_THERE
from proxy.transport.tls import EndpointTls

log = logging.getLogger(__name__)

EVERY: Final = 2.0
"""Seconds between two rounds."""
IDLE: Final = 15.0
"""Seconds after the last `want` at which it ends."""
TIMEOUT: Final = 1.0
"""Seconds that a server has to answer."""
NOT_BEFORE: Final = 60.0
"""Seconds for which a server that does not know the method is not asked."""
AT_ONCE: Final = 16
"""Servers that are asked at the same time."""

_METHOD: Final = "/chat.ChatService/GetCacheStats"


class CacheStats(NamedTuple):
    """What a server said of its cache: sessions and their limit in each level, and counts since its start."""

    l1_size: int
    l1_capacity: int
    l2_size: int
    l2_capacity: int
    requests: int
    hits: int
    misses: int


class CacheStatsPoller:
    """What the servers said last. Needs an event loop from the first `want` until `stop`."""

    def __init__(self, targets: Mapping[Endpoint, EndpointTls | None]) -> None:
        """`targets`: the servers, with None for those that are spoken to in cleartext."""
        self._targets = targets
        self._channels: dict[Endpoint, EndpointChannel] = {}
        self._latest: dict[Endpoint, CacheStats] = {}
        self._not_before: dict[Endpoint, float] = {}
        self._wanted = 0.0
        self._task: asyncio.Task[None] | None = None

    def configure(self, targets: Mapping[Endpoint, EndpointTls | None]) -> None:
        """These are the servers from now on."""
        self._targets = targets
        for known in (self._latest, self._not_before):
            for gone in known.keys() - targets.keys():
                del known[gone]

    def want(self) -> None:
        """Somebody looks: ask all servers every `EVERY` seconds for a while."""
        loop = asyncio.get_running_loop()
        self._wanted = loop.time()
        if self._task is None and self._targets:
            self._task = loop.create_task(self._run(), name="cache statistics")

    def latest(self, endpoint: Endpoint) -> CacheStats | None:
        """What it said last; None: nothing is known, or it did not answer."""
        return self._latest.get(endpoint)

    async def stop(self) -> None:
        """Ask no more. May be called twice or without `want`."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while loop.time() - self._wanted < IDLE:
                await self._round(loop.time())
                await asyncio.sleep(EVERY)
        finally:
            self._task = None
            self._latest.clear()
            channels, self._channels = self._channels, {}
            for channel in channels.values():
                await channel.close()

    async def _round(self, now: float) -> None:
        slots = asyncio.Semaphore(AT_ONCE)
        targets = self._targets
        for gone in self._channels.keys() - targets.keys():
            await self._channels.pop(gone).close()
        due = [each for each in targets if each.available and self._not_before.get(each, 0.0) <= now]
        for endpoint in self._latest.keys() - set(due):
            del self._latest[endpoint]
        async with asyncio.TaskGroup() as asking:
            for endpoint in due:
                asking.create_task(
                    self._ask(endpoint, targets[endpoint], slots, now), name=f"cache statistics of {endpoint.id}"
                )

    async def _ask(self, endpoint: Endpoint, tls: EndpointTls | None, slots: asyncio.Semaphore, now: float) -> None:
        channel = self._channels.get(endpoint)
        if channel is None:
            channel = self._channels[endpoint] = EndpointChannel(endpoint.address, tls, TIMEOUT, "districhat-admin")
        async with slots:
            try:
                connected = await channel.connected()
                call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = connected.unary_unary(_METHOD)
                said = chat_pb2.StatsResponse.FromString(await call(b"", timeout=TIMEOUT))
            except (grpc.aio.AioRpcError, OSError, ValueError, DecodeError) as error:
                self._latest.pop(endpoint, None)
                if isinstance(error, grpc.aio.AioRpcError) and error.code() in NOT_THERE:
                    self._not_before[endpoint] = now + NOT_BEFORE
                    log.debug("%s has no cache statistics: %s", endpoint.id, error.code().name)
                self._channels.pop(endpoint, None)
                await channel.close()
                return
        if endpoint in self._targets:
            self._latest[endpoint] = CacheStats(
                said.l1_size,
                said.l1_capacity,
                said.l2_size,
                said.l2_capacity,
                said.total_requests,
                said.cache_hits,
                said.cache_misses,
            )
