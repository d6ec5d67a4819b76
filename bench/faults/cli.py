"""The command line of `python -m bench.faults`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import BenchError
from bench.faults.report import describe, document, tables, write_json
from bench.faults.run import BEFORE, TRIES, WARM_UP, Plan, compare
from bench.faults.scenarios import SCENARIOS, SETTLE
from bench.faults.table import PEERS
from bench.options import available, carry_out, names, number, parser, progress
from bench.peers.base import Resilience
from bench.process import ROOT

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

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
    options = _parser().parse_args(arguments)
    return carry_out("bench.faults", lambda: _faults(options))


def _faults(options: argparse.Namespace) -> int:
    peers = available(options.peers, Resilience("/a/c"))
    plan = Plan(peers, options.scenarios, options.seconds, options.rate, options.streams, options.chats)
    machine = describe(plan)
    progress(f"{len(peers)} peers, {len(plan.scenarios)} scenarios, {plan.rate} unary calls/s, {plan.streams} streams")
    runs, problems = compare(plan, progress)
    print("\n".join(tables(runs)))
    whole = len(runs) == len(PEERS) * len(SCENARIOS)
    for path, default, write in ((options.json, JSON, write_json), (options.docs, DOCS, document)):
        target = path or (default if whole else None)
        if target is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(write(plan, runs, machine), encoding="utf-8")
            progress(f"wrote {target}")
    if problems:
        raise BenchError("\n".join(["some have no result:", *problems]))
    return 0


def _parser() -> argparse.ArgumentParser:
    options = parser("python -m bench.faults", _DESCRIPTION, _EPILOG, peers=PEERS, scenarios=SCENARIOS)
    add = options.add_argument
    everybody, everything = tuple(PEERS.values()), tuple(SCENARIOS.values())
    add("--peers", type=names(PEERS), default=everybody, metavar="A,B", help="which proxies (default: all)")
    add("--scenarios", type=names(SCENARIOS), default=everything, metavar="A,B", help="which faults (default: all)")
    add(
        "--seconds",
        type=number(float, 1, 300),
        default=10.0,
        metavar="S",
        help="how long a killed or stopped server stays away (default: 10)",
    )
    add("--rate", type=number(int, 1, 20_000), default=1000, metavar="N", help="unary calls/s (default: 1000)")
    add("--streams", type=number(int, 0, 1000), default=36, metavar="N", help="streams at any time (default: 36)")
    add("--chats", type=number(int, 10, 100_000), default=300, metavar="N", help="different chats (default: 300)")
    add("--json", type=Path, metavar="FILE", help="all results (default: bench/results/faults.json)")
    add("--docs", type=Path, metavar="FILE", help="the report as Markdown (default: docs/failures.md)")
    return options
