"""The command line of `python -m bench.faults`."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from bench.errors import BenchError, UsageError
from bench.faults.report import describe, document, tables, write_json
from bench.faults.run import BEFORE, TRIES, WARM_UP, Plan, compare
from bench.faults.scenarios import SCENARIOS, SETTLE
from bench.faults.table import PEERS
from bench.peers.base import Resilience, Setup
from bench.process import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bench.peers.base import Peer

_T = TypeVar("_T")

DOCS = ROOT / "docs" / "failures.md"
JSON = ROOT / "bench" / "results" / "faults.json"

_DESCRIPTION = """\
Let servers fail behind several proxies, under load from gRPC clients, and count what the clients and servers saw:
calls that failed, calls that ran twice, chats that moved although their server was well, and the time until all was
well again. Three servers, each proxy in its best configuration (bench/peers/), the same faults for all.

What ran is not asked of any proxy: the servers append every start and finish of a call to a ledger.
"""

_EPILOG = f"""\
how long: a run is {WARM_UP:.0f} s of warm-up, {BEFORE:.0f} s before the fault, the fault, and {SETTLE:.0f} s after it.
With the defaults about 25 s for kill and hang and 45 s for rolling, so about 10 minutes for everything. A run in
which the machine had no time for clients or servers is made again, up to {TRIES} times in all.

examples:
  python -m bench.faults                                      everything; writes docs/failures.md and the JSON
  python -m bench.faults --peers districhat --scenarios kill  one run; writes nothing
  python -m bench.faults --peers districhat,nginx --scenarios hang --seconds 5 --json hang.json
  make bench-faults ARGS="--rate 500"

The two files are written without being named only by a run that has a result for all peers and all scenarios.

exit code: 0 the comparison was made (failed calls are its result); 1 some have no result (a process did not start,
or stuck); 2 usage, or no proxy could be had.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print, write. The exit code is as the help says; 130 after Ctrl-C or SIGTERM."""
    try:
        return _faults(_parser().parse_args(arguments))
    except BenchError as error:
        print(f"bench.faults: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("bench.faults: interrupted, nothing written", file=sys.stderr)
        return 130


def _faults(options: argparse.Namespace) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupted)
    peers = _available(options.peers)
    plan = Plan(peers, options.scenarios, options.seconds, options.rate, options.streams, options.chats)
    machine = describe(plan)
    _progress(f"{len(peers)} peers, {len(plan.scenarios)} scenarios, {plan.rate} unary calls/s, {plan.streams} streams")
    runs, problems = compare(plan, _progress)
    print("\n".join(tables(runs)))
    whole = len(runs) == len(PEERS) * len(SCENARIOS)
    for path, default, write in ((options.json, JSON, write_json), (options.docs, DOCS, document)):
        target = path or (default if whole else None)
        if target is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(write(plan, runs, machine), encoding="utf-8")
            _progress(f"wrote {target}")
    if problems:
        raise BenchError("\n".join(["some have no result:", *problems]))
    return 0


def _available(peers: Sequence[Peer]) -> tuple[Peer, ...]:
    """Those whose programs are installed; the others are named, with what to install. UsageError if none is."""
    found = []
    for peer in peers:
        try:
            with tempfile.TemporaryDirectory(prefix="bench-faults-") as directory:
                peer.command(Setup(Path(directory), 1, ("127.0.0.1:1",), "/a/b", Resilience("/a/c")))
        except UsageError as error:
            _progress(f"skipped {peer.name}: {error}")
        else:
            found.append(peer)
    if not found:
        raise UsageError("none of these proxies is installed")
    return tuple(found)


def _parser() -> argparse.ArgumentParser:
    peers = "".join(f"\n  {peer.name:12} {peer.about}" for peer in PEERS.values())
    scenarios = "".join(f"\n  {scenario.name:12} {scenario.about}" for scenario in SCENARIOS.values())
    parser = argparse.ArgumentParser(
        prog="python -m bench.faults",
        description=_DESCRIPTION,
        epilog=f"peers:{peers}\n\nscenarios:{scenarios}\n\n{_EPILOG}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    everybody, everything = tuple(PEERS.values()), tuple(SCENARIOS.values())
    add("--peers", type=_names(PEERS), default=everybody, metavar="A,B", help="which proxies (default: all)")
    add("--scenarios", type=_names(SCENARIOS), default=everything, metavar="A,B", help="which faults (default: all)")
    add(
        "--seconds",
        type=_number(float, 1, 300),
        default=10.0,
        metavar="S",
        help="how long a killed or stopped server stays away (default: 10)",
    )
    add("--rate", type=_number(int, 1, 20_000), default=1000, metavar="N", help="unary calls/s (default: 1000)")
    add("--streams", type=_number(int, 0, 1000), default=36, metavar="N", help="streams at any time (default: 36)")
    add("--chats", type=_number(int, 10, 100_000), default=300, metavar="N", help="different chats (default: 300)")
    add("--json", type=Path, metavar="FILE", help="all results (default: bench/results/faults.json)")
    add("--docs", type=Path, metavar="FILE", help="the report as Markdown (default: docs/failures.md)")
    return parser


def _names(known: Mapping[str, _T]) -> Callable[[str], tuple[_T, ...]]:
    def names(text: str) -> tuple[_T, ...]:
        wanted = dict.fromkeys(text.split(","))
        for name in wanted:
            if name not in known:
                raise argparse.ArgumentTypeError(f"unknown: {name!r}; there are: {', '.join(known)}")
        return tuple(known[name] for name in wanted)

    return names


def _number(kind: Callable[[str], _T], low: float, high: float) -> Callable[[str], _T]:
    def number(text: str) -> _T:
        try:
            if low <= float(text) <= high:
                return kind(text)
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"expected a number from {low:g} to {high:g}, got {text!r}")

    return number


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _interrupted(_number: int, _frame: object) -> NoReturn:
    # Unwinds the stack, so that every process is ended on the way; an impatient second Ctrl-C must not cut that short.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
