"""A stub of the OpenAI chat API: answers `POST /v1/chat/completions` with a stream of events, as told."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def piece(text: str | None) -> bytes:
    """One event of a stream, as the API sends it."""
    delta = {"role": "assistant"} if text is None else {"content": text}
    event = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    return b"data: " + json.dumps(event).encode() + b"\n\n"


USAGE = b'data: {"object": "chat.completion.chunk", "choices": [], "usage": {"total_tokens": 7}}\n\n'
DONE = b"data: [DONE]\n\n"


class OpenAIStub:
    """What it was asked, and what it answers."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[dict[str, Any]] = []
        """The bodies."""
        self.headers: list[dict[str, str]] = []
        self.status = 200
        self.body: list[bytes] = [piece(None), piece("Hello"), b": a comment\n\n", piece(" world"), USAGE, DONE]
        """Sent one after another, each after `gate` if it comes after the first two."""
        self.gate = asyncio.Event()
        self.gate.set()
        self.gone = asyncio.Event()
        """A client has closed its connection before the end of a reply."""
        self.cut = 0
        """Bytes of each write; 0: whole pieces."""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        request_line, *lines = head.split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        assert request_line == "POST /v1/chat/completions HTTP/1.1", request_line
        self.headers.append(headers)
        self.requests.append(json.loads(await reader.readexactly(int(headers["content-length"]))))
        writer.write(
            f"HTTP/1.1 {self.status} X\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n".encode()
        )
        closed = asyncio.ensure_future(reader.read())
        try:
            for number, data in enumerate(self.body):
                if number >= 2:
                    await self._gate_or(closed)
                if closed.done():
                    self.gone.set()
                    return False
                step = self.cut or len(data) or 1
                for start in range(0, len(data), step):
                    writer.write(data[start : start + step])
                    await writer.drain()
        finally:
            closed.cancel()
        return False

    async def _gate_or(self, closed: asyncio.Future[bytes]) -> None:
        gate = asyncio.ensure_future(self.gate.wait())
        try:
            await asyncio.wait((gate, closed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gate.cancel()


@asynccontextmanager
async def openai_stub() -> AsyncIterator[OpenAIStub]:
    stub = OpenAIStub()
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            await stub.answer(reader, writer)
        finally:
            connections.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    stub.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield stub
    finally:
        server.close()
        stub.gate.set()
        await asyncio.gather(*connections, return_exceptions=True)
        await server.wait_closed()
