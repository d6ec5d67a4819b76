"""Recorded and fuzzed byte streams against a proxy in memory.

What must hold for each is in `replay_client` and `replay_server`: no exception, no bug reported, nothing left behind,
the next good call served. Here: that the verdict does not depend on how TCP cuts the bytes, and is that of Envoy or of
nghttp2 on the same bytes, but for the streams in data/differences.txt. `python -m tests.conformance.peers` asks the
peers again.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conformance.memory import replay_client, replay_server
from tests.conformance.peers import known
from tests.conformance.replays import CLIENT_STREAMS, SERVER_STREAMS, random_cut, streams
from tests.conformance.table import Row
from tests.conformance.verdicts import PREFACE
from tests.support.grpc_server import echo_servers
from tests.support.messages import framed, keyed
from tests.support.polling import PATIENCE, eventually, settled
from tests.support.proxy_process import proxy_process, toml
from tests.support.raw_http2 import raw_client

if TYPE_CHECKING:
    from collections.abc import Callable

DIFFERENCES = Path(__file__).parent / "data" / "differences.txt"

LANES = 16
"""Connections at a time, over TCP."""

SANE = {
    "none",
    "closed",
    "GOAWAY PROTOCOL_ERROR",
    "GOAWAY FRAME_SIZE_ERROR",
    "GOAWAY COMPRESSION_ERROR",
    "GOAWAY FLOW_CONTROL_ERROR",
    "GOAWAY STREAM_CLOSED",
    "GOAWAY ENHANCE_YOUR_CALM",
    "RST PROTOCOL_ERROR",
    "RST CANCEL",
    "RST REFUSED_STREAM",
    "RST FLOW_CONTROL_ERROR",
    "RST STREAM_CLOSED",
}
"""INTERNAL_ERROR is not: nothing that a peer sends is a bug of ours."""
UNTOLD = {"closed", "GOAWAY PROTOCOL_ERROR"}
"""Before the preface both are said: which, depends on whether enough of an HTTP/1 method has come to see it as such."""

SUITES = {
    "nghttp2/": ("replay of client streams, nghttp2", 133 + 3),
    "grpc/client-streams/": ("replay of client streams, gRPC", 497),
    "grpc/server-streams/": ("replay of server streams, gRPC", 742),
}


def differences() -> dict[tuple[str, ...], str]:
    """Name, our verdict, Envoy's, nghttp2's -> the reason."""
    lines = DIFFERENCES.read_text(encoding="utf-8").splitlines()
    entries = [line.split(" | ") for line in lines if line and not line.startswith("#")]
    return {tuple(entry[:4]): entry[4] for entry in entries}


@pytest.mark.slow
@pytest.mark.parametrize("prefix", SUITES)
def test_a_recorded_stream_is_survived_and_judged_alike_however_it_is_cut(prefix: str, record: Callable[[Row], None]):
    replay = replay_client if prefix in CLIENT_STREAMS else replay_server
    peers, reviewed = known(), differences()
    differing = []
    for name, data in streams(prefix).items():
        try:
            found = replay(data)
            again = replay(data, partial(random_cut, name))
            replay(data, partial(random_cut, name + " paced"), paced=True)
        except Exception as error:
            error.add_note(f"stream {name}")
            raise
        assert found in SANE, name
        assert again == found or ({again, found} == UNTOLD and not data.startswith(PREFACE)), name
        if found not in peers[name]:
            why = reviewed.pop((name, found, *peers[name]), None)
            assert why, f"{name}: ours is {found}, Envoy's and nghttp2's {peers[name]}, and nobody said why"
            differing.append((name, why))
    assert not [entry for entry in reviewed if entry[0].startswith(prefix)], "differences that are none"
    suite, cases = SUITES[prefix]
    assert len(streams(prefix)) == cases
    source = (CLIENT_STREAMS | SERVER_STREAMS)[prefix]
    record(Row(suite, source, cases, tuple(differing), reasons_in="tests/conformance/data/differences.txt"))


@pytest.mark.slow
async def test_every_clients_stream_over_tcp_leaves_a_running_proxy_in_good_order(tmp_path: Path):
    """The same bytes by uvloop and sockets: in the end no bug was logged, no descriptor is left, and calls work."""
    waiting = list(streams(*CLIENT_STREAMS).values())

    async def one_after_another(port: int) -> None:
        while waiting:
            await say(port, waiting.pop())

    async with (
        echo_servers("A") as (server,),
        proxy_process(tmp_path, toml({"A": server.address})) as proxy,
    ):
        await good_call(proxy.port)
        # Of the calls before, one connection stays: the one to the server.
        descriptors = await settled(proxy.descriptors, "the proxy's descriptors")
        async with asyncio.TaskGroup() as group:
            for _ in range(LANES):
                group.create_task(one_after_another(proxy.port))
        await eventually(lambda: proxy.descriptors() == descriptors, "every connection's end")
        await good_call(proxy.port)


async def good_call(port: int) -> None:
    """A call that must be answered."""
    async with raw_client(port) as client:
        stream = client.request("/any.Service/Unary")
        client.send(stream, framed(keyed("chat")), end=True)
        assert (await client.over(stream)).status == b"0"


async def say(port: int, data: bytes) -> None:
    """Send everything, half-close, and read to the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with suppress(ConnectionError):
        writer.write(data)
        writer.write_eof()
        async with asyncio.timeout(PATIENCE):
            await reader.read()
    writer.transport.abort()
