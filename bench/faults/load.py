"""The clients: grpcio channels that make unary calls at a fixed rate, and keep a number of streams running.

Open loop: calls start by the clock, whether or not earlier ones have come back, as from many independent users; a
hanging server does not slow the clients down. The unary methods alternate (may run twice, may not), chats go round.
Nothing is set on the channels: no retry policy, no keepalive. (grpcio's own transparent retry is on by default. It
repeats only what a server's GOAWAY or REFUSED_STREAM says it did not process, and is the same for every proxy.)
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from typing import TYPE_CHECKING

import grpc
import grpc.aio
from districhat import chat_pb2

from bench.faults.backend import APPEND, APPEND_ONCE, TOKENS
from bench.faults.outcome import OK, Kind, Outcome

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from types import TracebackType
    from typing import Self

    _Unary = grpc.aio.UnaryUnaryMultiCallable[chat_pb2.ChatRequest, chat_pb2.ChatResponse]
    _Tokens = grpc.aio.UnaryStreamMultiCallable[chat_pb2.ChatRequest, chat_pb2.ReplyChunk]

_UNARY: dict[Kind, str] = {"plain": APPEND, "repeatable": APPEND_ONCE}

CHANNELS = 6
_TICK = 0.005
_MAX_IN_FLIGHT = 10_000
"""Beyond it calls are not started, and `skipped` counts them: a bound for a machine that cannot keep up."""
DEADLINE = 5.0
"""Seconds of patience of a unary call."""
STREAM_DEADLINE = 20.0
_PAUSE = 0.2
"""Seconds before a client whose stream failed opens the next: else one fault would count many times."""


class Load:
    """Clients of one proxy. In its `async with` calls are made; on the way out the last ones are waited for."""

    def __init__(self, port: int, rate: int, streams: int, chats: tuple[str, ...]) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]  # or all channels would share one connection
        address = f"127.0.0.1:{port}"
        self._channels = [grpc.aio.insecure_channel(address, options) for _ in range(CHANNELS)]
        encode = chat_pb2.ChatRequest.SerializeToString
        self._unary: dict[Kind, list[_Unary]] = {
            kind: [channel.unary_unary(method, encode, chat_pb2.ChatResponse.FromString) for channel in self._channels]
            for kind, method in _UNARY.items()
        }
        self._tokens: list[_Tokens] = [
            channel.unary_stream(TOKENS, encode, chat_pb2.ReplyChunk.FromString) for channel in self._channels
        ]
        self._rate = rate
        self._streams = streams
        self._chats = itertools.cycle(chats)
        self._stream_chats = itertools.cycle(chats[::7])
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self.outcomes: list[Outcome] = []
        self.skipped = 0
        self.standstill = 0.0
        """Seconds that this process was late at most: others had the CPU."""

    async def __aenter__(self) -> Self:
        self._spawn(self._unary_at_rate())
        for index in range(self._streams):
            self._spawn(self._streams_in_a_row(index))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        if error is not None:
            for task in self._tasks:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=error is not None)
        while self._tasks:  # calls that the tasks had started meanwhile
            await asyncio.gather(*self._tasks, return_exceptions=error is not None)
        for channel in self._channels:
            await channel.close()

    async def _unary_at_rate(self) -> None:
        start, sent = time.monotonic(), 0
        while not self._stopping:
            due = int((time.monotonic() - start) * self._rate)
            for number in range(sent, due):
                if len(self._tasks) < _MAX_IN_FLIGHT:
                    self._spawn(self._call("plain" if number % 2 else "repeatable", number % CHANNELS))
                else:
                    self.skipped += 1
            sent = due
            asleep = time.monotonic()
            await asyncio.sleep(_TICK)
            self.standstill = max(self.standstill, time.monotonic() - asleep - _TICK)

    async def _streams_in_a_row(self, index: int) -> None:
        await asyncio.sleep(2.0 * index / self._streams)  # so that they do not all begin and end together
        while not self._stopping:
            if not await self._stream(index % CHANNELS):
                await asyncio.sleep(_PAUSE)

    async def _call(self, kind: Kind, channel: int) -> None:
        request, metadata = self._request(kind, next(self._chats))
        started = time.monotonic()
        call = self._unary[kind][channel](request, timeout=DEADLINE, metadata=metadata)
        server = ""
        with contextlib.suppress(grpc.aio.AioRpcError):
            server = (await call).server_id
        await self._record(kind, request, started, server, call)

    async def _stream(self, channel: int) -> bool:
        request, metadata = self._request("stream", next(self._stream_chats))
        started = time.monotonic()
        call = self._tokens[channel](request, timeout=STREAM_DEADLINE, metadata=metadata)
        server = ""
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for chunk in call:
                server = chunk.response.server_id
        return await self._record("stream", request, started, server, call) == OK

    def _request(self, kind: Kind, chat: str) -> tuple[chat_pb2.ChatRequest, tuple[tuple[str, str], ...]]:
        call = f"{kind[0]}-{next(self._numbers)}"
        request = chat_pb2.ChatRequest(
            chat_id=chat, message="A message of ordinary length, as a person would type it.", message_id=call
        )
        # For everybody the same; DistriChat reads the message and does not look at it.
        return request, (("x-chat-id", chat),)

    async def _record(
        self, kind: Kind, request: chat_pb2.ChatRequest, started: float, server: str, call: grpc.aio.Call
    ) -> str:
        ended = time.monotonic()
        status = (await call.code()).name
        details = "" if status == OK else await call.details()
        self.outcomes.append(
            Outcome(request.message_id, kind, request.chat_id, started, ended, status, server, details)
        )
        return status

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
