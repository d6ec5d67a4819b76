"""What one run of load was, whichever program made it."""

from __future__ import annotations

import re
from dataclasses import dataclass


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
class Latencies:
    """Of the calls of one run, in seconds from the moment a call was due to its last byte."""

    p50: float
    p99: float
    p999: float


@dataclass(frozen=True)
class LoadResult:
    """The outcome of one run."""

    calls: int
    failed: int
    """Calls without an HTTP 200, or without the whole response: a gRPC error is a 200 with no message."""
    seconds: float
    """From the first generator's start to the last one's end, process starts and connects included; for
    `bench.load.calls` from its first call on."""
    latencies: Latencies | None = None
    """None: the generator does not tell."""
