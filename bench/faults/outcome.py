"""A call as its client saw it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["plain", "repeatable", "stream"]
"""Unary and must not run twice; unary and may; a stream, which must not."""

OK = "OK"
STREAM_PREFIX = "s-"
"""Of the ids of streams; other kinds have their own first letter."""


@dataclass(frozen=True)
class Outcome:
    """The end of one call. Times are of CLOCK_MONOTONIC, as in the ledger."""

    call: str
    kind: Kind
    chat: str
    started: float
    ended: float
    status: str
    """Name of the gRPC status."""
    server: str
    """Who answered; empty unless the status is OK."""
    details: str = ""
