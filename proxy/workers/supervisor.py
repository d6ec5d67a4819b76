"""The parent: starts the workers, and replaces those that crash.

A worker that crashes costs the calls that it had. It is replaced at once, and the clients that were about to connect to
it wait in its socket's queue meanwhile; one that crashes young is replaced after a pause that doubles each time. A
worker that is not heard of for long is killed: a worker that hangs holds its clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from typing import TYPE_CHECKING, Final

from proxy.backoff import doubled
from proxy.cluster.address import Address
from proxy.errors import ConfigError
from proxy.transport.tls import Tls
from proxy.workers import sockets as ports
from proxy.workers.knowledge import Knowledge
from proxy.workers.messages import (
    EXCHANGE,
    VERSION,
    Answer,
    Applied,
    Drain,
    Drained,
    Ended,
    Hello,
    Load,
    ManyMoved,
    Message,
    Serve,
    Serving,
    StopAccepting,
    Stopped,
)
from proxy.workers.process import WorkerProcess, why_ended
from proxy.workers.questions import Questions

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection, Sequence

    from proxy.admin.call_records import Kept
    from proxy.cluster.cluster import Cluster
    from proxy.cluster.outlier import OutlierDetector
    from proxy.forwarding.stats import StatsSnapshot
    from proxy.settings import Settings

log = logging.getLogger(__name__)

SUPPORTED: Final = sys.platform == "linux" and hasattr(os, "pidfd_open")
START_TIMEOUT: Final = 60.0
"""Seconds that a worker has to start, and may be silent meanwhile; a new interpreter takes half a second on an idle
machine."""
SILENCE: Final = 30.0
"""Seconds without a word after which a worker is taken for hung, and killed."""
OLD_AGE: Final = 10.0
"""Seconds after which a crash does not count as one of a series."""
BACKOFF: Final = 0.5
MAX_BACKOFF: Final = 10.0
"""Seconds before a worker is started again that crashed young: first this, doubled up to that."""
STOP_TIMEOUT: Final = 1.0
"""Seconds that the workers have to stop accepting, before they drain."""
KILL_TIMEOUT: Final = 5.0
"""Seconds that killed workers have to be gone. Nobody can refuse SIGKILL, but a disk or a driver may hold a process."""
LAST_GRACE: Final = 5.0
"""Seconds beyond the grace of a drain after which workers are killed."""


def core_count() -> int:
    """The cores that this process may use: what `workers = "auto"` stands for."""
    return len(os.sched_getaffinity(0)) if SUPPORTED else os.cpu_count() or 1


class Supervisor:
    """`open`, `start`, `serve`; then `drain` and `close`, as of a data plane."""

    def __init__(
        self,
        settings: Settings,
        cluster: Cluster,
        detector: OutlierDetector,
        workers: int,
        tell: Callable[[str, str], object] = lambda _kind, _detail: None,
    ) -> None:
        """`detector`: decides by what the workers report. `workers`: at least 1. `tell`: of what happens to them, a
        word and the details for people. Raises ConfigError for certificates and keys that are no good.
        """
        self.workers: dict[int, WorkerProcess] = {}
        """Those that run now, by number."""
        self.replaced = 0
        """Workers that had to be replaced since the start."""
        self._changed = asyncio.Event()
        """Something about a worker is different."""
        self.knowledge = Knowledge(settings, cluster, detector, self.workers, workers, self._changed)
        """What the workers know in common: all of them, to the control plane."""
        self._questions = Questions(self.workers)
        self._count = workers
        self._tell = tell
        self._sockets: list[list[socket.socket]] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._problem: Exception | None = None
        """Why the start has failed."""
        self._serving = False
        self._draining = asyncio.Event()
        self._exchanging: asyncio.TimerHandle | None = None
        self._exchanged_at = 0.0
        self._cut_off = 0
        Tls(settings.listener.tls, settings.upstream.tls)  # bad files are told once, and not by each worker

    # Life.

    async def open(self, address: Address, inherited: Sequence[socket.socket] = ()) -> Address:
        """Take the port. See `Listener.open`."""
        if not SUPPORTED:
            raise ConfigError(["listener.workers: more than one needs Linux, 5.3 or newer"])
        self._sockets = ports.deal(inherited, self._count) if inherited else ports.bind(address, self._count)
        if address.path:
            return address
        host, port = self._sockets[0][0].getsockname()[:2]
        return Address(host, port)

    @property
    def sockets(self) -> list[int]:
        """The file descriptors that listen."""
        return [each.fileno() for some in self._sockets for each in some]

    @property
    def not_ready(self) -> str:
        """Why no client should be sent here now; empty: all is well."""
        if self._draining.is_set():
            return "the proxy is draining"
        if not any(worker.serving for worker in self.workers.values()):
            return "no worker is ready"
        return "" if any(each.available for each in self.knowledge.cluster.snapshot) else "no server is available"

    def start(self) -> None:
        """Begin to start the workers."""
        loop = asyncio.get_running_loop()
        for number in range(self._count):
            self._keepers.append(loop.create_task(self._keep(number), name=f"worker {number}"))
        self._exchange()

    async def serve(self) -> None:
        """Accept clients, as soon as every worker is ready. Raises OSError if somebody else took the port meanwhile,
        ConfigError if the workers do not start.
        """
        await self._until(lambda worker: bool(worker.generation))
        self._serving = True
        for worker in self.workers.values():
            self._admit(worker)
        await self._until(lambda worker: worker.serving)

    async def _until(self, ready: Callable[[WorkerProcess], bool]) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT):
                while len(self.workers) < self._count or not all(map(ready, self.workers.values())):
                    if self._problem is not None:
                        raise self._problem
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            why = f"{self._count} workers did not start within {START_TIMEOUT:g} s"
            raise ConfigError([f"listener.workers: {why}"]) from None

    async def drain(self) -> int:
        """Have every worker finish its calls, and end. Returns how many calls were cut off; those of a worker that had
        to be killed are not counted.
        """
        self._draining.set()
        for worker in self.workers.values():
            if worker.admitted:
                worker.channel.send(StopAccepting(), must=True)
            else:
                worker.kill()  # it has no clients, and would look up only when it has started
        ports.close(self._sockets)
        with contextlib.suppress(TimeoutError):  # one that hangs accepts nobody
            async with asyncio.timeout(STOP_TIMEOUT):
                while not all(worker.stopped for worker in self.workers.values() if worker.admitted):
                    self._changed.clear()
                    await self._changed.wait()
        for worker in self.workers.values():
            worker.channel.send(Drain(), must=True)
        if self._keepers:
            patience = self.knowledge.settings.listener.drain_grace + LAST_GRACE
            await asyncio.wait(self._keepers, timeout=patience)
        return self._cut_off

    def close(self) -> None:
        """End whatever still runs, at once."""
        self._draining.set()
        if self._exchanging is not None:
            self._exchanging.cancel()
        ports.close(self._sockets)
        for worker in self.workers.values():
            if worker.admitted:
                log.warning("%s did not end in time and is killed", worker)
        self.kill()

    def kill(self) -> None:
        """End every worker at once. May be called by a signal handler."""
        for worker in tuple(self.workers.values()):
            worker.kill()

    async def closed(self) -> None:
        """Returns after `close` when nothing of it is left, or should be."""
        if self._keepers:
            _, late = await asyncio.wait(self._keepers, timeout=KILL_TIMEOUT)
            for keeper in late:
                keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    # What the operator asks.

    async def numbers(self) -> StatsSnapshot:
        """See `Questions`; and what is known here."""
        told = await self._questions.numbers()
        # Each worker knows of all of these, so that their sum would be too many.
        told.values["districhat_displaced_chats"] = {(): len(self.knowledge.displaced.chats)}
        told.values["districhat_quarantined_chats"] = {(): len(self.knowledge.detector.quarantined)}
        told.values["districhat_quarantines_total"] = {(): self.knowledge.detector.quarantines}
        told.values["districhat_workers_replaced_total"] = {(): self.replaced}
        return told

    async def recent_keys(self) -> Collection[bytes]:
        """See `Questions`."""
        return await self._questions.recent_keys()

    async def decisions(self, limit: int, key: bytes | None) -> Sequence[Kept]:
        """See `Questions`."""
        return await self._questions.decisions(limit, key)

    # Each worker.

    async def _keep(self, number: int) -> None:
        """Have a worker with this number, again and again, until the drain."""
        crashes = 0
        loop = asyncio.get_running_loop()
        while not self._draining.is_set():
            born_at = loop.time()
            why = await self._have(number)
            if self._draining.is_set():
                return
            if not self._serving:
                self._problem = ConfigError([f"listener.workers: {why} before it was ready"])
                self._changed.set()
                return
            if loop.time() - born_at >= OLD_AGE:
                crashes = 0
            pause = doubled(BACKOFF, crashes - 1, MAX_BACKOFF) if crashes else 0.0
            crashes += 1
            self.replaced += 1
            when = f"in {pause:g} s" if pause else "at once"
            log.error("%s: the calls that it had are lost; it is replaced %s", why, when)
            self._tell("worker_replaced", why)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._draining.wait()

    async def _have(self, number: int) -> str:
        """Have a worker with this number. Returns what has become of it, once it is no more."""
        try:
            worker = await WorkerProcess.start(number, self._sockets[number], self.knowledge.tell_all)
        except OSError as error:
            return f"worker {number} could not be started ({error.strerror})"
        worker.seen_at = asyncio.get_running_loop().time()
        self.workers[number] = worker
        if self._draining.is_set():  # since it was started
            worker.kill()
        try:
            status = await self._accompany(worker)
        except OSError as error:  # no file descriptor is left to see its end by
            await worker.killed()
            return f"{worker} could not be watched ({error.strerror})"
        finally:
            del self.workers[number]
            self._questions.ended(worker)
            self._changed.set()
        return f"{worker} {why_ended(status)}"

    async def _accompany(self, worker: WorkerProcess) -> int:
        """Hear what it says until it has ended. Returns its exit status."""
        hearing = asyncio.get_running_loop().create_task(self._listen(worker), name=f"words of worker {worker.number}")
        try:
            status = await worker.ended()
            await hearing  # its last words
        finally:
            hearing.cancel()
            worker.channel.close()
        return status

    async def _listen(self, worker: WorkerProcess) -> None:
        loop = asyncio.get_running_loop()
        while (message := await worker.channel.receive()) is not None:
            worker.seen_at = loop.time()
            try:
                self._hear(worker, message)
            except Exception:  # it must be heard further
                log.exception("a bug ended the handling of what %s said", worker)

    def _hear(self, worker: WorkerProcess, message: Message) -> None:  # noqa: C901 - a branch a message
        match message:
            case Load():
                worker.load = message
            case Ended():
                self.knowledge.judge(message)
            case ManyMoved():
                self.knowledge.move(message)
            case Hello():
                self._greet(worker, message)
            case Applied():
                worker.generation = message.generation
                if self._serving:
                    self._admit(worker)
                self._changed.set()
            case Serving():
                worker.serving = not message.problem
                if message.problem:
                    self._problem = OSError(message.problem)
                elif self.replaced:
                    log.info("%s is ready", worker)
                self._changed.set()
            case Stopped():
                worker.stopped = True
                self._changed.set()
            case Answer():
                self._questions.answered(worker, message)
            case Drained():
                self._cut_off += message.cut_off
            case _:
                log.error("%s said something that is not for us: %s", worker, type(message).__name__)

    def _admit(self, worker: WorkerProcess) -> None:
        """Let it serve. Nothing happens if it was let already."""
        if not worker.admitted and not self._draining.is_set():
            worker.admitted = True
            worker.channel.send(Serve(), must=True)

    def _greet(self, worker: WorkerProcess, hello: Hello) -> None:
        if hello.version == VERSION:
            self.knowledge.tell_all(worker)
        else:
            log.error(
                "%s is of another version (%s) than this process: the program was upgraded; replace this process "
                "(districhat serve --takeover)",
                worker,
                hello.program,
            )
            worker.kill()

    def _exchange(self) -> None:
        """Every so often: what the workers have to do becomes known to all of them, and who hangs is ended."""
        loop = asyncio.get_running_loop()
        self._exchanging = loop.call_later(EXCHANGE, self._exchange)
        self.knowledge.exchange()
        now, before = loop.time(), self._exchanged_at
        self._exchanged_at = now
        for worker in self.workers.values():
            patience = SILENCE if worker.generation else START_TIMEOUT
            if now - before > SILENCE / 2:  # we were stopped ourselves: what they have said is still to be read
                worker.seen_at = now
            elif now - worker.seen_at > patience:
                log.error("%s has not been heard of for %g s and is killed", worker, patience)
                worker.kill()
