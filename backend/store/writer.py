"""One thread that owns one SQLite connection, so that the event loop never waits for a disk.

Group commit: the thread takes all the jobs that queued up while it was busy into one transaction, and answers them once
that is committed. Alone, a message pays for a commit of its own; under load hundreds share one, and its disk sync:
`make bench-store` shows both.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from backend.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

T = TypeVar("T")


@dataclass(slots=True)
class _Job(Generic[T]):
    work: Callable[[sqlite3.Connection], T]
    writes: bool
    done: asyncio.Future[T]


class SqliteWriter:
    """Runs jobs on one connection in the order they were submitted. Made by `start`; belongs to that event loop.

    `batch_limit`: the most jobs in one transaction. It bounds how long other servers wait for the write lock, at some
    15 us per job.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection], path: Path, *, batch_limit: int = 512) -> None:
        self._connect = connect
        self._path = path
        self._batch_limit = batch_limit
        self._loop = asyncio.get_running_loop()
        # Bounded by the calls in progress: each waits for its job.
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"sqlite {path.name}", daemon=True)

    async def start(self) -> None:
        """Starts the thread and connects. Raises StoreError if `connect` fails."""
        self._thread.start()
        try:
            await self._opened
        except StoreError:
            self._thread.join()
            raise

    async def submit(self, work: Callable[[sqlite3.Connection], T], *, writes: bool) -> T:
        """What `work` returns, after the transaction it ran in was committed.

        When a job fails, the others of its transaction are run again without it; when the commit fails, or the
        transaction cannot begin, all of its jobs fail. Raises StoreError.
        """
        if self._closing:
            raise StoreError("the store is closed")
        done: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put(_Job(work, writes, done))
        return await done

    async def close(self) -> None:
        """Runs the jobs submitted before and closes the connection. A second call waits for the same end."""
        if not self._closing:
            self._closing = True
            self._jobs.put(None)
        await asyncio.shield(self._ended)
        self._thread.join()

    def _run(self) -> None:
        try:
            connection = self._connect()
        except Exception as error:  # whatever it is, `start` must hear of it
            self._tell(self._fail, [self._opened], str(error))
            return
        self._tell(self._succeed, [self._opened], [None])
        while batch := self._next_batch():
            self._run_batch(connection, batch)
        with suppress(sqlite3.Error):
            connection.close()
        self._tell(self._succeed, [self._ended], [None])

    def _next_batch(self) -> list[_Job[Any]]:
        """The jobs that are there, at least one; empty when the writer was closed."""
        batch: list[_Job[Any]] = []
        job = self._jobs.get()
        while job is not None:
            batch.append(job)
            if len(batch) >= self._batch_limit:
                return batch
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return batch
        if batch:
            self._jobs.put(None)  # this batch first, then the end
        return batch

    def _run_batch(self, connection: sqlite3.Connection, batch: list[_Job[Any]]) -> None:
        while batch:
            futures = [job.done for job in batch]
            running: _Job[Any] | None = None
            try:
                # Taking the write lock at the start, a transaction can wait for it; upgrading later it could only fail.
                connection.execute("BEGIN IMMEDIATE" if any(job.writes for job in batch) else "BEGIN")
                results = []
                for running in batch:
                    results.append(running.work(connection))  # noqa: PERF401 - `running` says which one failed
                running = None
                connection.execute("COMMIT")
            except Exception as error:  # the thread must outlive any job
                with suppress(sqlite3.Error):
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                if running is None:
                    self._tell(self._fail, futures, str(error))
                    return
                # Nothing was committed, so one bad job (a corrupt page, a message too large) need not cost the others.
                self._tell(self._fail, [running.done], str(error))
                batch = [job for job in batch if job is not running]
            else:
                self._tell(self._succeed, futures, results)
                return

    def _tell(self, tell: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(tell, *arguments)

    @staticmethod
    def _succeed(futures: list[asyncio.Future[Any]], results: list[Any]) -> None:
        for future, result in zip(futures, results, strict=True):
            if not future.done():
                future.set_result(result)

    def _fail(self, futures: list[asyncio.Future[Any]], reason: str) -> None:
        for future in futures:
            if not future.done():
                future.set_exception(StoreError(f"{self._path}: {reason}"))
