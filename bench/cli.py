"""The command line of `python -m bench`."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console

from bench.cpu import Cores
from bench.errors import BenchError, UsageError
from bench.load import Shape
from bench.machine import describe
from bench.peers.table import OURS, PEERS
from bench.report import ratios, show, summarise, write_json
from bench.runner import Plan, measure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.peers.base import Peer

DEFAULT_JSON = Path(__file__).parent / "results" / "latest.json"

_DESCRIPTION = """\
Measure what one call costs a proxy: microseconds of CPU time of the proxy process.

The proxy under test runs alone on one core; load (h2load) and three backends (nghttpd) run on the others. Every
call carries a chat id in its message, and the proxy must send it to that chat's backend. All peers take turns in
every round, so that a slow minute of the machine hits them alike. bench/README.md tells how to read the numbers.
"""

_EPILOG = """\
shapes:
  8x32   8 connections with 32 calls in flight on each: many calls share a read and a write
  64x1   64 connections with 1 call each: every call pays for its own reads and writes

examples:
  python -m bench                                     all peers, both shapes, 5 rounds: about a minute
  python -m bench --peers districhat --shapes 8x32 --rounds 3
  python -m bench --calls 2000 --rounds 1             a quick look; too short to be quoted
  make bench ARGS="--json before.json"

exit code: 0 all calls succeeded; 1 calls failed, or a peer did not start; 2 usage, or a program is missing.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write the JSON file. The exit code is as the help says; 130 after Ctrl-C or SIGTERM."""
    try:
        options = _parser().parse_args(arguments)
        return _bench(options)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("bench: interrupted, nothing written", file=sys.stderr)
        return 130


def _bench(options: argparse.Namespace) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupted)
    allowed = os.sched_getaffinity(0)
    cores = Cores.split(allowed)
    plan = Plan(
        peers=options.peers,
        shapes=options.shapes,
        rounds=options.rounds,
        calls=options.calls,
        cores=cores,
        nghttpd=_program("nghttpd"),
        h2load=_program("h2load"),
    )
    if cores.shared:
        _progress("only one CPU: proxy and load share it, calls/s mean nothing")
    machine = describe(plan)
    runs = measure(plan, _progress)
    summaries = summarise(runs)
    found = ratios(summaries, OURS.name)
    show(Console(), summaries, found, machine)
    write_json(options.json, runs, summaries, found, machine)
    _progress(f"wrote {options.json}")
    failed = sum(summary.failed for summary in summaries)
    if failed:
        raise BenchError(f"{failed} calls failed: the numbers of these peers are not valid")
    return 0


def _parser() -> argparse.ArgumentParser:
    peers = "".join(f"\n  {peer.name:12} {peer.about}" for peer in PEERS.values())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=_DESCRIPTION,
        epilog=f"peers:{peers}\n\n{_EPILOG}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--peers", type=_peers, default=tuple(PEERS.values()), metavar="A,B", help="which proxies (default: all)")
    add("--shapes", type=_shapes, default=_shapes("8x32,64x1"), metavar="CxS,...", help="default: 8x32,64x1")
    add("--rounds", type=_count, default=5, metavar="N", help="measured runs of each peer and shape (default: 5)")
    add("--calls", type=_count, metavar="N", help="calls per run (default: the peer's own, a second or two of CPU)")
    add(
        "--json",
        type=Path,
        default=DEFAULT_JSON,
        metavar="FILE",
        help="all results (default: bench/results/latest.json)",
    )
    return parser


def _peers(text: str) -> tuple[Peer, ...]:
    names = list(dict.fromkeys(text.split(",")))
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown peer {unknown[0]!r}; there are: {', '.join(PEERS)}")
    return tuple(PEERS[name] for name in names)


def _shapes(text: str) -> tuple[Shape, ...]:
    try:
        return tuple(dict.fromkeys(Shape.parse(part) for part in text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 10_000_000):
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 10000000, got {text!r}")
    return int(text)


def _program(name: str) -> str:
    # Debian puts nghttpd into /usr/sbin, which is not on everybody's path.
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        raise UsageError(f"{name} not found; on Debian: apt-get install nghttp2-server nghttp2-client")
    return path


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _interrupted(_number: int, _frame: object) -> NoReturn:
    # Unwinds the stack, so that every process is ended on the way; an impatient second Ctrl-C must not cut that short.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
