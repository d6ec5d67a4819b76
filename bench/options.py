"""What the command lines of the benchmarks share."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol, TypeVar

from bench.errors import BenchError, UsageError
from bench.peers.base import Setup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from bench.peers.base import Peer, Resilience

_T = TypeVar("_T")


class Choice(Protocol):
    """Something that the command line names."""

    @property
    def name(self) -> str:
        """As it is typed."""

    @property
    def about(self) -> str:
        """One line for `--help`."""


def parser(
    program: str, description: str, epilog: str, *, peers: Mapping[str, Choice], scenarios: Mapping[str, Choice]
) -> argparse.ArgumentParser:
    """A parser without options, whose help lists what there is to choose from."""
    tables = {"peers": peers, "scenarios": scenarios}
    lists = [[f"{title}:", *(f"  {each.name:12} {each.about}" for each in tables[title].values())] for title in tables]
    return argparse.ArgumentParser(
        prog=program,
        description=description,
        epilog="\n\n".join(["\n".join(lines) for lines in lists] + [epilog]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


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


def carry_out(program: str, benchmark: Callable[[], int]) -> int:
    """The exit code of the benchmark. What stops it is said in one line: a BenchError, which brings an exit code of its
    own, or Ctrl-C or SIGTERM, which make it 130.
    """
    try:
        with _unwinding_on_signals():
            return benchmark()
    except BenchError as error:
        progress(f"{program}: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        progress(f"{program}: interrupted, nothing written")
        return 130


_ENDS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def _unwinding_on_signals() -> Iterator[None]:
    """SIGINT and SIGTERM raise KeyboardInterrupt, once, so that every process is ended on the way out."""
    before = {each: signal.signal(each, _interrupted) for each in _ENDS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _interrupted(_number: int, _frame: object) -> NoReturn:
    # An impatient second Ctrl-C must not cut the unwinding short.
    for each in _ENDS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt
