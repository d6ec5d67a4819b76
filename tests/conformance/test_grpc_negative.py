"""gRPC's "negative HTTP/2" cases: servers that break calls off, and Go's client, direct and through the proxy.

The client knows what a gRPC client must see of each; it must see the same through the proxy. The servers' side follows
gRPC's doc/negative-http2-test-descriptions.md, with h2 as their engine.
"""

from __future__ import annotations

import asyncio
import re
from functools import partial
from typing import TYPE_CHECKING

import h2.events
import pytest

from tests.conformance.interop import GO, interop_client
from tests.conformance.table import Row
from tests.conformance.tools import go_tool
from tests.support.messages import field, framed
from tests.support.proxy_process import proxy_process, toml
from tests.support.raw_http2 import OK, RESPONSE, RawConnection, RawServer, raw_server

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    Answer = Callable[[RawConnection, int], Coroutine[object, object, None]]

MESSAGE = framed(field(1, field(2, bytes(314_159))))
"""The SimpleResponse that the client asks for: payload.body of so many bytes."""
NO_ERROR = 0
MAX_CONCURRENT_STREAMS = 3


async def say(connection: RawConnection, stream: int, data: bytes, *, ping: bool = False) -> None:
    """Send all of `data` as the windows allow. `ping`: one between any two frames."""
    while data:
        room = min(connection.h2.local_flow_control_window(stream), 16_384)
        if room <= 0:
            await connection.until(lambda: connection.h2.local_flow_control_window(stream) > 0, "a window update")
            continue
        connection.h2.send_data(stream, data[:room])
        data = data[room:]
        if ping:
            await connection.pinged()
        connection.flush()


async def answer(connection: RawConnection, stream: int, *, ping: bool = False) -> None:
    """A whole good response."""
    connection.h2.send_headers(stream, RESPONSE)
    await say(connection, stream, MESSAGE, ping=ping)
    connection.h2.send_headers(stream, OK, end_stream=True)
    connection.flush()


async def goaway(connection: RawConnection, stream: int) -> None:
    """The response, then GOAWAY: the next call must come on another connection."""
    await answer(connection, stream)
    connection.goaway(stream)


async def rst_after_header(connection: RawConnection, stream: int) -> None:
    """Headers, then a reset."""
    connection.h2.send_headers(stream, RESPONSE)
    connection.reset(stream, NO_ERROR)


async def rst_during_data(connection: RawConnection, stream: int) -> None:
    """Half of the message, then a reset."""
    connection.h2.send_headers(stream, RESPONSE)
    await say(connection, stream, MESSAGE[: len(MESSAGE) // 2])
    connection.reset(stream, NO_ERROR)


async def rst_after_data(connection: RawConnection, stream: int) -> None:
    """The whole message, then a reset instead of trailers."""
    connection.h2.send_headers(stream, RESPONSE)
    await say(connection, stream, MESSAGE)
    connection.reset(stream, NO_ERROR)


CASES: dict[str, Answer] = {
    "goaway": goaway,
    "rst_after_header": rst_after_header,
    "rst_during_data": rst_during_data,
    "rst_after_data": rst_after_data,
    "ping": partial(answer, ping=True),
    "max_streams": answer,
}


class Scripted:
    """Runs a case's script for every request, once it is complete."""

    def __init__(self, script: Answer) -> None:
        self._script = script
        self.running = 0
        self.most = 0
        """Requests answered at the same time, at most."""
        self.tasks: set[asyncio.Task[None]] = set()

    def on_event(self, connection: RawConnection, event: h2.events.Event) -> None:
        """Of h2."""
        if isinstance(event, h2.events.StreamEnded):
            task = asyncio.get_running_loop().create_task(self._serve(connection, event.stream_id))
            self.tasks.add(task)

    async def _serve(self, connection: RawConnection, stream: int) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self._script(connection, stream)
        finally:
            self.running -= 1


async def served(case: str, port: int, server: RawServer, script: Scripted) -> str:
    """What the client made of the case: empty if it saw what it should, else its complaint."""
    status, output = await interop_client((go_tool("http2"),), port, case)
    for task in script.tasks:
        await task  # raises what the script did
    calls = {"goaway": 2, "max_streams": 16}.get(case, 1)
    assert server.requests == calls, "calls were repeated or lost"
    if case == "goaway":
        assert sum(bool(each.streams) for each in server.connections) == 2, "a call came after GOAWAY"
    if case == "max_streams":
        assert script.most == 1
    return "" if status == 0 else re.sub("0x[0-9a-f]+", "it", output.partition("FATAL: ")[2])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
async def test_a_go_client_sees_the_same_through_the_proxy(tmp_path: Path, case: str):
    settings = {MAX_CONCURRENT_STREAMS: 1} if case == "max_streams" else None
    script = Scripted(CASES[case])
    async with raw_server("direct", script.on_event, settings=settings) as server:
        direct = await served(case, server.port, server, script)
    script = Scripted(CASES[case])
    async with (
        raw_server("through", script.on_event, settings=settings) as server,
        proxy_process(tmp_path, toml({"A": server.address}, upstream={"max_connections": 1})) as proxy,
    ):
        through = await served(case, proxy.port, server, script)
    assert through == direct


def test_the_cases_are_in_the_table(record: Callable[[Row], None]):
    record(Row("gRPC negative HTTP/2, Go client", GO, len(CASES)))
