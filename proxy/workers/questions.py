"""What the operator asks of the workers: one answer from all of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Literal

from proxy.data_plane import CERTIFICATES
from proxy.forwarding.stats import StatsSnapshot
from proxy.workers.messages import Answer, Ask, Numbers

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from proxy.admin.call_records import Kept
    from proxy.workers.process import WorkerProcess

ASK_TIMEOUT: Final = 2.0
"""Seconds that a worker has to answer a question; those that do not are left out."""


class Questions:
    """`workers`: those that run at the time, by number."""

    def __init__(self, workers: Mapping[int, WorkerProcess]) -> None:
        self._workers = workers
        self._asked = 0
        self._answers: dict[int, asyncio.Future[Numbers | tuple[bytes, ...] | tuple[Kept, ...]]] = {}
        self._past = StatsSnapshot()
        """What workers have counted that are no more."""

    async def numbers(self) -> StatsSnapshot:
        """All numbers of the workers, added up. Counters of those that have ended, or do not answer in time, count as
        they were told last: one that fell back would look like a start from 0, and all of it like new calls.
        """
        told = StatsSnapshot()
        answered = {worker for worker, _ in await self._ask("numbers")}
        for worker in self._workers.values():
            told.merge(worker.numbers if worker in answered else counters_of(worker.numbers))
        told.merge(self._past)
        if CERTIFICATES in told.values:
            told.values[CERTIFICATES] = earliest(each.numbers.values.get(CERTIFICATES, {}) for each in answered)
        return told

    async def recent_keys(self) -> Collection[bytes]:
        """Keys of chats seen recently, as far as the workers remember them."""
        keys: set[bytes] = set()
        for _, answer in await self._ask("recent_keys"):
            if not isinstance(answer, Numbers):
                keys.update(each for each in answer if isinstance(each, bytes))
        return keys

    async def decisions(self, limit: int, key: bytes | None) -> Sequence[Kept]:
        """The latest records of calls of all workers, newest first, at most so many. `key`: only those of this chat."""
        found: list[Kept] = []
        for _, answer in await self._ask("decisions", limit, key):
            if not isinstance(answer, Numbers):
                found += (each for each in answer if not isinstance(each, bytes))
        return sorted(found, key=lambda each: each.ended, reverse=True)[:limit]

    def answered(self, worker: WorkerProcess, answer: Answer) -> None:
        """`worker` says this. Nothing happens if nobody wants to know any more."""
        if isinstance(answer.value, Numbers):
            worker.numbers = StatsSnapshot(answer.value.values, answer.value.histograms)
        asked = self._answers.get(answer.number)
        if asked is not None and not asked.done():
            asked.set_result(answer.value)

    def ended(self, worker: WorkerProcess) -> None:
        """`worker` is no more: what it has counted stays."""
        self._past.merge(counters_of(worker.numbers))

    async def _ask(
        self, what: Literal["numbers", "recent_keys", "decisions"], limit: int = 0, key: bytes | None = None
    ) -> list[tuple[WorkerProcess, Numbers | tuple[bytes, ...] | tuple[Kept, ...]]]:
        """The answers of those workers that give one in time."""
        asked = []
        for worker in self._workers.values():
            if worker.generation:
                self._asked += 1
                worker.channel.send(Ask(self._asked, what, limit, key))
                answer = self._answers[self._asked] = asyncio.get_running_loop().create_future()
                asked.append((worker, self._asked, answer))
        try:
            if asked:
                await asyncio.wait([answer for _, _, answer in asked], timeout=ASK_TIMEOUT)
        finally:  # also if nobody wants to know any more
            for _, number, answer in asked:
                del self._answers[number]
                answer.cancel()
        return [(worker, answer.result()) for worker, _, answer in asked if not answer.cancelled()]


def earliest(times: Iterable[Mapping[tuple[str, ...], float]]) -> dict[tuple[str, ...], float]:
    """Of each, the earliest: a worker may not have looked at a new certificate yet."""
    found: dict[tuple[str, ...], float] = {}
    for each in times:
        for labels, at in each.items():
            found[labels] = min(at, found.get(labels, at))
    return found


def counters_of(numbers: StatsSnapshot) -> StatsSnapshot:
    """What of these numbers only ever grows."""
    counters = {name: family for name, family in numbers.values.items() if name.endswith("_total")}
    return StatsSnapshot(counters, numbers.histograms)
