"""A real redis-server for tests: started on a free port, ended by its process id."""

from __future__ import annotations

import asyncio
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tests.support.ports import free_port
from tests.support.tools import need

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

PATIENCE = 30.0


class RedisServer:
    """One server in a directory of its own, which it may be stopped and started in again. Every write is on its disk
    before it answers.
    """

    def __init__(self, directory: Path, *options: str) -> None:
        program = need("redis-server", "redis-server")
        self.port = free_port()
        directory.mkdir(exist_ok=True)
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = [
            program,
            *("--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(directory)),
            *("--save", "", "--appendonly", "yes", "--appendfsync", "always", *options),
        ]
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Returns when it answers."""
        # stderr too: what it says there is about the kernel's settings.
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(PATIENCE):
            while await self._command_line("PING") != b"+PONG\r\n":
                assert self._process.returncode is None, "redis-server ended"
                await asyncio.sleep(0.01)

    def send_signal(self, number: signal.Signals) -> None:
        """Such as SIGSTOP."""
        assert self._process is not None
        self._process.send_signal(number)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Returns when it has ended. A second call does nothing."""
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.send_signal(number)
            try:
                async with asyncio.timeout(PATIENCE):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()

    async def _command_line(self, line: str) -> bytes:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return b""
        try:
            writer.write(f"{line}\r\n".encode())
            return await reader.readline()
        except OSError:
            return b""
        finally:
            writer.close()


@asynccontextmanager
async def redis_server(directory: Path, *options: str) -> AsyncIterator[RedisServer]:
    """A running server, killed at the end if it is still there."""
    server = RedisServer(directory / "redis", *options)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(signal.SIGKILL)
