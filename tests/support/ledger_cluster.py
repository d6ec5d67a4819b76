"""Ledger servers as processes: started, killed, stopped, continued and restarted on the addresses they have."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tests.support.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

PATIENCE = 60.0
"""Seconds that a process gets to start, and to end."""
IDS = ("Server-A", "Server-B", "Server-C")

_numbers = itertools.count(1)


def own_address() -> str:
    """An address of this machine that nobody else takes, also while nothing listens there: 127.0.0.0/8 is all loopback,
    and the kernel uses 127.0.0.1 for the client's end.
    """
    pid = os.getpid()
    return f"127.{64 + (pid >> 8 & 63)}.{pid & 255}.{next(_numbers) % 254 + 1}:50051"


class LedgerServer:
    """One server and its process, if it runs."""

    def __init__(self, server_id: str, address: str, directory: Path, options: Sequence[str], launcher: Sequence[str]):
        self.id = server_id
        self.address = address
        self._directory = directory
        self._command = (
            *(*launcher, sys.executable, "-m", "tests.support.ledger_server", "--id", server_id),
            *("--address", address, "--ledger", str(directory), *options),
        )
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Of the process, which must run."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """It has been started, and has not ended."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start it, and wait until it listens."""
        assert not self.running
        log = self._directory / f"{self.id}.stderr"
        with log.open("ab") as stderr:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=stderr
            )
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            line = (await self._process.stdout.readline()).decode()
        assert line == f"ready {self.address}\n", f"{line!r} {log.read_text(encoding='utf-8')[-3000:]}"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    async def ended(self) -> int:
        """Its exit status, once it has ended."""
        assert self._process is not None
        async with asyncio.timeout(PATIENCE):
            await self._process.communicate()
        assert self._process.returncode is not None
        return self._process.returncode

    async def kill(self) -> None:
        """SIGKILL, and gone."""
        self.signal(signal.SIGKILL)
        await self.ended()

    async def restart(self) -> None:
        """Drain it by SIGTERM and start it again."""
        self.signal(signal.SIGTERM)
        assert await self.ended() == 0, self.log()
        await self.start()

    def log(self) -> str:
        """What it wrote to stderr, in all its lives."""
        return (self._directory / f"{self.id}.stderr").read_text(encoding="utf-8")


class LedgerCluster:
    """Servers with one ledger."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.servers: dict[str, LedgerServer] = {}

    def __getitem__(self, server_id: str) -> LedgerServer:
        return self.servers[server_id]

    def addresses(self) -> dict[str, str]:
        """Id to address, as a proxy's configuration wants it."""
        return {server.id: server.address for server in self.servers.values()}

    def ledger(self) -> Ledger:
        """What they have written so far."""
        return Ledger(self.directory)

    def add(self, server_id: str, address: str, *options: str, launcher: Sequence[str] = ()) -> LedgerServer:
        """One more server, not started. `options`: of its command line. `launcher`: a command in front of it."""
        server = self.servers[server_id] = LedgerServer(server_id, address, self.directory, options, launcher)
        return server

    async def start(self) -> None:
        """Start those that do not run."""
        async with asyncio.TaskGroup() as group:
            for server in self.servers.values():
                if not server.running:
                    group.create_task(server.start(), name=f"start {server.id}")

    async def close(self) -> None:
        """End all processes at once, whatever state they are in."""
        for server in self.servers.values():
            if server.running:
                await server.kill()  # also ends a stopped one


@asynccontextmanager
async def ledger_cluster(directory: Path, *ids: str, options: Sequence[str] = ()) -> AsyncIterator[LedgerCluster]:
    """Servers of these names (default: three) on loopback, running."""
    directory = directory / "ledger"
    directory.mkdir()
    cluster = LedgerCluster(directory)
    for server_id in ids or IDS:
        cluster.add(server_id, own_address(), *options)
    try:
        await cluster.start()
        yield cluster
    finally:
        await cluster.close()
