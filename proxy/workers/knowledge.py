"""What all workers know, so that together they decide as a single process would: the parent's side of it.

The parent decides about ejections, from what the workers see; what speaks against a server, which chats are quarantined
and where displaced ones are is told to everybody. A worker hears all of it when it says hello, and every change from
then on, in order.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from proxy.cluster.endpoint import Cause
from proxy.forwarding.failback import DisplacedChats
from proxy.workers.messages import (
    LOCAL_CAUSES,
    Answers,
    Attentive,
    Configure,
    Elsewhere,
    Ended,
    ManyMoved,
    Message,
    Moved,
    Quarantined,
    Said,
)
from proxy.workers.process import IDLE, WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from proxy.cluster.cluster import Cluster
    from proxy.cluster.endpoint import Endpoint
    from proxy.cluster.outlier import OutlierDetector
    from proxy.settings import Settings
    from proxy.workers.messages import Blocks


log = logging.getLogger(__name__)

APPLY_TIMEOUT: Final = 30.0
"""Seconds that the workers have to apply a reload before it is given up waiting for them."""


class Knowledge:
    """All data planes, as the control plane speaks to them (see `DataPlanes`), and as it hears from them.

    `detector`: decides by what the workers report. `workers`: those that run at the time, by number; `count`: how many
    there shall be. `changed`: is set when anything about a worker is different.
    """

    def __init__(
        self,
        settings: Settings,
        cluster: Cluster,
        detector: OutlierDetector,
        workers: Mapping[int, WorkerProcess],
        count: int,
        changed: asyncio.Event,
    ) -> None:
        self.settings = settings
        self.cluster = cluster
        self.detector = detector
        self.displaced = DisplacedChats(settings.failback, cluster.snapshot)
        self.workers = workers
        self.generation = 1
        """Of the settings, counted from the start."""
        self._count = count
        self._changed = changed
        self._attentive = False
        detector.on_quarantine = self._quarantined
        self._set_limits()

    # To the workers.

    def tell_all(self, worker: WorkerProcess) -> None:
        """Tell it everything there is to know."""
        chats = self.displaced.chats.items()
        self._configure(worker, tuple(Moved(key, endpoint.id, at) for key, (endpoint, at) in chats))

    def apply(self, settings: Settings) -> None:
        """See `DataPlanes`."""
        self.settings = settings
        self.generation += 1
        now = asyncio.get_running_loop().time()
        self.displaced.configure(settings.failback, self.cluster.snapshot, now)
        self._set_limits()
        for worker in self.workers.values():
            if worker.informed:  # others are told when they say hello
                self._configure(worker, ())

    def prepare(self, settings: Settings, added: Iterable[Endpoint]) -> None:
        """See `DataPlanes`. The workers do that by themselves."""

    def said(self, endpoint: Endpoint, cause: Cause) -> None:
        """`cause` speaks against `endpoint` now, or no more."""
        if cause not in LOCAL_CAUSES and self.cluster.snapshot.by_id.get(endpoint.id) is endpoint:
            self._send(Said(endpoint.id, _blocks(endpoint)))

    def answers(self, endpoint: Endpoint) -> None:
        """See `DataPlanes`."""
        for worker in self.workers.values():
            if endpoint.id in worker.load.unreachable:
                worker.channel.send(Answers(endpoint.id))

    async def applied(self) -> None:
        """Returns when every worker carries calls by what was applied; those that do not within a time are logged."""
        try:
            async with asyncio.timeout(APPLY_TIMEOUT):
                while late := [each for each in self.workers.values() if each.generation < self.generation]:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            log.error("not applied within %g s by %s", APPLY_TIMEOUT, ", ".join(map(str, late)))  # noqa: TRY400

    def _configure(self, worker: WorkerProcess, moved: tuple[Moved, ...]) -> None:
        snapshot = self.cluster.snapshot
        configure = Configure(
            self.generation,
            self.settings,
            snapshot.version,
            self._count,
            {endpoint.id: blocks for endpoint in snapshot if (blocks := _blocks(endpoint))},
            dict(self.detector.quarantined),
            moved,
            self._attentive,
        )
        worker.elsewhere = None
        worker.informed = True
        worker.channel.send(configure, must=True)

    def _set_limits(self) -> None:
        for endpoint in self.cluster.snapshot:
            endpoint.max_calls = self.settings.limits.max_calls_per_endpoint

    def _send(self, message: Message) -> None:
        for worker in self.workers.values():
            if worker.informed:
                worker.channel.send(message)

    def _quarantined(self, key: bytes, until: float) -> None:
        self._send(Quarantined(key, until))

    # From the workers.

    def judge(self, message: Ended) -> None:
        """How calls ended."""
        detector = self.detector
        by_id = self.cluster.snapshot.by_id
        for what, name, key, at in message.calls:
            endpoint = by_id.get(name)
            if what == "began":
                detector.began(key)
            elif endpoint is None:
                continue  # removed meanwhile
            elif what == "succeeded":
                detector.succeeded(endpoint, key)
            elif what in ("failed", "failed_again"):
                detector.failed(endpoint, key, at, again=what == "failed_again")
            else:
                detector.lost(endpoint, key, at)
        self._attend()

    def move(self, message: ManyMoved) -> None:
        """Where chats went."""
        by_id = self.cluster.snapshot.by_id
        for moved in message.chats:
            endpoint = by_id.get(moved.endpoint) if moved.endpoint is not None else None
            if endpoint is not None:
                self.displaced.served(moved.key, endpoint, moved.at)
            else:
                self.displaced.came_home(moved.key)
        # Also to whom it comes from: two that say different things at the same time must end with the same.
        self._send(message)

    def _attend(self) -> None:
        if self._attentive != self.detector.troubled:
            self._attentive = self.detector.troubled
            self._send(Attentive(self._attentive))

    # Both ways.

    def exchange(self) -> None:
        """Add up what the workers have to do, and tell each what the others have."""
        self._attend()
        loads = [each.load for each in self.workers.values()]
        active = added_up([load.active for load in loads])
        for endpoint in self.cluster.snapshot:
            endpoint.active = active.get(endpoint.id, 0)
        self._find_unreachable()
        total = sum(load.total for load in loads)
        for worker in self.workers.values():
            own = worker.load.active
            others = {name: calls - own.get(name, 0) for name, calls in active.items() if calls != own.get(name, 0)}
            elsewhere = Elsewhere(others, total - worker.load.total)
            if worker.informed and elsewhere != worker.elsewhere:
                worker.elsewhere = elsewhere
                worker.channel.send(elsewhere)

    def _find_unreachable(self) -> None:
        """A server that no worker can connect to is unreachable."""
        told = [each.load for each in self.workers.values() if each.load is not IDLE]
        for endpoint in self.cluster.snapshot:
            whys = [load.unreachable.get(endpoint.id) for load in told]
            why = whys[0] if whys and all(whys) else None
            if why is None:
                endpoint.unblock(Cause.CONNECT)
            elif endpoint.blocks.get(Cause.CONNECT) != why:
                endpoint.block(Cause.CONNECT, why)


def added_up(figures: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sums, key by key."""
    sums: dict[str, int] = {}
    for each in figures:
        for key, value in each.items():
            sums[key] = sums.get(key, 0) + value
    return sums


def _blocks(endpoint: Endpoint) -> Blocks:
    """What the workers cannot know by themselves."""
    blocks = endpoint.blocks.items()
    return {cause.value: why for cause, why in blocks if cause not in LOCAL_CAUSES}
