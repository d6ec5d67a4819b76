"""Three ledger servers as processes that a scenario may signal, wait for and start again on the same port."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING, Self

from bench.faults import backend
from bench.process import Process, free_port

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

IDS = ("bench-1", "bench-2", "bench-3")
_READY_WITHIN = 20.0
_GONE_WITHIN = backend.LAME_DUCK + backend.GRACE + 5.0


class Server:
    """One of them. Its id and port stay the same over all its processes."""

    def __init__(self, server_id: str, directory: Path, ledger: Path) -> None:
        self.id = server_id
        self.port = free_port()
        self._directory = directory
        self._ledger = ledger
        self._process: Process | None = None
        self._starts = 0

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start a process, and return when it serves. BenchError if it does not."""
        command = [sys.executable, "-m", "bench.faults.backend", self.id, str(self.port), str(self._ledger)]
        log = self._directory / f"{self.id}-{self._starts}.log"
        self._starts += 1
        self._process = Process(self.id, command, frozenset(os.sched_getaffinity(0)), log)
        await asyncio.to_thread(self._process.wait_ready, self.port, backend.READY, _READY_WITHIN)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its present process."""
        if self._process is not None:
            self._process.signal(number)

    async def ended(self) -> None:
        """Wait for the end of its present process, somebody having signalled it. BenchError if that takes too long."""
        if self._process is not None:
            await asyncio.to_thread(self._process.wait, _GONE_WITHIN)
            self.stop()

    def stop(self) -> None:
        """Kill its process, also one that is stopped. Does nothing if there is none."""
        if self._process is not None:
            self._process.signal(signal.SIGKILL)
            self._process.stop()
            self._process = None


class Servers:
    """All three, up inside an `async with`."""

    def __init__(self, directory: Path, ledger: Path) -> None:
        self.all = [Server(server_id, directory, ledger) for server_id in IDS]

    async def __aenter__(self) -> Self:
        try:
            await asyncio.gather(*(server.start() for server in self.all))
        except BaseException:
            self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def addresses(self) -> tuple[str, ...]:
        """In the order of the ids."""
        return tuple(server.address for server in self.all)

    def _stop(self) -> None:
        for server in self.all:
            server.stop()
