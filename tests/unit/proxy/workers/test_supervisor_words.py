"""What the parent says to its workers, and when: with workers that only note what they hear."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import pytest

from proxy.cluster.cluster import Cluster
from proxy.cluster.endpoint import Cause
from proxy.cluster.outlier import OutlierDetector
from proxy.forwarding.stats import StatsSnapshot
from proxy.settings import Settings
from proxy.workers import questions
from proxy.workers import supervisor as module
from proxy.workers.messages import (
    VERSION,
    Answer,
    Applied,
    Ask,
    Configure,
    Drain,
    Ended,
    Hello,
    Numbers,
    Said,
    Serve,
    StopAccepting,
)
from proxy.workers.process import WorkerProcess
from proxy.workers.supervisor import Supervisor

if TYPE_CHECKING:
    from proxy.workers.messages import Message

SETTINGS = Settings.model_validate({"endpoints": [{"id": "A", "address": "10.0.0.1:1"}]})


class Ears:
    """A channel to a worker that notes what it is told, and answers questions with `numbers`, if there are any."""

    def __init__(self, parent: Supervisor) -> None:
        self._parent = parent
        self.heard: list[Message] = []
        self.worker: WorkerProcess
        self.numbers: StatsSnapshot | None = None

    def send(self, message: Message, *, must: bool = False) -> None:
        self.heard.append(message)
        if isinstance(message, Ask) and self.numbers is not None:
            answer = Answer(message.number, Numbers(self.numbers.values, self.numbers.histograms))
            asyncio.get_running_loop().call_soon(self._parent._hear, self.worker, answer)

    def of(self, kind: type[Any]) -> list[Any]:
        return [each for each in self.heard if isinstance(each, kind)]


class Process:
    """A process that notes whether it was killed."""

    pid = 0

    def __init__(self) -> None:
        self.killed = False
        self.waited: threading.Thread | None = None

    def kill(self) -> None:
        self.killed = True

    def wait(self) -> int:
        self.waited = threading.current_thread()
        return -9


class Staff:
    """A supervisor and its workers, all of them fakes."""

    def __init__(self, workers: int = 1) -> None:
        cluster = Cluster(SETTINGS.endpoints, SETTINGS.ring)
        self.endpoint = cluster.snapshot.by_id["A"]
        self.parent = Supervisor(SETTINGS, cluster, OutlierDetector(SETTINGS.outlier, cluster.snapshot), workers)
        self.endpoint.watch = self.parent.knowledge.said
        self.ears = [Ears(self.parent) for _ in range(workers)]
        self.processes = [Process() for _ in range(workers)]
        for number, (ears, process) in enumerate(zip(self.ears, self.processes, strict=True)):
            ears.worker = WorkerProcess(number, cast("Any", process), cast("Any", ears))
            ears.worker.seen_at = asyncio.get_running_loop().time()
            self.parent.workers[number] = ears.worker

    def says(self, number: int, message: Message) -> None:
        self.parent._hear(self.ears[number].worker, message)

    def exchange(self) -> None:
        self.parent._exchange()
        assert self.parent._exchanging is not None
        self.parent._exchanging.cancel()


async def test_what_happens_while_a_worker_gets_ready_is_told_to_it_too() -> None:
    staff = Staff()
    ears = staff.ears[0]
    staff.endpoint.block(Cause.HEALTH, "before it said hello")
    assert not ears.heard
    staff.says(0, Hello(VERSION, "1"))
    [configure] = ears.of(Configure)
    assert configure.said == {"A": {"health": "before it said hello"}}
    staff.endpoint.block(Cause.OPERATOR, "while it gets ready")
    assert [each.blocks for each in ears.of(Said)] == [
        {"health": "before it said hello", "operator": "while it gets ready"}
    ]


async def test_a_reload_reaches_a_worker_that_gets_ready_and_it_is_told_once_to_serve() -> None:
    staff = Staff()
    ears = staff.ears[0]
    staff.parent._serving = True
    staff.says(0, Hello(VERSION, "1"))
    staff.parent.knowledge.apply(SETTINGS)
    first, second = (each.generation for each in ears.of(Configure))
    assert second == first + 1
    staff.says(0, Applied(first))
    staff.says(0, Applied(second))
    assert len(ears.of(Serve)) == 1
    await staff.parent.knowledge.applied()


async def test_nobody_is_let_in_during_the_drain() -> None:
    staff = Staff()
    staff.parent._serving = True
    staff.parent._draining.set()
    staff.says(0, Hello(VERSION, "1"))
    staff.says(0, Applied(1))
    assert not staff.ears[0].of(Serve)


async def test_a_worker_that_was_being_started_when_the_drain_began_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    staff = Staff()
    ears = staff.ears[0]
    staff.parent._sockets = [[]]

    async def start(*_: object) -> WorkerProcess:
        staff.parent._draining.set()
        return ears.worker

    async def accompany(_: WorkerProcess) -> int:
        return 0

    monkeypatch.setattr(WorkerProcess, "start", start)
    monkeypatch.setattr(staff.parent, "_accompany", accompany)
    await staff.parent._have(0)
    assert not ears.heard
    assert staff.processes[0].killed


async def test_a_worker_whose_end_nobody_could_see_is_killed_to_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    staff = Staff()
    staff.parent._sockets = [[]]

    async def start(*_: object) -> WorkerProcess:
        return staff.ears[0].worker

    async def accompany(_: WorkerProcess) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(WorkerProcess, "start", start)
    monkeypatch.setattr(staff.parent, "_accompany", accompany)
    assert "could not be watched (Too many open files)" in await staff.parent._have(0)
    process = staff.processes[0]
    assert process.killed
    assert process.waited not in (None, threading.main_thread()), "the event loop stood still until it was gone"
    assert not staff.parent.workers


async def test_the_event_loop_does_not_wait_for_the_end_of_a_worker_that_is_killed() -> None:
    staff = Staff()
    staff.parent.kill()
    assert staff.processes[0].killed
    assert staff.processes[0].waited is None


async def test_the_end_does_not_wait_for_ever_for_a_process_that_the_kernel_does_not_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    staff = Staff()
    monkeypatch.setattr(module, "KILL_TIMEOUT", 0.01)
    staff.parent._keepers.append(asyncio.get_running_loop().create_task(asyncio.Event().wait()))  # type: ignore[arg-type]
    staff.parent.close()
    await staff.parent.closed()
    assert staff.processes[0].killed
    assert staff.parent._keepers[0].cancelled()


async def test_a_drain_asks_workers_that_serve_and_kills_those_that_do_not_yet() -> None:
    staff = Staff(2)
    serving = staff.ears[0]
    serving.worker.admitted = serving.worker.stopped = True
    assert await staff.parent.drain() == 0
    assert serving.heard == [StopAccepting(), Drain()]
    assert [process.killed for process in staff.processes] == [False, True]


async def test_a_drain_does_not_wait_for_a_worker_that_is_to_be_started_later(monkeypatch: pytest.MonkeyPatch) -> None:
    staff = Staff()
    parent = staff.parent
    parent._serving = True
    monkeypatch.setattr(module, "BACKOFF", 1e6)
    monkeypatch.setattr(module, "MAX_BACKOFF", 1e6)
    crashed = asyncio.Event()

    async def have(_: int) -> str:
        if parent.replaced:
            crashed.set()
        return "a worker crashed"

    monkeypatch.setattr(parent, "_have", have)
    keeper = asyncio.get_running_loop().create_task(parent._keep(0))
    await crashed.wait()
    parent._draining.set()
    async with asyncio.timeout(60.0):
        await keeper


@pytest.mark.parametrize(("generation", "patience"), [(1, module.SILENCE), (0, module.START_TIMEOUT)])
async def test_a_silent_worker_is_killed_also_if_it_never_said_a_word(generation: int, patience: float) -> None:
    staff = Staff()
    worker = staff.ears[0].worker
    worker.generation = generation
    staff.exchange()
    worker.seen_at -= patience - 10.0
    staff.exchange()
    assert not staff.processes[0].killed
    worker.seen_at -= 20.0
    staff.exchange()
    assert staff.processes[0].killed


async def test_after_a_stop_of_the_parent_itself_nobody_is_taken_for_silent() -> None:
    staff = Staff()
    worker = staff.ears[0].worker
    worker.generation = 1
    staff.exchange()
    staff.parent._exchanged_at -= 100.0
    worker.seen_at -= 100.0
    staff.exchange()
    staff.exchange()
    assert not staff.processes[0].killed


async def test_failures_are_judged_as_the_worker_saw_them() -> None:
    staff = Staff()
    detector = staff.parent.knowledge.detector
    staff.says(0, Ended((("failed", "A", b"chat", 1.0), ("failed_again", "A", b"other", 1.0))))
    assert detector.troubled
    assert set(detector._suspects) == {b"chat"}
    assert detector._records[staff.endpoint].failures == 2


def counted(calls: int, active: int) -> StatsSnapshot:
    numbers = StatsSnapshot()
    numbers.add("districhat_calls_total", calls, "route")
    numbers.add("districhat_active_calls", active)
    return numbers


async def test_counters_of_a_worker_that_does_not_answer_do_not_fall(monkeypatch: pytest.MonkeyPatch) -> None:
    staff = Staff(2)
    for ears, calls in zip(staff.ears, (5, 7), strict=True):
        ears.worker.generation = 1
        ears.numbers = counted(calls, 1)
    monkeypatch.setattr(questions, "ASK_TIMEOUT", 60.0)
    told = await staff.parent.numbers()
    assert told.values["districhat_calls_total"] == {("route",): 12}
    assert told.values["districhat_active_calls"] == {(): 2}
    staff.ears[1].numbers = None
    monkeypatch.setattr(questions, "ASK_TIMEOUT", 0.05)
    told = await staff.parent.numbers()
    assert told.values["districhat_calls_total"] == {("route",): 12}
    assert told.values["districhat_active_calls"] == {(): 1}


async def test_a_question_that_is_given_up_leaves_nothing_behind() -> None:
    staff = Staff()
    staff.ears[0].worker.generation = 1
    asking = asyncio.get_running_loop().create_task(staff.parent.numbers())
    await asyncio.sleep(0)
    assert staff.parent._questions._answers
    asking.cancel()
    with suppress(asyncio.CancelledError):
        await asking
    assert not staff.parent._questions._answers
