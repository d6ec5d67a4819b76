"""The recorded streams against a proxy process: uvloop, real sockets, the production listener and pools, many at once.

Every stream comes whole, and cut at random places. A call that a recorded server answers must end; the calls beside it
must go well; and of all of it nothing may be left. What the proxy has to say is what it says in memory.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, cast

import grpc
import grpc.aio
import hpack
import pytest

from tests.conformance.memory import replay_client, replay_server
from tests.conformance.replays import CLIENT_STREAMS, SERVER_STREAMS, random_cut, streams
from tests.conformance.table import Row
from tests.conformance.verdicts import SANE, verdict
from tests.support.admin import admin_of, samples
from tests.support.frames import EMPTY_SETTINGS, HEADERS, frames
from tests.support.grpc_server import channel, echo_servers
from tests.support.messages import keyed
from tests.support.polling import PATIENCE, eventually_answers, settled
from tests.support.proxy_process import proxy_process, toml

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.proxy_process import ProxyProcess, Table

Cut = Callable[[str, bytes], Iterable[bytes]]

LANES = 8
"""Streams at a time."""
SOON = 1.0
"""Seconds for the proxy to say what it says in memory, before its peer hangs up."""
ONE_READ = 32_768
"""Bytes that one write brings over loopback in one piece."""
PAUSE = 0.0005
"""Seconds between two pieces, so that they seldom arrive together."""
ADMIN: Table = {"address": "127.0.0.1:0"}
METHOD = "/chat.ChatService/PostMessage"
REPLAY = "x-replay"
"""Metadata that names the stream by which the call is to be answered."""
LEFT = ("active_calls", "downstream_streams", "upstream_streams", "buffered_bytes", "active_repeats")
"""What is zero when all calls are over."""

CUTS: dict[str, Cut] = {
    "whole": lambda _, data: (data,),
    "cut": random_cut,
    "cut otherwise": lambda name, data: random_cut(name + " otherwise", data),
}
"""Into which pieces; the name of a stream decides where it is cut."""


@dataclass(frozen=True)
class Replay:
    """A stream, and how it comes."""

    cut: str
    name: str

    def pieces(self) -> Iterable[bytes]:
        """What is sent, one after another."""
        return CUTS[self.cut](self.name, streams(self.name)[self.name])


def replays(*prefixes: str) -> list[Replay]:
    """All streams whose names begin so, in all ways."""
    return [Replay(cut, name) for name in streams(*prefixes) for cut in CUTS]


@cache
def in_memory(name: str) -> str:
    """The verdict that test_replays.py holds against the peers', as these tests can tell it: they hang up themselves,
    so it makes no difference to them whether the proxy closed.
    """
    replay = replay_client if name.startswith(tuple(CLIENT_STREAMS)) else replay_server
    found = replay(streams(name)[name])
    return "none" if found == "closed" else found


class Replayer(asyncio.Protocol):
    """One end of a connection that says what was recorded, and keeps what it gets."""

    def __init__(self) -> None:
        self.got = b""
        self.transport: asyncio.WriteTransport
        self._changed = asyncio.Event()
        self._over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        # Not isinstance: uvloop's transports have the interface, but not the base class.
        self.transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        """Keep it."""
        self.got += data
        self._changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """The proxy has hung up too."""
        self._over = True
        self._changed.set()

    async def say(self, replay: Replay) -> str:
        """Say everything, hang up once the proxy has said what it should, or not, and return its verdict when it has
        hung up too.
        """
        for piece in replay.pieces():
            if self.transport.is_closing():
                break
            self.transport.write(piece)
            await asyncio.sleep(PAUSE)
        with suppress(TimeoutError):
            await self._until(lambda: self.verdict == in_memory(replay.name), SOON)
        if not self.transport.is_closing():
            self.transport.write_eof()
        await self._until(lambda: False, PATIENCE)
        return self.verdict

    async def _until(self, condition: Callable[[], bool], patience: float) -> None:
        async with asyncio.timeout(patience):
            while not (self._over or condition()):
                self._changed.clear()
                await self._changed.wait()

    @property
    def verdict(self) -> str:
        """What the proxy thinks of it so far."""
        return verdict(self.got, closed=False)


class RecordedServer(Replayer):
    """Says SETTINGS, and answers the first request with the stream that it names."""

    def __init__(self, recordings: Recordings) -> None:
        super().__init__()
        self._recordings = recordings
        self._asked = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The proxy has connected."""
        super().connection_made(transport)
        self.transport.write(EMPTY_SETTINGS)

    def data_received(self, data: bytes) -> None:
        """Look for a request."""
        super().data_received(data)
        if self._asked:
            return
        for kind, _, _, payload in frames(self.got):
            if kind == HEADERS:
                self._asked = True
                cut, _, name = str(dict(hpack.Decoder().decode(payload))[REPLAY]).partition(": ")
                self._recordings.begin(Replay(cut, name), self)
                return


class Recordings:
    """What recorded servers say to one proxy, and what it says of that."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self.begun: dict[Replay, asyncio.Task[str]] = {}
        """Those that calls have met -> the verdict, once the connection has ended."""

    def connection(self) -> RecordedServer:
        """For a connection of the proxy's."""
        return RecordedServer(self)

    def begin(self, replay: Replay, server: RecordedServer) -> None:
        """A call is there that wants this stream."""
        self.begun[replay] = self._tasks.create_task(server.say(replay))


@asynccontextmanager
async def recorded_servers(recordings: Recordings) -> AsyncIterator[dict[str, str]]:
    """As many as there are lanes, listening: id -> address."""
    loop = asyncio.get_running_loop()
    listening = [await loop.create_server(recordings.connection, "127.0.0.1", 0) for _ in range(LANES)]
    ports = [each.sockets[0].getsockname()[1] for each in listening]
    try:
        yield {str(port): f"127.0.0.1:{port}" for port in ports}
    finally:
        for each in listening:
            each.close()


def wrong(verdicts: dict[Replay, str]) -> dict[Replay, str]:
    """Those verdicts that are not what they are in memory, if the stream arrived as it does there: in one read. With
    pieces the answer to one may come before the next, or not, as the kernel pleases; then the verdict must make sense.
    """
    found = {}
    for replay, told in verdicts.items():
        at_once = replay.cut == "whole" and len(streams(replay.name)[replay.name]) <= ONE_READ
        if told != in_memory(replay.name) if at_once else told not in SANE:
            found[replay] = told
    return found


async def ask(client: grpc.aio.Channel, key: str, replay: Replay | None = None) -> grpc.StatusCode:
    """How a call ended. `replay`: what is to answer it. Fails the test if it does not end."""
    metadata = ((REPLAY, f"{replay.cut}: {replay.name}"),) if replay else None
    calling = client.unary_stream(METHOD)(keyed(key), metadata=metadata)
    async with asyncio.timeout(PATIENCE):
        with suppress(grpc.aio.AioRpcError):
            async for _ in calling:
                pass
        code: grpc.StatusCode = await calling.code()
        return code


async def metrics(proxy: ProxyProcess) -> dict[str, float]:
    """Name of a sample, without `districhat_` -> the sum over its labels."""
    found: defaultdict[str, float] = defaultdict(float)
    async with admin_of(proxy) as admin:
        for sample in await samples(admin):
            found[sample.name.removeprefix("districhat_")] += sample.value
    return found


async def descriptors(proxy: ProxyProcess) -> int:
    """Files and sockets that it has open, but for those to servers: a recorded stream limit may make them more."""
    found = proxy.descriptors()
    return found - round((await metrics(proxy))["upstream_connections"])


@asynccontextmanager
async def undisturbed(proxy: ProxyProcess, key: str, *, connections: int) -> AsyncIterator[None]:
    """Meanwhile a client of its own calls, again and again, the good server that owns `key`: every call must succeed.

    In the end the proxy must hold no more than before. `connections`: those that clients open meanwhile, if they are
    grpcio's: one more means that the proxy broke one.
    """
    over = asyncio.Event()
    calls = 0

    async def call_on(client: grpc.aio.Channel) -> None:
        nonlocal calls
        while not over.is_set():
            assert await ask(client, key) is grpc.StatusCode.OK
            calls += 1

    async with channel(proxy.address) as client:
        assert await ask(client, key) is grpc.StatusCode.OK
        await settled(proxy.descriptors, "the proxy's descriptors")
        held = await descriptors(proxy)
        before = (await metrics(proxy))["downstream_connections_total"]
        async with asyncio.TaskGroup() as group:
            group.create_task(call_on(client))
            try:
                yield
            finally:
                over.set()
        assert calls

        async def as_before() -> bool:
            return await descriptors(proxy) == held

        await eventually_answers(as_before, "the end of every connection")
        after = await metrics(proxy)
        assert after["downstream_connections_total"] == before + connections
        assert {name: after[name] for name in LEFT} == dict.fromkeys(LEFT, 0)
        assert await ask(client, key) is grpc.StatusCode.OK


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_every_recorded_server_ends_its_call_and_disturbs_no_other(
    tmp_path: Path, record: Callable[[Row], None]
) -> None:
    """An unmodified client calls servers that answer with recorded bytes, and beside them one that is well."""
    waiting = replays(*SERVER_STREAMS)
    cases = len(waiting)
    async with (
        asyncio.TaskGroup() as tasks,
        echo_servers("good") as (good,),
        recorded_servers(recordings := Recordings(tasks)) as recorded,
    ):
        endpoints = {**recorded, good.id: good.address}
        # A chat may fail as often as it likes, and so may a server.
        outlier: Table = {"consecutive_failures": 0, "quarantine_time": 0}
        async with proxy_process(tmp_path, toml(endpoints, outlier=outlier, admin=ADMIN)) as proxy:

            async def one_after_another(client: grpc.aio.Channel, key: str) -> None:
                while waiting:
                    replay = waiting.pop()
                    async with asyncio.timeout(PATIENCE):
                        while replay not in recordings.begun:  # a call refused elsewhere may be in its way for a while
                            await ask(client, key, replay)
                    await recordings.begun[replay]

            async with (
                undisturbed(proxy, proxy.key_of(good.id), connections=1),
                channel(proxy.address) as client,
                asyncio.TaskGroup() as lanes,
            ):
                for server in recorded:
                    lanes.create_task(one_after_another(client, proxy.key_of(server)))
    verdicts = {replay: task.result() for replay, task in recordings.begun.items()}
    assert len(verdicts) == cases
    assert not wrong(verdicts)
    record(Row("replay of server streams over TCP", "gRPC 1.51.1", cases))


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_every_recorded_client_is_answered_and_disturbs_no_other(
    tmp_path: Path, record: Callable[[Row], None]
) -> None:
    """Their bytes come to the listener, beside an unmodified client."""
    loop = asyncio.get_running_loop()
    waiting = replays(*CLIENT_STREAMS)
    cases = len(waiting)
    verdicts: dict[Replay, str] = {}
    async with echo_servers("good") as (good,):
        config = toml({good.id: good.address}, admin=ADMIN)
        async with proxy_process(tmp_path, config) as proxy:

            async def one_after_another() -> None:
                while waiting:
                    replay = waiting.pop()
                    _, client = await loop.create_connection(Replayer, "127.0.0.1", proxy.port)
                    verdicts[replay] = await client.say(replay)

            async with undisturbed(proxy, "chat", connections=cases), asyncio.TaskGroup() as lanes:
                for _ in range(LANES):
                    lanes.create_task(one_after_another())
    assert len(verdicts) == cases
    assert not wrong(verdicts)
    record(Row("replay of client streams over TCP", "nghttp2 1.52.0, gRPC 1.51.1", cases))
