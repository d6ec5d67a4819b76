"""Unary calls that h2load cannot make: each with its own chat, its own deadline, or at its own moment.

Closed loop (`connections` x `streams` calls under way at all times), or open loop with `--rate`: calls are due at the
moments of a Poisson process of a fixed seed, whether or not earlier ones have come back, and their latency counts from
the moment they were due, so that a stall is charged to every call it delayed. One thread on epoll; a timerfd, because
epoll's own timeout counts in whole milliseconds.

Run as a program (`python -m bench.load.calls --help`) it prints one line of JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import select
import socket
import struct
import sys
import time
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from bench.backends import framed
from bench.errors import BenchError
from bench.load.client import ClientConnection, literal
from bench.load.result import Latencies, LoadResult, Shape
from bench.probe import request
from bench.process import Process

if TYPE_CHECKING:
    from collections.abc import Iterator

_SEED = 20
_PREPARED = 4096
"""Different timeouts; they come round again after so many calls."""
_QUANTUM = 65_536
_GIVE_UP = 30.0
"""Seconds without a single answer."""


@dataclass(frozen=True)
class Orders:
    """What the program is told to do; the fields are its options."""

    port: int
    method: str
    shape: str
    """As h2load would: `64x1`. With `rate` only the connections count."""
    calls: int
    chats: int
    """Calls go round `chat-00000` ... of so many."""
    reply_size: int
    rate: float = 0.0
    """Calls per second; 0: as fast as answers come."""
    timeouts: bool = False
    """Send a `grpc-timeout` between 5 and 10 s, different from call to call."""
    routing_header: str = ""
    """The header that carries the chat id for a proxy that cannot read messages."""

    def arguments(self) -> list[str]:
        """The command line that says the same."""
        given = ((f"--{name.replace('_', '-')}", value) for name, value in asdict(self).items() if value)
        return [part for name, value in given for part in ([name] if value is True else [name, str(value)])]


class Generator:
    """The calls of one run."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._shape = Shape.parse(orders.shape)
        self._random = random.Random(_SEED)
        self._calls = self._prepare()
        headers = (
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", orders.method.encode()),
            (b":authority", b"127.0.0.1"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
            (b"user-agent", b"bench"),
        )
        self._connections = [ClientConnection(headers) for _ in range(self._shape.connections)]
        self._sockets = [socket.create_connection(("127.0.0.1", orders.port)) for _ in self._connections]
        self._epoll = select.epoll()
        self._by_fd = {}
        for connection, sock in zip(self._connections, self._sockets, strict=True):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(0)
            self._by_fd[sock.fileno()] = (connection, sock)
            self._epoll.register(sock.fileno(), select.EPOLLIN)
        self._left = orders.calls
        self._ended = 0

    def _prepare(self) -> Iterator[tuple[bytes, bytes]]:
        """The encoded fields and the message of one call after the other."""
        orders = self._orders
        timeouts = [b""]
        if orders.timeouts:
            values = (self._random.randrange(5_000_000, 10_000_000) for _ in range(_PREPARED))
            timeouts = [literal(b"grpc-timeout", b"%du" % value) for value in values]
        chats = [f"chat-{number:05}" for number in range(orders.chats)]
        bodies = [framed(request(chat)) for chat in chats]
        header = orders.routing_header.encode()
        routing = [literal(header, chat.encode()) if header else b"" for chat in chats]
        pairs = list(zip(routing, bodies, strict=True))
        self._random.shuffle(pairs)
        return ((timeout + field, body) for timeout, (field, body) in zip(cycle(timeouts), cycle(pairs), strict=False))

    def run(self) -> LoadResult:
        """Make all calls and wait for their end."""
        for connection, sock in self._by_fd.values():
            self._send(connection, sock, b"")
        self._settle()
        start = time.perf_counter()
        if self._orders.rate:
            self._open_loop(start)
        else:
            self._closed_loop()
        seconds = time.perf_counter() - start
        latencies = sorted(each for connection in self._connections for each in connection.latencies)
        whole = sum(connection.data_bytes for connection in self._connections) // self._orders.reply_size
        failed = self._orders.calls - min(len(latencies), whole, self._orders.calls)
        return LoadResult(self._orders.calls, failed, seconds, percentiles(latencies))

    def _settle(self) -> None:
        """Until every connection has the proxy's SETTINGS and has acknowledged them."""
        waiting = set(self._by_fd)
        until = time.perf_counter() + _GIVE_UP
        while waiting and time.perf_counter() < until:
            for fd, _ in self._epoll.poll(1.0):
                self._receive(fd)
                waiting.discard(fd)

    def _closed_loop(self) -> None:
        for connection, sock in self._by_fd.values():
            self._begin(connection, sock, min(self._shape.streams, self._left))
        while self._ended < self._orders.calls:
            ready = self._epoll.poll(_GIVE_UP)
            if not ready:
                raise BenchError(f"no answer for {_GIVE_UP:.0f} s")
            for fd, _ in ready:
                ended = self._receive(fd)
                if ended and self._left:
                    self._begin(*self._by_fd[fd], min(ended, self._left))

    def _begin(self, connection: ClientConnection, sock: socket.socket, count: int) -> None:
        self._left -= count
        now = time.perf_counter()
        calls = self._calls
        self._send(connection, sock, b"".join([connection.call(*next(calls), now) for _ in range(count)]))

    def _open_loop(self, start: float) -> None:
        timer = _Timer()
        self._epoll.register(timer.fd, select.EPOLLIN)
        turn = cycle(self._by_fd.values())
        due = start
        calls, draw, rate = self._calls, self._random.expovariate, self._orders.rate
        while self._ended < self._orders.calls:
            now = time.perf_counter()
            while self._left and due <= now:
                connection, sock = next(turn)
                self._left -= 1
                self._send(connection, sock, connection.call(*next(calls), due))
                due += draw(rate)
            if self._left:
                timer.set(due - time.perf_counter())
            ready = self._epoll.poll(_GIVE_UP)
            if not ready:
                raise BenchError(f"no answer for {_GIVE_UP:.0f} s")
            for fd, _ in ready:
                if fd == timer.fd:
                    timer.clear()
                else:
                    self._receive(fd)
        timer.close()

    def _receive(self, fd: int) -> int:
        connection, sock = self._by_fd[fd]
        data = sock.recv(_QUANTUM)
        if not data:
            raise BenchError(f"the proxy closed a connection with {len(connection.running)} calls under way")
        ended = connection.received(data, time.perf_counter())
        self._ended += ended
        if connection.out:
            self._send(connection, sock, b"")
        return ended

    def _send(self, connection: ClientConnection, sock: socket.socket, data: bytes) -> None:
        if connection.out:
            data = connection.out + data
            connection.out = b""
        try:
            sent = sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):  # the proxy reads too slowly; what is under way is bounded, so this ends
            sock.settimeout(_GIVE_UP)
            sock.sendall(data[sent:])
            sock.settimeout(0)

    def close(self) -> None:
        """Close all connections."""
        self._epoll.close()
        for sock in self._sockets:
            sock.close()


class _Timer:
    """A timerfd(2), which Python has from 3.13 on."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd: int = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    def set(self, seconds: float) -> None:
        """Become readable once, so many seconds from now."""
        nanoseconds = max(1, int(seconds * 1e9))
        value = struct.pack("@llll", 0, 0, *divmod(nanoseconds, 1_000_000_000))  # struct itimerspec
        self._libc.timerfd_settime(self.fd, 0, value, None)

    def clear(self) -> None:
        """Not readable any more."""
        os.read(self.fd, 8)

    def close(self) -> None:
        """Free it."""
        os.close(self.fd)


def percentiles(ordered: list[float]) -> Latencies | None:
    """Of latencies in ascending order, by nearest rank; None of none."""
    if not ordered:
        return None
    count = len(ordered)
    return Latencies(*(ordered[min(count - 1, int(count * share))] for share in (0.5, 0.99, 0.999)))


def run(orders: Orders, cpus: frozenset[int], log: Path, timeout: float) -> LoadResult:
    """Carry out `orders` in a process of its own on `cpus`. BenchError if it fails or sticks."""
    command = [sys.executable, "-m", "bench.load.calls", *orders.arguments()]
    with Process("load generator", command, cpus, log) as process:
        code = process.wait(timeout)
        output = process.output().strip()
    if code:
        raise BenchError(f"the load generator failed: {output[-500:]}")
    result = json.loads(output.splitlines()[-1])
    latencies = result.pop("latencies")
    return LoadResult(**result, latencies=Latencies(**latencies) if latencies else None)


def main() -> int:
    """The program: options in, a line of JSON out, 1 with a line on stderr if it could not be done."""
    parser = argparse.ArgumentParser(prog="python -m bench.load.calls", description=__doc__.partition("\n")[0])
    for name in ("port", "calls", "chats", "reply-size"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--method", required=True)
    parser.add_argument("--shape", required=True, metavar="CxS")
    parser.add_argument("--rate", type=float, default=0.0, metavar="PER_SECOND")
    parser.add_argument("--timeouts", action="store_true")
    parser.add_argument("--routing-header", default="", metavar="NAME")
    orders = Orders(**vars(parser.parse_args()))
    try:
        generator = Generator(orders)
        try:
            result = generator.run()
        finally:
            generator.close()
    except (BenchError, OSError) as error:
        print(f"bench.load.calls: {error}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
