"""Signals at moments that nobody chooses: before the proxy is up, and again while it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from proxy.transport import takeover
from proxy.workers import supervisor
from tests.support.grpc_server import channel, echo_servers
from tests.support.polling import eventually
from tests.support.processes import LISTEN, alive, tcp_sockets
from tests.support.proxy_process import PATIENCE, addresses, environment, proxy_process, toml
from tests.support.workers import client_of_each, workers_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    import grpc.aio

    from tests.support.proxy_process import ProxyProcess

UNARY = "/any.Service/Unary"
BIDI = "/any.Service/Bidi"
HOUR = 3600.0

needs_workers = pytest.mark.skipif(not supervisor.SUPPORTED, reason="needs Linux: SO_REUSEPORT that spreads, pidfd")
needs_takeover = pytest.mark.skipif(not takeover.SUPPORTED, reason="needs Linux: abstract unix sockets")


class Starting:
    """A proxy that is being started. `pid` is enough for `workers_of`."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self.pid = process.pid
        self._log = log

    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    async def ended(self) -> tuple[int, str]:
        """Exit status and what it wrote to stdout."""
        async with asyncio.timeout(PATIENCE):
            stdout, _ = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, stdout.decode()


@asynccontextmanager
async def starting(directory: Path, config: Path, arguments: Sequence[str] = ()) -> AsyncIterator[Starting]:
    log = directory / "starting.stderr"
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "default", "-m", "proxy", "serve", "--config", str(config), *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            env=environment(),
        )
    try:
        yield Starting(process, log)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@asynccontextmanager
async def hanging_server() -> AsyncIterator[tuple[str, asyncio.Event]]:
    """The address of a server that takes connections and says nothing, and an event: somebody has connected."""
    connected = asyncio.Event()
    wires: list[asyncio.StreamWriter] = []

    def take(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wires.append(writer)
        connected.set()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", connected
    finally:
        for wire in wires:
            wire.close()
        server.close()
        await server.wait_closed()


def waits_for_its_checks(address: str, **tables: object) -> str:
    """A configuration whose start takes an hour."""
    health = {"kind": "grpc", "timeout": HOUR, "startup_timeout": HOUR}
    return toml({"Server-A": address}, health=health, **tables)  # type: ignore[arg-type]


def written(directory: Path, config: str) -> Path:
    file = directory / "proxy.toml"
    file.write_text(config, encoding="utf-8")
    return file


def clean(log: str) -> bool:
    return not any(word in log for word in ("ERROR", "Traceback", "Warning:", "never retrieved"))


# While it starts.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=needs_workers)])
async def test_a_signal_ends_a_start_that_waits_for_health_checks(
    tmp_path: Path, workers: int, number: signal.Signals
) -> None:
    async with hanging_server() as (address, connected):
        config = waits_for_its_checks(address, listener={"workers": workers})
        async with starting(tmp_path, written(tmp_path, config)) as proxy:
            async with asyncio.timeout(PATIENCE):
                await connected.wait()
            if workers > 1:
                await eventually(lambda: len(workers_of(proxy)) == workers, "the workers")
            started = workers_of(proxy)
            proxy.process.send_signal(number)
            assert await proxy.ended() == (0, ""), "as at a normal stop, and it was never ready"
            assert "draining: running calls have 5 s to finish" in proxy.log()
            assert clean(proxy.log()), proxy.log()
            assert not any(map(alive, started))


@needs_workers
async def test_a_signal_ends_a_start_that_waits_for_its_workers(tmp_path: Path) -> None:
    config = toml({"Server-A": "127.0.0.1:9"}, listener={"workers": 2})
    async with starting(tmp_path, written(tmp_path, config)) as proxy:
        (first, *_) = await eventually(lambda: workers_of(proxy), "a worker")
        os.kill(first, signal.SIGSTOP)
        started = await eventually(lambda: len(found := workers_of(proxy)) == 2 and found, "the other")
        proxy.process.terminate()
        assert await proxy.ended() == (0, "")
        assert clean(proxy.log()), proxy.log()
        assert isinstance(started, list)
        assert not any(map(alive, started))


@needs_takeover
async def test_a_successor_that_is_stopped_while_it_starts_leaves_the_port_and_its_file_to_the_proxy_that_has_them(
    tmp_path: Path,
) -> None:
    listener = {"address": f"unix:{tmp_path}/socket"}
    (tmp_path / "second").mkdir()
    async with (
        echo_servers("Server-A") as servers,
        proxy_process(tmp_path, toml(addresses(*servers), listener=listener)) as first,
        hanging_server() as (address, connected),
    ):
        config = written(tmp_path / "second", waits_for_its_checks(address, listener=listener))
        async with starting(tmp_path / "second", config, ["--takeover"]) as second:
            async with asyncio.timeout(PATIENCE):
                await connected.wait()
            second.process.terminate()
            assert await second.ended() == (0, "")
            assert clean(second.log()), second.log()
        assert "without taking over" in first.log()
        async with channel(first.address) as client:
            assert await client.unary_unary(UNARY)(b"body") == b"body"


@contextmanager
def written_to(descriptor: int) -> Iterator[Callable[[str], object]]:
    """Writes to the pipe, which ends with it."""
    with os.fdopen(descriptor, "w") as pipe:
        yield pipe.write


async def somebody_reads(fifo: Path) -> int:
    """The end to write to, as soon as somebody has opened the other."""

    def opened() -> int:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return 0

    return await eventually(opened, "somebody who reads")


async def test_before_there_is_anything_to_end_well_sigterm_ends_it_as_any_process(tmp_path: Path) -> None:
    config = tmp_path / "proxy.toml"
    os.mkfifo(config)  # it waits there until the test has written the configuration
    async with starting(tmp_path, config) as proxy:
        with written_to(await somebody_reads(config)):
            proxy.process.terminate()
            assert await proxy.ended() == (-signal.SIGTERM, "")


async def test_a_sighup_before_the_configuration_is_read_reloads_it_once_the_proxy_is_up(tmp_path: Path) -> None:
    config = tmp_path / "proxy.toml"
    os.mkfifo(config)
    async with starting(tmp_path, config) as proxy:
        with written_to(await somebody_reads(config)) as write:
            proxy.process.send_signal(signal.SIGHUP)
            config.unlink()
            config.write_text(toml({"Server-A": "127.0.0.1:9"}, limits={"max_calls": 7}), encoding="utf-8")
            write(toml({"Server-A": "127.0.0.1:9"}))
        await eventually(lambda: "reloaded: 1 changes" in proxy.log(), "the reload")
        assert "limits.max_calls: 100000 -> 7" in proxy.log()
        proxy.process.terminate()
        status, stdout = await proxy.ended()
        assert status == 0
        assert stdout.startswith("districhat ready on ")


@pytest.mark.parametrize("program", ["proxy.cli", "proxy.workers.__main__"])
async def test_what_takes_long_to_load_is_loaded_only_when_signals_are_seen_to(program: str) -> None:
    """pydantic and the data path take half a second; the command line has a command in a small part of it."""
    heavy = "pydantic", "uvloop", "ngh2", "grpc", "asyncio"
    program = f"import sys, {program}; print([each for each in {heavy} if each in sys.modules])"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    stdout, _ = await process.communicate()
    assert stdout == b"[]\n"


# While it ends.


@asynccontextmanager
async def running_call(proxy: ProxyProcess, worker: int) -> AsyncIterator[grpc.aio.StreamStreamCall[bytes, bytes]]:
    """A call that this worker has."""
    async with client_of_each(proxy) as clients:
        call: grpc.aio.StreamStreamCall[bytes, bytes] = clients[worker].stream_stream(BIDI)()
        await call.write(b"one")
        assert await call.read() == b"one"
        yield call


@asynccontextmanager
async def two_workers(
    directory: Path,
) -> AsyncIterator[tuple[ProxyProcess, list[int], grpc.aio.StreamStreamCall[bytes, bytes]]]:
    """A proxy with an hour for its drain, which the test ends; its workers; and a call that the first of them has."""
    async with echo_servers("Server-A") as servers:
        config = toml(addresses(*servers), listener={"workers": 2, "drain_grace": HOUR})
        async with proxy_process(directory, config) as proxy:
            workers = workers_of(proxy)
            async with running_call(proxy, workers[0]) as call:
                yield proxy, workers, call


@needs_workers
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_parent_and_workers_at_once(tmp_path: Path, number: signal.Signals) -> None:
    """However early in the drain: here a worker has not even answered that it accepts nobody any more."""
    async with two_workers(tmp_path) as (proxy, workers, _):
        os.kill(workers[1], signal.SIGSTOP)
        proxy.signal(number)
        await eventually(lambda: "draining" in proxy.log(), "the drain")
        proxy.signal(number)
        proxy.exit_status = -number
        await proxy.ended()
        await eventually(lambda: not any(map(alive, workers)), "the end of the workers")
        assert clean(proxy.log()), proxy.log()


@needs_workers
async def test_a_parent_that_is_killed_early_in_a_drain_takes_its_workers_with_it(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as (proxy, workers, _):
        proxy.expects("ResourceWarning")  # who is cut off leaves its connections to the kernel
        os.kill(workers[1], signal.SIGSTOP)  # it does not answer that it accepts nobody: the drain waits
        proxy.signal(signal.SIGTERM)
        await eventually(lambda: not tcp_sockets(workers[0], proxy.port, LISTEN), "the worker's hearing of the drain")
        proxy.signal(signal.SIGKILL)
        proxy.exit_status = -signal.SIGKILL
        await proxy.ended()
        os.kill(workers[1], signal.SIGCONT)
        await eventually(lambda: not any(map(alive, workers)), "the end of the workers")


@needs_workers
async def test_a_worker_whose_parent_is_gone_can_be_ended_by_a_signal(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as (proxy, workers, call):
        proxy.signal(signal.SIGKILL)
        proxy.exit_status = -signal.SIGKILL
        await proxy.ended()
        await eventually(lambda: "worker-0" in proxy.log() and "the parent is gone" in proxy.log(), "the news")
        await eventually(lambda: not alive(workers[1]), "the end of the worker without calls")
        await call.write(b"two")
        assert await call.read() == b"two", "its call has the grace"
        os.kill(workers[0], signal.SIGTERM)
        await eventually(lambda: not alive(workers[0]), "its end")


@needs_workers
async def test_workers_that_are_only_starting_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    config = toml({"Server-A": "127.0.0.1:9"}, listener={"workers": 2})
    async with starting(tmp_path, written(tmp_path, config)) as proxy:
        started = await eventually(lambda: workers_of(proxy), "a worker")
        proxy.process.kill()
        assert (await proxy.ended())[0] == -signal.SIGKILL
        await eventually(lambda: not any(map(alive, started)), "the end of the workers")
