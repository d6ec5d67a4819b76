"""What is measured: the kinds of load, in the order of the table.

To add one: an entry here. Everything a scenario needs of proxies and backends must come from `Setup` and
`bench.backends`; a peer that cannot take part says so in `Peer.only` or `Peer.tls`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bench.backends import LARGE, LARGE_METHOD, METHOD, TOKENS, TOKENS_METHOD
from bench.load.h2load import Metadata
from bench.load.result import Shape

Unit = Literal["call", "MiB", "message"]
Arrangement = Literal["files", "tokens", "tls"]
"""Which backends are behind the proxies, and whether clients use TLS: scenarios of one are measured together."""

_METADATA: Metadata = tuple((f"x-bench-field-{number:02}", f"{number:02}".ljust(40, "v")) for number in range(20))


@dataclass(frozen=True)
class Scenario:
    """One kind of load."""

    name: str
    """For `--scenarios` and the tables."""
    about: str
    """One line for `--help`."""
    shape: Shape
    calls: float = 1.0
    """How many calls a run has, in the peer's own number."""
    unit: Unit = "call"
    per_call: float = 1.0
    """Units in a call."""
    arrangement: Arrangement = "files"
    method: str = METHOD
    request_size: int | None = None
    metadata: Metadata = ()
    own_chats: int = 0
    """Not 0: calls of so many chats, made by `bench.load.calls` instead of h2load."""
    timeouts: bool = False
    """Each call has a deadline, and each another one. Needs `own_chats`."""
    at_rate: bool = False
    """Calls come at half of what the slowest of the compared peers can do, to measure latency. Needs `own_chats`."""


_MIB = LARGE / (1 << 20)

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("8x32", "unary, 100 bytes: 8 connections with 32 calls in flight on each", Shape(8, 32)),
        Scenario("64x1", "unary, 100 bytes: 64 connections with 1 call in flight on each", Shape(64, 1)),
        Scenario("256x1", "unary, 100 bytes: 256 connections with 1 call in flight on each", Shape(256, 1)),
        Scenario(
            "deadlines",
            "as 64x1, and every call has a deadline (grpc-timeout), each a different one",
            Shape(64, 1),
            own_chats=3,
            timeouts=True,
        ),
        Scenario(
            "metadata", "as 64x1, with 20 metadata entries of 40 bytes", Shape(64, 1), calls=0.75, metadata=_METADATA
        ),
        Scenario("chats", "as 64x1, calls of 10,000 chats in turn", Shape(64, 1), own_chats=10_000),
        Scenario(
            "responses",
            "responses of 512 KiB: 8 connections with 2 calls in flight on each",
            Shape(8, 2),
            calls=0.02,
            unit="MiB",
            per_call=_MIB,
            method=LARGE_METHOD,
        ),
        Scenario(
            "requests",
            "requests of 512 KiB: 8 connections with 2 calls in flight on each",
            Shape(8, 2),
            calls=0.02,
            unit="MiB",
            per_call=_MIB,
            request_size=LARGE,
        ),
        Scenario(
            "tokens",
            f"token streams: 64 connections, each a call answered with {TOKENS} small messages, one every 4 ms",
            Shape(64, 1),
            calls=0.0032,
            unit="message",
            per_call=TOKENS,
            arrangement="tokens",
            method=TOKENS_METHOD,
        ),
        Scenario("tls-8x32", "as 8x32, the clients over TLS", Shape(8, 32), arrangement="tls"),
        Scenario("tls-64x1", "as 64x1, the clients over TLS", Shape(64, 1), arrangement="tls"),
        Scenario(
            "latency",
            "calls of 1,000 chats on 64 connections at half of what the slowest proxy takes: latencies",
            Shape(64, 1),
            calls=0.4,
            own_chats=1_000,
            at_rate=True,
        ),
    )
}
"""By name, in the order of the tables."""
