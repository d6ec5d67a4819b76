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
from bench.load.result import LoadResult
from bench.probe import request
from bench.process import Process

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bench.load.result import Shape

Metadata = tuple[tuple[str, str], ...]

RUN_TIMEOUT = 120.0
"""Seconds one run may take before it counts as stuck."""


@dataclass(frozen=True)
class Orders:
    """The calls of one scenario."""

    shape: Shape
    method: str
    reply_size: int
    """Bytes of DATA in a whole response."""
    request_size: int | None = None
    """Bytes of the text in a request; None: a sentence."""
    metadata: Metadata = ()


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
    chats: tuple[str, ...]
    routing_header: str | None
    tls: bool = False

    def run(self, orders: Orders, calls: int) -> LoadResult:
        """Send `calls` calls (one for each connection at the least) and wait for their end. BenchError if it sticks."""
        parts = split(orders.shape, calls, self.chats)
        commands = [self._command(part, orders) for part in parts]
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
            failed += Counts.parse(process.output()).failed(part.calls, orders.reply_size)
        return LoadResult(sum(part.calls for part in parts), failed, seconds)

    def _command(self, part: Part, orders: Orders) -> list[str]:
        body = self.directory / f"{part.chat_id}.request"
        body.write_bytes(framed(request(part.chat_id, orders.request_size)))
        metadata = orders.metadata
        if self.routing_header:
            metadata = (*metadata, (self.routing_header, part.chat_id))
        return [
            *(self.h2load, "-n", str(part.calls), "-c", str(part.connections), "-m", str(orders.shape.streams)),
            *("-d", str(body), "-H", "content-type: application/grpc", "-H", "te: trailers"),
            *(option for name, value in metadata for option in ("-H", f"{name}: {value}")),
            f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}{orders.method}",
        ]
