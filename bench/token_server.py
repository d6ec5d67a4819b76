"""A server of token streams: every call is answered with many small messages, one at each beat of a clock.

As an inference server with continuous batching does it: at each step every running call gets its next token, and what
goes to one connection leaves in one write. nghttpd cannot do that. The messages carry a server id, so that the proxies
can be asked which chat goes where.

Run as a program it is the server: `python -m bench.token_server PORT SERVER_ID`.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import TYPE_CHECKING, cast

import ngh2
import uvloop

from bench.backends import TOKENS, TOKENS_METHOD, token

if TYPE_CHECKING:
    from collections.abc import Callable

BEAT = 0.004
"""Seconds between two messages of a call."""
UNIMPLEMENTED = (b"grpc-status", b"12")


class Connection(asyncio.Protocol):
    """One client. `connections` is where the clock finds it."""

    def __init__(self, connections: set[Connection], token: bytes) -> None:
        self._connections = connections
        self._token = token
        self._engine = ngh2.Connection(ngh2.Role.SERVER)
        self._engine.initiate_connection({ngh2.Setting.MAX_CONCURRENT_STREAMS: 1000})
        self._left: dict[int, int] = {}
        self._wire: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Our SETTINGS go out."""
        self._wire = cast("asyncio.Transport", transport)
        self._connections.add(self)
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - why does not matter
        """The client is gone."""
        self._wire = None
        self._connections.discard(self)

    def data_received(self, data: bytes) -> None:
        """Requests begin their answers with the next beat; bodies are not looked at."""
        self._engine.receive_data(data)
        for event in self._engine.events():
            if isinstance(event, ngh2.RequestReceived):
                self._begin(event)
            elif isinstance(event, ngh2.StreamClosed):
                self._left.pop(event.stream_id, None)
        self._flush()

    def _begin(self, request: ngh2.RequestReceived) -> None:
        headers = [(b":status", b"200"), (b"content-type", b"application/grpc")]
        if (b":path", TOKENS_METHOD.encode()) in request.headers:
            self._engine.send_response(request.stream_id, headers)
            self._left[request.stream_id] = TOKENS
        else:
            # Like any server without a health service. A stream of tokens would keep a health check busy, too.
            self._engine.send_response(request.stream_id, [*headers, UNIMPLEMENTED], end_stream=True)

    def beat(self) -> None:
        """The next message of every call."""
        engine, left = self._engine, self._left
        for stream in tuple(left):
            engine.send_data(stream, self._token)
            left[stream] -= 1
            if not left[stream]:
                del left[stream]
                engine.send_trailers(stream, [(b"grpc-status", b"0")])
        self._flush()

    def _flush(self) -> None:
        data = self._engine.data_to_send()
        if data and self._wire is not None:
            self._wire.write(data)


async def _serve(port: int, server_id: str) -> None:
    connections: set[Connection] = set()
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    message = token(server_id)
    factory: Callable[[], Connection] = lambda: Connection(connections, message)  # noqa: E731 - typed
    server = await loop.create_server(factory, "127.0.0.1", port)

    def beat(due: float) -> None:
        for connection in tuple(connections):
            connection.beat()
        following = max(due + BEAT, loop.time())
        loop.call_at(following, beat, following)

    beat(loop.time())
    print(f"token server ready on 127.0.0.1:{port}", flush=True)
    await stop.wait()
    server.close()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), sys.argv[2]))
