"""One run of load through a proxy: h2load, and how its report is read.

h2load sends one body only, and the chat id is in the body. So a run is several h2load side by side, one for each
chat and so for each backend, which share the connections and calls of the shape: 8 connections are 3 + 3 + 2.
"""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.backends import framed
from bench.errors import BenchError
from bench.probe import request
from bench.process import Process

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

RUN_TIMEOUT = 120.0
"""Seconds one run may take before it counts as stuck."""


@dataclass(frozen=True)
class Shape:
    """How the same number of calls arrives: over how many connections, how many at a time on each."""

    connections: int
    streams: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read `8x32`. ValueError for anything else, and for fewer connections than there are backends."""
        match = re.fullmatch(r"([0-9]{1,4})x([0-9]{1,4})", text)
        if not match:
            raise ValueError(f"expected CONNECTIONSxSTREAMS such as 8x32, got {text!r}")
        shape = cls(int(match[1]), int(match[2]))
        if shape.connections < 3 or shape.streams < 1:
            raise ValueError(f"at least 3 connections (one for each chat) of 1 stream, got {text!r}")
        return shape

    def __str__(self) -> str:
        return f"{self.connections}x{self.streams}"


@dataclass(frozen=True)
class Part:
    """What one of the h2load processes contributes."""

    chat_id: str
    connections: int
    calls: int


def split(shape: Shape, calls: int, chats: Sequence[str]) -> list[Part]:
    """Share out connections as evenly as whole numbers allow, and calls in proportion, so that all end together.

    Every connection gets at least one call; beyond that the shares add up to `calls`.
    """
    base, extra = divmod(shape.connections, len(chats))
    calls = max(calls, shape.connections)
    parts: list[Part] = []
    connections_so_far = calls_so_far = 0
    for index, chat_id in enumerate(chats):
        connections = base + (index < extra)
        connections_so_far += connections
        share = calls * connections_so_far // shape.connections - calls_so_far
        calls_so_far += share
        parts.append(Part(chat_id, connections, share))
    return parts


@dataclass(frozen=True)
class LoadResult:
    """The outcome of one run."""

    calls: int
    failed: int
    """Calls without an HTTP 200, or without the whole response: a gRPC error is a 200 with no message."""
    seconds: float
    """From the first h2load's start to the last one's end, process starts and connects included."""


@dataclass(frozen=True)
class Counts:
    """The part of h2load's report that is used."""

    total: int
    succeeded: int
    status_2xx: int
    data_bytes: int

    @classmethod
    def parse(cls, report: str) -> Counts:
        """BenchError if this is not the report of a finished h2load."""
        requests = re.search(r"^requests: (\d+) total, .* (\d+) succeeded,", report, re.MULTILINE)
        statuses = re.search(r"^status codes: (\d+) 2xx,", report, re.MULTILINE)
        data = re.search(r"^traffic: .* \((\d+)\) data", report, re.MULTILINE)
        if not (requests and statuses and data):
            raise BenchError(f"h2load gave no report: {report.strip()[-500:]}")
        return cls(int(requests[1]), int(requests[2]), int(statuses[1]), int(data[1]))

    def failed(self, calls: int, reply_size: int) -> int:
        """How many of `calls` did not bring back a whole response."""
        return calls - min(self.succeeded, self.status_2xx, self.data_bytes // reply_size, calls)


@dataclass(frozen=True)
class Load:
    """How to put load on one proxy."""

    h2load: str
    directory: Path
    cpus: frozenset[int]
    port: int
    method: str
    chats: tuple[str, ...]
    routing_header: str | None
    reply_size: int

    def run(self, shape: Shape, calls: int) -> LoadResult:
        """Send `calls` calls (one for each connection at the least) and wait for their end. BenchError if it sticks."""
        parts = split(shape, calls, self.chats)
        commands = [self._command(part, shape) for part in parts]
        with contextlib.ExitStack() as stack:
            start = time.perf_counter()
            processes = [
                stack.enter_context(Process("h2load", command, self.cpus, self.directory / f"h2load-{index}.log"))
                for index, command in enumerate(commands)
            ]
            for process in processes:
                process.wait(max(1.0, start + RUN_TIMEOUT - time.perf_counter()))
            seconds = time.perf_counter() - start
        failed = 0
        for part, process in zip(parts, processes, strict=True):
            failed += Counts.parse(process.output()).failed(part.calls, self.reply_size)
        return LoadResult(sum(part.calls for part in parts), failed, seconds)

    def _command(self, part: Part, shape: Shape) -> list[str]:
        body = self.directory / f"{part.chat_id}.request"
        body.write_bytes(framed(request(part.chat_id)))
        routing = ["-H", f"{self.routing_header}: {part.chat_id}"] if self.routing_header else []
        return [
            *(self.h2load, "-n", str(part.calls), "-c", str(part.connections), "-m", str(shape.streams)),
            *("-d", str(body), "-H", "content-type: application/grpc", "-H", "te: trailers", *routing),
            f"http://127.0.0.1:{self.port}{self.method}",
        ]
