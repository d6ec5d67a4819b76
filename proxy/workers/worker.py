"""One worker: a data plane that does as the parent says, and tells it what it sees.

It lives no longer than its parent: when the parent is gone it drains, and ends at once if the parent had told it to
already, or if it is told to by a signal. If it is stopped (SIGSTOP) when the parent ends, it goes on.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib.metadata
import logging
import signal
import socket
import sys
from typing import TYPE_CHECKING, Final

import uvloop

from proxy import memory
from proxy.admin.logs import logging_as
from proxy.allocator import keep_freed_memory
from proxy.cluster.address import Address
from proxy.cluster.cluster import Cluster
from proxy.cluster.endpoint import Cause
from proxy.data_plane import DataPlane
from proxy.errors import ConfigError
from proxy.transport.reactor import AsyncioReactor, reason
from proxy.transport.slices import in_passes
from proxy.workers.channel import Channel
from proxy.workers.memories import ReportingDetector, SharedDisplacedChats
from proxy.workers.messages import (
    EXCHANGE,
    LOCAL_CAUSES,
    VERSION,
    Answer,
    Answers,
    Applied,
    Ask,
    Attentive,
    Blocks,
    Configure,
    Drain,
    Drained,
    Elsewhere,
    Hello,
    Load,
    ManyMoved,
    Message,
    Moved,
    Numbers,
    Quarantined,
    Said,
    Serve,
    Serving,
    StopAccepting,
    Stopped,
)
from proxy.workers.reports import Reports
from proxy.workers.shares import share

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.admin.call_records import Kept
    from proxy.cluster.endpoint import Endpoint

log = logging.getLogger(__name__)

SIGN_OF_LIFE: Final = 1.0
"""Seconds after which the load is told in any case, changed or not."""
_PR_SET_PDEATHSIG: Final = 1
"""Of prctl(2), as in Linux's prctl.h."""


class Worker:
    """Made with its first message; `run` until the parent says that it shall end, or is gone."""

    def __init__(self, channel: Channel, first: Configure, sockets: Sequence[socket.socket]) -> None:
        """`sockets`: what to listen on."""
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._settings = first.settings
        self._workers = first.workers
        self._sockets = sockets
        self._reports = Reports(channel, self._loop.call_later)
        self._cluster = Cluster(first.settings.endpoints, first.settings.ring, first.snapshot)
        self._detector = ReportingDetector(first.settings.outlier, self._cluster, self._reports.ended)
        self._displaced = SharedDisplacedChats(first.settings.failback, self._cluster.snapshot, self._reports.moved)
        reactor = AsyncioReactor(self._loop)
        self._data = DataPlane(first.settings, self._cluster, self._detector, reactor, self._displaced)
        self._elsewhere = Elsewhere({}, 0)
        self._looking: asyncio.TimerHandle | None = None
        self._told = Load({}, 0, {}, {}, {})
        self._told_at = 0.0
        self._stopping = False
        """The parent has begun to end all of us."""
        self._drain: asyncio.Task[None] | None = None
        self._first = first

    async def run(self) -> None:
        """Carry calls until the end."""
        await self._data.open(Address.parse(self._settings.listener.address), self._sockets)
        self._take(self._first)
        self._data.start()
        self._channel.send(Applied(self._first.generation), must=True)
        self._look()
        while (message := await self._channel.receive()) is not None:
            await self._do(message)
        _listen_to_signals()
        if not self._stopping:
            log.warning("the parent is gone: draining")
            await self._begin_to_drain()
        self._reports.stop()
        if self._looking is not None:
            self._looking.cancel()
        drain = self._begin_to_drain()
        if not drain.done():
            log.warning("the parent is gone: running calls are cut off")
            drain.cancel()
        self._data.close()
        await self._data.closed()
        self._channel.close()
        await self._channel.closed()

    # What the parent says.

    async def _do(self, message: Message) -> None:  # noqa: C901 - a branch a message
        match message:
            case Elsewhere():
                self._elsewhere = message
                self._share()
            case Said():
                endpoint = self._cluster.snapshot.by_id.get(message.endpoint)
                if endpoint is not None:
                    self._hear(endpoint, message.blocks)
            case Answers():
                endpoint = self._cluster.snapshot.by_id.get(message.endpoint)
                if endpoint is not None:
                    self._data.answers(endpoint)
            case ManyMoved():
                self._learn(message.chats)
            case Quarantined():
                self._detector.quarantine(message.key, message.until)
            case Attentive():
                self._detector.attend(on=message.on)
            case Ask():
                await self._answer(message)
            case Configure():
                await self._configure(message)
            case Serve():
                await self._serve()
            case StopAccepting():
                self._stopping = True
                self._data.listener.stop_accepting()
                self._channel.send(Stopped(), must=True)
            case Drain():
                self._stopping = True
                self._begin_to_drain()
            case _:
                log.error("the parent said something that is not for us: %s", type(message).__name__)

    async def _configure(self, message: Configure) -> None:
        settings = message.settings
        succession = await in_passes(self._cluster.succession(settings.endpoints, settings.ring, message.snapshot))
        self._data.prepare(settings, succession.added)
        self._cluster.publish(succession)
        self._settings = settings
        self._detector.reconfigure(settings.outlier)
        self._data.apply(settings)
        self._take(message)
        self._channel.send(Applied(message.generation), must=True)

    def _take(self, message: Configure) -> None:
        self._workers = message.workers
        for endpoint in self._cluster.snapshot:
            self._hear(endpoint, message.said.get(endpoint.id, {}))
        for key, until in message.quarantined.items():
            self._detector.quarantine(key, until)
        self._learn(message.moved)
        self._detector.attend(on=message.attentive)
        self._share()

    def _hear(self, endpoint: Endpoint, blocks: Blocks) -> None:
        for name, why in blocks.items():
            endpoint.block(Cause(name), why)
        for cause in tuple(endpoint.blocks):  # only then, so that it does not seem available between the two
            if cause.value not in blocks and cause not in LOCAL_CAUSES:
                endpoint.unblock(cause)

    def _learn(self, chats: Sequence[Moved]) -> None:
        by_id = self._cluster.snapshot.by_id
        for each in chats:
            self._displaced.learn(each, by_id.get(each.endpoint) if each.endpoint is not None else None)

    def _share(self) -> None:
        limits = self._settings.limits
        elsewhere = self._elsewhere.calls
        workers = self._workers
        for endpoint in self._cluster.snapshot:
            endpoint.elsewhere = others = elsewhere.get(endpoint.id, 0)
            endpoint.max_calls = share(limits.max_calls_per_endpoint, endpoint.active, others, workers)
        forwarder = self._data.forwarder
        forwarder.max_calls = share(limits.max_calls, forwarder.active, self._elsewhere.total, workers)

    async def _serve(self) -> None:
        try:
            await self._data.serve()
        except OSError as error:
            self._channel.send(Serving(reason(error)), must=True)
            return
        memory.settle()
        self._channel.send(Serving(), must=True)

    async def _answer(self, ask: Ask) -> None:
        value: Numbers | tuple[bytes, ...] | tuple[Kept, ...]
        if ask.what == "numbers":
            told = await self._data.numbers()
            told.add("districhat_worker_reports_lost_total", self._reports.lost)
            value = Numbers(told.values, told.histograms)
        elif ask.what == "decisions":
            value = tuple(await self._data.decisions(ask.limit, ask.key))
        else:
            value = tuple(await self._data.recent_keys())
        # Dropped if the parent is behind: it has given up waiting by then, and goes by the totals that it heard last.
        self._channel.send(Answer(ask.number, value))

    def _begin_to_drain(self) -> asyncio.Task[None]:
        if self._drain is None:
            self._drain = self._loop.create_task(self._finish(), name="drain")
        return self._drain

    async def _finish(self) -> None:
        cut_off = await self._data.drain()
        self._channel.send(Drained(cut_off), must=True)
        self._channel.close()

    # What the parent is told.

    def _look(self) -> None:
        self._looking = self._loop.call_later(EXCHANGE, self._look)
        load = self._load()
        now = self._loop.time()
        if load != self._told or now - self._told_at >= SIGN_OF_LIFE:
            self._told, self._told_at = load, now
            self._channel.send(load)  # if the parent is behind, it is dropped, and told again in a second

    def _load(self) -> Load:
        members = tuple(self._cluster.snapshot)
        pools = {endpoint.id: self._data.pools[endpoint] for endpoint in members}
        return Load(
            {endpoint.id: endpoint.active for endpoint in members if endpoint.active},
            self._data.forwarder.active,
            {name: len(pool.connections) for name, pool in pools.items() if pool.connections},
            {name: len(pool.waiting) for name, pool in pools.items() if pool.waiting},
            {each.id: each.blocks[Cause.CONNECT] for each in members if each.blocked_by(Cause.CONNECT)},
        )


async def _run(name: str, control: int, listening: Sequence[int]) -> int:
    channel = await Channel.open(socket.socket(fileno=control))
    channel.send(Hello(VERSION, importlib.metadata.version("districhat")), must=True)
    first = await channel.receive()
    if not isinstance(first, Configure):  # the end already
        channel.close()
        await channel.closed()
        return 0
    with logging_as(first.settings.log, name):
        await Worker(channel, first, [socket.socket(fileno=each) for each in listening]).run()
    return 0


def _listen_to_signals() -> None:
    """Without a parent, who else should end us before the grace is over."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def _wake_when_the_parent_ends() -> None:
    """Stopped, we would not see that the parent is gone, and keep our clients, and those that the kernel gives to our
    socket on a port that a new parent has. SIGCONT means nothing to who is not stopped.

    It is the end of the thread that started us which counts, the parent's main one. Has that ended before, we see it as
    ever; nor does it matter if it is forbidden here (seccomp), or not there at all.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGCONT))


def main(arguments: Sequence[str]) -> int:
    """`NAME CONTROL_FD LISTENING_FD...`, with the signals ignored that are the parent's (see `__main__`)."""
    _wake_when_the_parent_ends()
    keep_freed_memory()
    name, control, *listening = arguments
    # Until the settings are here.
    logging.basicConfig(format=f"%(asctime)s %(levelname)s {name}: %(name)s: %(message)s", level=logging.INFO)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_run(name, int(control), list(map(int, listening))))
    except ConfigError as error:  # a file that was good when the parent looked
        for problem in error.problems:
            log.error("%s", problem)  # noqa: TRY400 - the operator's, not ours: no traceback
        return 2
