"""Reference servers for tests: one in this process, or one as the command in a process of its own."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc.aio
from districhat import chat_pb2_grpc

from backend.server import ChatServer
from backend.settings import ENV_PREFIX, BackendSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from districhat.chat_pb2_grpc import ChatServiceAsyncStub

    from backend.engine import ReplyEngine
    from backend.session import Message, Session


class TestEngine:
    """What engines of tests have in common."""

    __test__ = False
    keeps_replies = False

    async def close(self) -> None:
        pass


class GatedEngine(TestEngine):
    """Replies "one two", the second token only once `gate` is set. `started` is released when a reply begins, and
    `stopped` when it ends, wanted or not.
    """

    def __init__(self) -> None:
        self.started = asyncio.Semaphore(0)
        self.stopped = asyncio.Semaphore(0)
        self.gate = asyncio.Event()

    async def reply(self, session: Session, message: Message) -> AsyncIterator[str]:
        self.started.release()
        try:
            yield "one"
            await self.gate.wait()
            yield " two"
        finally:
            self.stopped.release()


@asynccontextmanager
async def serving(*, engine: ReplyEngine | None = None, **settings: Any) -> AsyncIterator[ChatServer]:
    """A server in this process on a free port, drained at the end. `settings` as in the TOML file."""
    values = {"address": "127.0.0.1:0", "drain": {"grace": 0.0}, **settings}
    server = await ChatServer.start(BackendSettings.model_validate(values), engine=engine)
    try:
        yield server
    finally:
        await server.drain()


@asynccontextmanager
async def chat_stub(address: str) -> AsyncIterator[ChatServiceAsyncStub]:
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield chat_pb2_grpc.ChatServiceStub(channel)


def command_environment() -> dict[str, str]:
    """The environment without settings that somebody left in it."""
    return {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}


@asynccontextmanager
async def backend_process(
    *flags: str, store: Path | None = None, module: tuple[str, ...] = ("-m", "backend")
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """The command on a free port, ready; and its address. Killed at the end if it is still there. `module`: how the
    interpreter is started, if not with the command itself.
    """
    if store is not None:
        flags = (*flags, "--store", f"sqlite:///{store}")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *module, "--address", "127.0.0.1:0", *flags),
        stdout=asyncio.subprocess.PIPE,
        env=command_environment(),
    )
    assert process.stdout is not None
    try:
        words = (await process.stdout.readline()).decode().split()
        assert words[2:4] == ["ready", "on"], words
        yield process, words[4]
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
