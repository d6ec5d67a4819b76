"""gRPC's own interop programs: servers of its test service, and clients that check cases against one."""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tests.conformance.tools import grpc_source
from tests.support.polling import eventually
from tests.support.ports import free_port
from tests.support.proxy_process import environment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GO = "grpc-go 1.85.0"
PATIENCE = 300.0
"""Seconds for a whole client; a hang is what it is there to end."""

Command = tuple[str, ...]


def python_program(name: str) -> tuple[Command, dict[str, str]]:
    """One of gRPC's Python programs, and the environment it runs in."""
    source = str(grpc_source())
    return (sys.executable, "-m", f"tests.interop.{name}"), environment() | {"PYTHONPATH": source, "PWD": source}


@asynccontextmanager
async def interop_server(command: Command, env: dict[str, str] | None = None) -> AsyncIterator[str]:
    """A server of the interop service; its address."""
    port = free_port()
    arguments = (f"--port={port}",)
    process = await asyncio.create_subprocess_exec(
        *command, *arguments, env=env, cwd=env["PWD"] if env else None, stderr=asyncio.subprocess.DEVNULL
    )

    def answers() -> bool:
        assert process.returncode is None, "the server ended"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        await eventually(answers, "the interop server listening")
        yield f"127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def interop_client(
    command: Command, port: int, case: str, *more: str, env: dict[str, str] | None = None
) -> tuple[int, str]:
    """Run one case. Its exit status and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        *("--server_host=127.0.0.1", f"--server_port={port}", f"--test_case={case}", *more),
        env=env,
        cwd=env["PWD"] if env else None,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        output, _ = await process.communicate()
        return -1, f"{case} hung: {output.decode()}"
    assert process.returncode is not None
    return process.returncode, output.decode()
