"""What much of everything costs: connections, streams, servers, collected garbage, and what a second worker brings.

    make bench-scale                       everything: about three minutes
    make bench-scale ARGS="streams gc"     some of it

Memory is what the kernel counts (PSS of the proxy and its workers), before and after, divided by how many there are.
Load, backends and proxy share the machine's cores, so calls per second are those of the whole arrangement; CPU per call
is the proxy's own. Exit code: 0 measured; 1 something did not work; 2 usage, or a program is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final, TypeVar

from bench import backends
from bench.backends import METHOD, framed
from bench.cpu import cpu_ns, memory_mib
from bench.errors import BenchError, UsageError
from bench.load import calls
from bench.load.calls import Orders
from bench.load.client import ClientConnection, frame
from bench.load.result import Latencies, LoadResult
from bench.options import carry_out, number, progress
from bench.probe import request
from bench.process import Process, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_READY_WITHIN: Final = 60.0
_PATIENCE: Final = 30.0
_MIB: Final = 1_048_576
_WATCHED: Final = """
import atexit, gc, json, sys, time
import proxy.memory
from proxy.cli import main

settle, pauses, begun = proxy.memory.settle, [], [0.0]

def watch(phase, info):
    if phase == "start":
        begun[0] = time.thread_time()
    else:
        pauses.append(time.thread_time() - begun[0])

def start():
    TUNED and settle()
    gc.callbacks.append(watch)

proxy.memory.settle = start
atexit.register(lambda: print("pauses", json.dumps(pauses), flush=True))
sys.exit(main())
"""
"""The proxy, with its collections timed from the moment on when it is up: in CPU time, which a busy machine does not
stretch."""
_HEADERS: Final = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", METHOD.encode()),
    (b":authority", b"127.0.0.1"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
)


class _OpenStreams(ClientConnection):
    """A client whose calls send their first message, and no end."""

    def open(self, body: bytes) -> bytes:
        """The bytes of one more."""
        stream = self.next_stream
        self.next_stream += 2
        fields, self._block = self._block, self._short_block
        return frame(1, 0x4, stream, fields) + frame(0, 0, stream, body)


_T = TypeVar("_T", bound=ClientConnection)


@dataclass(frozen=True)
class Running:
    """A proxy."""

    process: Process
    port: int
    admin: int

    def active(self) -> int:
        """Calls that it has under way."""
        return int(self._ask("/api/endpoints")["active_calls"])

    def memory(self) -> float:
        """MiB, once it has come to rest."""
        time.sleep(0.5)
        return memory_mib(self.process.pid)

    def _ask(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=_PATIENCE) as answer:
            return json.load(answer)


class Bench:
    """All measurements of one run, with the backends they share."""

    def __init__(self, servers: backends.Backends, directory: Path, rounds: int) -> None:
        self._servers = servers
        self._directory = directory
        self._rounds = rounds
        self._cpus = frozenset(os.sched_getaffinity(0))
        self._number = 0

    @contextlib.contextmanager
    def proxy(self, *, workers: int = 1, endpoints: int = 3, tuned: bool | None = None) -> Iterator[Running]:
        """A proxy in front of the backends, `endpoints` names for them. `tuned`: with its collections timed, and our
        settings of the collector or not.
        """
        self._number += 1
        port, admin = free_port(), free_port()
        config = self._directory / f"proxy-{self._number}.toml"
        config.write_text(self._config(port, admin, workers, endpoints), encoding="utf-8")
        program = ["-m", "proxy"] if tuned is None else ["-c", _WATCHED.replace("TUNED", str(tuned))]
        command = [sys.executable, *program, "serve", "--config", str(config)]
        log = self._directory / f"proxy-{self._number}.log"
        with Process("districhat", command, self._cpus, log) as process:
            process.wait_ready(port, "districhat ready on", _READY_WITHIN)
            yield Running(process, port, admin)
            process.check_alive()

    def _config(self, port: int, admin: int, workers: int, endpoints: int) -> str:
        listener = f'[listener]\naddress = "127.0.0.1:{port}"\nworkers = {workers}\n'
        # Room for all at once: the streams come in one burst, before there are connections for them.
        limits = "max_connections = 20_000\nmax_connections_per_client = 20_000\n[upstream]\nmax_waiting = 10_000\n"
        names = (
            f'[[endpoints]]\nid = "bench-{index + 1}"\naddress = "{self._servers.addresses[index % 3]}"\n'
            for index in range(endpoints)
        )
        return f'{listener}{limits}[admin]\naddress = "127.0.0.1:{admin}"\n{"".join(names)}'

    def orders(self, proxy: Running, shape: str, count: int, rate: float = 0.0) -> Orders:
        """Calls of 1,000 chats."""
        return Orders(proxy.port, METHOD, shape, count, 1000, self._servers.reply_sizes[METHOD], rate)

    def load(self, orders: Orders) -> LoadResult:
        """Carry them out. BenchError if one fails."""
        result = calls.run(orders, self._cpus, self._directory / "load.log", 120.0)
        if result.failed:
            raise BenchError(f"{result.failed} of {result.calls} calls failed")
        return result

    # The measurements.

    def connections(self, count: int) -> list[str]:
        """Idle client connections."""
        with self.proxy() as proxy, _clients(proxy.port, 100, ClientConnection):
            before = proxy.memory()
            with _clients(proxy.port, count, ClientConnection):
                after = proxy.memory()
                busy = self._idle_share(proxy)
        each = (after - before) * _MIB / count
        return [f"{count:,} idle connections: {each:,.0f} bytes each, {after:.0f} MiB in all, {busy:.1%} of a core"]

    def streams(self, count: int) -> list[str]:
        """Streams that wait for their client, over connections of 100."""
        with self.proxy() as proxy, _clients(proxy.port, -(-count // 100), _OpenStreams) as clients:
            before = proxy.memory()
            for index, (connection, sock) in enumerate(clients):
                body = framed(request(f"chat-{index:05}"))
                sock.sendall(b"".join(connection.open(body) for _ in range(100)))
            _until(lambda: proxy.active() >= count, f"{count} streams")
            after = proxy.memory()
        each = (after - before) * _MIB / count
        return [f"{count:,} streams: {each:,.0f} bytes each, {after:.0f} MiB in all"]

    def endpoints(self, count: int) -> list[str]:
        """Servers: the start, memory, checks, and what a reload does to calls."""
        with self.proxy() as few:
            small = few.memory()
        begun = time.perf_counter()
        with self.proxy(endpoints=count) as proxy:
            seconds = time.perf_counter() - begun
            time.sleep(3.0)  # until the first checks are over
            each = (proxy.memory() - small) * _MIB / count
            busy = self._idle_share(proxy)
            quiet = self.load(self.orders(proxy, "32x1", 3000, 1000.0)).latencies
            stirred = self._during_a_reload(proxy, count)
        first = f"{count:,} endpoints: ready in {seconds:.1f} s, {each:,.0f} bytes each (connection included)"
        return [
            f"{first}, checks take {busy:.1%} of a core",
            f"  calls without a reload: {_shown(quiet)}",
            f"  calls while one endpoint is added: {_shown(stirred)}",
        ]

    def _during_a_reload(self, proxy: Running, count: int) -> Latencies | None:
        config = self._directory / f"proxy-{self._number}.toml"
        orders = self.orders(proxy, "32x1", 3000, 1000.0)
        command = [sys.executable, "-m", "bench.load.calls", *orders.arguments()]
        with Process("load generator", command, self._cpus, self._directory / "load.log") as load:
            time.sleep(1.0)
            config.write_text(self._config(proxy.port, proxy.admin, 1, count + 1), encoding="utf-8")
            proxy.process.signal(signal.SIGHUP)
            if load.wait(60.0):
                raise BenchError(f"the load generator failed: {load.output()[-500:]}")
            result = json.loads(load.output().splitlines()[-1])
        _until(lambda: "snapshot 2" in proxy.process.output(), "the reload")
        if result["failed"]:
            raise BenchError(f"{result['failed']} calls failed during a reload")
        return Latencies(**result["latencies"])

    def gc(self, count: int) -> list[str]:
        """Latencies at a fixed rate, and collections, with Python's own settings of the garbage collector and ours."""
        found: dict[bool, list[Latencies]] = {False: [], True: []}
        with (
            self.proxy(tuned=False) as plain,
            self.proxy(tuned=True) as ours,
            _clients(plain.port, count, ClientConnection),
            _clients(ours.port, count, ClientConnection),
        ):
            for _ in range(self._rounds):
                for tuned, proxy in ((False, plain), (True, ours)):
                    latencies = self.load(self.orders(proxy, "64x1", 6000, 2000.0)).latencies
                    if latencies is not None:
                        found[tuned].append(latencies)
            seconds = 3.0 * self._rounds
        head = f"garbage collector, 2,000 calls/s beside {count:,} idle connections, medians of {self._rounds}:"
        names = {False: "Python's settings", True: "frozen after the start, larger thresholds"}
        pauses = {False: _pauses(plain, seconds), True: _pauses(ours, seconds)}
        return [
            head,
            *(f"  {names[tuned]}: {_shown(_medians(each))}; {pauses[tuned]}" for tuned, each in found.items()),
        ]

    def workers(self, count: int) -> list[str]:
        """Calls per second and CPU per call of one worker and of `count`."""
        cpu: dict[int, list[float]] = {1: [], count: []}
        pace: dict[int, list[float]] = {1: [], count: []}
        with self.proxy() as one, self.proxy(workers=count) as many:
            for proxy in (one, many):
                self.load(self.orders(proxy, "64x1", 5000))
            for _ in range(self._rounds):
                for workers, proxy in ((1, one), (count, many)):
                    before = cpu_ns(proxy.process.pid)
                    result = self.load(self.orders(proxy, "64x1", 30_000))
                    cpu[workers].append((cpu_ns(proxy.process.pid) - before) / 1000 / result.calls)
                    pace[workers].append(result.calls / result.seconds)
        lines = [
            f"{workers} worker{'s' if workers > 1 else ''}: {median(cpu[workers]):.1f} us of CPU per call "
            f"({min(cpu[workers]):.1f}-{max(cpu[workers]):.1f}), {median(pace[workers]):,.0f} calls/s with load and "
            "backends on the same cores"
            for workers in (1, count)
        ]
        gain = count * median(cpu[1]) / median(cpu[count])
        return [*lines, f"  on {count} cores of their own, by CPU per call: {gain:.2f} times the calls of one"]

    def _idle_share(self, proxy: Running) -> float:
        """Of one core, while nothing happens."""
        begun, before = time.perf_counter(), cpu_ns(proxy.process.pid)
        time.sleep(4.0)
        return (cpu_ns(proxy.process.pid) - before) / 1e9 / (time.perf_counter() - begun)


@contextlib.contextmanager
def _clients(port: int, count: int, kind: type[_T]) -> Iterator[list[tuple[_T, socket.socket]]]:
    """Clients that have exchanged SETTINGS with the proxy."""
    clients: list[tuple[_T, socket.socket]] = []
    try:
        for _ in range(count):
            connection = kind(_HEADERS)
            sock = socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE)
            clients.append((connection, sock))
            sock.sendall(connection.out)
            connection.out = b""
        for connection, sock in clients:
            while not connection.out:  # the acknowledgement of the proxy's SETTINGS
                data = sock.recv(4096)
                if not data:
                    raise BenchError("the proxy closed an idle connection")
                connection.received(data, 0.0)
            sock.sendall(connection.out)
        yield clients
    finally:
        for _, sock in clients:
            sock.close()


def _pauses(proxy: Running, seconds: float) -> str:
    """What the collections of a proxy that has ended took."""
    pauses = json.loads(proxy.process.output().rpartition("pauses ")[2])
    share = sum(pauses) / seconds
    longest = max(pauses, default=0) * 1000
    return f"{len(pauses)} collections, {share:.2%} of a core, the longest {longest:.1f} ms of CPU"


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"{what}: not there after {_PATIENCE:.0f} s")
        time.sleep(0.1)


def _medians(found: Sequence[Latencies]) -> Latencies | None:
    if not found:
        return None
    return Latencies(*(median(getattr(each, name) for each in found) for name in ("p50", "p99", "p999")))


def _shown(latencies: Latencies | None) -> str:
    if latencies is None:
        return "no figures"
    p50, p99, p999 = (each * 1000 for each in (latencies.p50, latencies.p99, latencies.p999))
    return f"p50 {p50:.2f} ms, p99 {p99:.2f} ms, p99.9 {p999:.2f} ms"


_SIZES: Final = {"connections": 10_000, "streams": 5_000, "endpoints": 1_000, "gc": 2_000, "workers": 2}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"of {', '.join(_SIZES)}; default: all")
    parser.add_argument("--rounds", type=number(int, 1, 100), default=5, help="of gc and workers (default: 5)")
    parser.add_argument("--scale", type=number(float, 0.001, 10), default=1.0, help="of the numbers above (default: 1)")
    options = parser.parse_args(arguments)
    return carry_out("bench.scale", lambda: _run(options.what or list(_SIZES), options.rounds, options.scale))


def _run(wanted: Sequence[str], rounds: int, scale: float) -> int:
    if unknown := [each for each in wanted if each not in _SIZES]:
        raise UsageError(f"unknown: {', '.join(unknown)}; there are: {', '.join(_SIZES)}")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    nghttpd = shutil.which("nghttpd")
    if nghttpd is None:
        raise UsageError("nghttpd is not installed: apt-get install nghttp2-server")
    with tempfile.TemporaryDirectory(prefix="bench-scale-") as name:
        directory = Path(name)
        with backends.running(nghttpd, directory, frozenset(os.sched_getaffinity(0))) as servers:
            bench = Bench(servers, directory, rounds)
            for what in wanted:
                progress(f"{what} ...")
                size = _SIZES[what] if what == "workers" else max(3, round(_SIZES[what] * scale))
                for line in getattr(bench, what)(size):
                    print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
