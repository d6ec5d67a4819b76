"""What the command lines of the benchmarks share."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from bench.errors import UsageError
from bench.peers.base import Setup

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bench.peers.base import Peer, Resilience

_T = TypeVar("_T")


def available(peers: Sequence[Peer], resilience: Resilience | None = None) -> tuple[Peer, ...]:
    """Those whose programs are installed; the others are named, with what to install. UsageError if none is."""
    found = []
    for peer in peers:
        try:
            with tempfile.TemporaryDirectory(prefix="bench-") as directory:
                peer.command(Setup(Path(directory), 1, ("127.0.0.1:1",), "/a/b", resilience))
        except UsageError as error:
            progress(f"skipped {peer.name}: {error}")
        else:
            found.append(peer)
    if not found:
        raise UsageError("none of these proxies is installed")
    return tuple(found)


def names(known: Mapping[str, _T]) -> Callable[[str], tuple[_T, ...]]:
    """For argparse: comma-separated names of a table, each once."""

    def parse(text: str) -> tuple[_T, ...]:
        wanted = dict.fromkeys(text.split(","))
        for name in wanted:
            if name not in known:
                raise argparse.ArgumentTypeError(f"unknown: {name!r}; there are: {', '.join(known)}")
        return tuple(known[name] for name in wanted)

    return parse


def number(kind: Callable[[str], _T], low: float, high: float) -> Callable[[str], _T]:
    """For argparse: a number of a range."""

    def parse(text: str) -> _T:
        try:
            if low <= float(text) <= high:
                return kind(text)
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"expected a number from {low:g} to {high:g}, got {text!r}")

    return parse


def progress(line: str) -> None:
    """Say how it goes on."""
    print(line, file=sys.stderr, flush=True)


def unwind_on_signals() -> None:
    """Let SIGINT and SIGTERM raise KeyboardInterrupt, once, so that every process is ended on the way out."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _interrupted)


def _interrupted(_number: int, _frame: object) -> NoReturn:
    # An impatient second Ctrl-C must not cut the unwinding short.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt
