"""Load from grpcio clients on ledger servers, each call on record; and the verdict over records and ledger."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import grpc
import grpc.aio

from tests.support.grpc_server import CLIENT_OPTIONS
from tests.support.ledger import BIDI, METHODS, STREAM, Request
from tests.support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence

    from tests.support.ledger import Ledger

DEADLINE = 60.0
"""Seconds of each call: far beyond all that a test waits for, so that a stuck call becomes visible as one."""

_names = itertools.count(1)


@dataclass(slots=True)
class Record:
    """One call as its client saw it."""

    call: str
    kind: str
    """once, keyed, stream or bidi."""
    chat: str
    started: float
    """time.monotonic(), as in the ledger."""
    ended: float = 0.0
    statuses: list[grpc.StatusCode] = field(default_factory=list)
    """What it ended with: there must be exactly one."""
    details: str = ""
    servers: list[str] = field(default_factory=list)
    """Who sent each response."""
    wanted: int = 1
    """Responses to a call that goes well."""
    channel: int = 0
    """Which of the client's connections it is on."""
    abandoned: bool = False
    """The client itself closed that meanwhile."""

    @property
    def ok(self) -> bool:
        """It went well."""
        return self.statuses == [grpc.StatusCode.OK]


class Load:
    """Workers that make one call after the other until told to stop; each kind of call in turn.

    As a context: what is still under way at its end is ended. `stop` it before to get all records.
    """

    def __init__(
        self,
        address: str,
        chats: Sequence[str],
        *,
        kinds: Sequence[str] = ("once", "keyed"),
        workers: int = 12,
        channels: int = 3,
        rate: float | None = None,
        delay_ms: int = 0,
        responses: int = 4,
    ) -> None:
        """`rate`: calls per second at most, of all workers. `delay_ms`: of each response. `responses`: of streams."""
        self.records: list[Record] = []
        self.ended = 0
        """Calls that have ended so far."""
        self._address = address
        self._chats = itertools.cycle(chats)
        self._kinds = itertools.cycle(kinds)
        self._pause = workers / rate if rate else 0.0
        self._delay_ms = delay_ms
        self._responses = responses
        self._name = f"call{next(_names)}"
        self._numbers = itertools.count(1)
        self._stopping = asyncio.Event()
        self.channels = channels
        """Connections of the clients."""
        self._channels = [self._open() for _ in range(channels)]
        self._tasks = [
            asyncio.get_running_loop().create_task(self._work(worker), name=f"load {worker}")
            for worker in range(workers)
        ]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _open(self) -> grpc.aio.Channel:
        options = [*CLIENT_OPTIONS, ("grpc.max_reconnect_backoff_ms", 500), ("grpc.initial_reconnect_backoff_ms", 100)]
        return grpc.aio.insecure_channel(self._address, options=options)

    async def made(self, calls: int, patience: float = 60.0) -> None:
        """Wait until that many more calls have ended."""
        goal = self.ended + calls
        await eventually(lambda: self.ended >= goal or self._broken(), f"{calls} calls", patience)
        self._raise()

    def _broken(self) -> bool:
        return any(task.done() for task in self._tasks) and not self._stopping.is_set()

    def _raise(self) -> None:
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()

    async def cut(self, index: int) -> None:
        """Close a client's connection with all its calls, and open another one."""
        index %= len(self._channels)
        old, self._channels[index] = self._channels[index], self._open()
        for record in self.records:
            record.abandoned |= not record.ended and record.channel == index
        await old.close()

    async def stop(self) -> list[Record]:
        """No more calls; those under way end by themselves. Returns all records."""
        self._stopping.set()
        await asyncio.gather(*self._tasks)
        await self.close()
        return self.records

    async def close(self) -> None:
        """End everything at once. May be called twice."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for channel in self._channels:
            await channel.close()

    async def _work(self, worker: int) -> None:
        while not self._stopping.is_set():
            kind = next(self._kinds)
            wanted = self._responses if kind in ("stream", "bidi") else 1
            call = f"{self._name}-{next(self._numbers)}"
            index = worker % len(self._channels)
            record = Record(call, kind, next(self._chats), time.monotonic(), wanted=wanted, channel=index)
            self.records.append(record)
            try:
                await self._call(self._channels[index], record)
                record.statuses.append(grpc.StatusCode.OK)
            except grpc.aio.AioRpcError as error:
                record.statuses.append(error.code())
                record.details = str(error.details())
            except (asyncio.CancelledError, grpc.aio.UsageError):
                if not record.abandoned:
                    raise
                record.statuses.append(grpc.StatusCode.CANCELLED)  # by `cut`
                if self._tasks[worker].cancelling():
                    raise
            record.ended = time.monotonic()
            self.ended += 1
            if self._pause:
                await self._rest(self._pause - (record.ended - record.started))

    async def _rest(self, seconds: float) -> None:
        if seconds > 0:
            try:
                async with asyncio.timeout(seconds):
                    await self._stopping.wait()
            except TimeoutError:
                pass

    async def _call(self, channel: grpc.aio.Channel, record: Record) -> None:
        request = Request(record.chat, record.call, self._delay_ms, record.wanted).encode()
        if record.kind == "stream":
            stream = channel.unary_stream(STREAM)(request, timeout=DEADLINE)
            async for response in stream:
                record.servers.append(response.decode())
        elif record.kind == "bidi":
            await _converse(channel, record, request)
        else:
            response = await channel.unary_unary(METHODS[record.kind])(request, timeout=DEADLINE)
            record.servers.append(response.decode())


async def _converse(channel: grpc.aio.Channel, record: Record, request: bytes) -> None:
    """Each request is sent when the last one was answered. (With an iterator, since a call's `write` that meets the end
    of the call hides its status.)
    """
    turns = asyncio.Semaphore(1)
    over = False

    async def requests() -> AsyncIterator[bytes]:
        for _ in range(record.wanted):
            await turns.acquire()
            if over:
                return
            yield request

    try:
        call = channel.stream_stream(BIDI)(requests(), timeout=DEADLINE)
        async for response in call:
            record.servers.append(response.decode())
            turns.release()
    finally:
        over = True
        turns.release()


@dataclass(frozen=True, slots=True)
class Absence:
    """A time during which a server may have been passed over, and why."""

    server: str
    why: str
    begin: float
    end: float

    def explains(self, record: Record) -> bool:
        """Whether a call then may have gone elsewhere."""
        return self.begin <= record.ended and record.started <= self.end


def violations(
    records: Iterable[Record], ledger: Ledger, walk: Callable[[str], Sequence[str]], absences: Sequence[Absence] = ()
) -> list[str]:
    """What is wrong, a line for each call: with its statuses, its executions, or its place.

    `walk`: the servers in the ring's order for a chat. A call may only be executed by a server if all that come before
    it were absent.
    """
    found: list[str] = []
    for record in records:
        executions = ledger.executions(record.call, record.kind)
        wrong = [*_wrong_counts(record, len(executions)), *_wrong_places(record, executions, walk, absences)]
        if wrong:
            found.append(f"{record.kind} {record.call}: {'; '.join(wrong)}\n{history(record, ledger)}")
    return found


def _wrong_counts(record: Record, executions: int) -> Iterator[str]:
    if len(record.statuses) != 1 or not record.ended:
        yield f"has {len(record.statuses)} final statuses"
    if record.statuses == [grpc.StatusCode.DEADLINE_EXCEEDED]:
        yield "was stuck until its deadline"
    if record.ok and executions != 1:
        yield f"went well, but was executed {executions} times"
    if record.ok and len(record.servers) != record.wanted:
        yield f"went well with {len(record.servers)} of {record.wanted} responses"
    if executions > 1 and not record.ok:
        yield f"was executed {executions} times"
    if len(set(record.servers)) > 1:
        yield "was answered by several servers"


def _wrong_places(
    record: Record, executions: Sequence[str], walk: Callable[[str], Sequence[str]], absences: Sequence[Absence]
) -> Iterator[str]:
    for server in executions:
        order = walk(record.chat)
        for passed in order[: order.index(server)]:
            if not any(absence.server == passed and absence.explains(record) for absence in absences):
                yield f"ran at {server}, though {passed} comes before it and was there"


def history(record: Record, ledger: Ledger) -> str:
    """All that is known about a call, in the order in which it happened."""
    statuses = ", ".join(code.name for code in record.statuses) or "no status"
    lines = [
        (record.started, f"client starts, chat {record.chat}"),
        (record.ended, f"client sees {statuses} {record.details!r} from {record.servers}"),
    ]
    lines += [
        (entry.at, f"{entry.event} at {entry.server} (process {entry.pid})")
        for entry in ledger.entries.get(record.call, ())
    ]
    text = "\n".join(f"    {at:.4f} {what}" for at, what in sorted(lines))
    return f"{text}\n    applied by {ledger.applied.get(record.call, [])}"


def outcome(records: Iterable[Record]) -> Counter[str]:
    """How many calls of which kind ended how, for people."""
    return Counter(f"{record.kind} {'/'.join(code.name for code in record.statuses)}" for record in records)
