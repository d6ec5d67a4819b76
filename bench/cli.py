"""The command line of `python -m bench`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from bench import chart
from bench.cpu import Cores
from bench.errors import BenchError
from bench.machine import describe
from bench.options import available, carry_out, names, number, parser, progress
from bench.peers.programs import installed
from bench.peers.table import OURS, PEERS
from bench.process import ROOT
from bench.report import BEGIN, END, as_json, markdown, ratios, summarise, text, write_between
from bench.runner import SATURATION, Plan, measure
from bench.scenarios import SCENARIOS

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

RESULTS = ROOT / "bench" / "results"
LATEST = RESULTS / "latest.json"
README = ROOT / "README.md"

_DESCRIPTION = """\
Measure what a call costs a proxy, ours and its peers in one run: CPU time of the proxy process, calls per second,
latencies, memory.

The proxy under test runs alone on one core; load and three backends run on the others. Every call carries a chat id
in its message, and the proxy must send it to that chat's backend. All peers take turns in every round, so that a slow
minute of the machine hits them alike. bench/README.md tells how to read the numbers, and why they are fair.
"""

_EPILOG = f"""\
examples:
  python -m bench                                     everything, 5 rounds: about 15 minutes
  python -m bench --peers districhat,haproxy --scenarios 8x32,64x1 --rounds 3
  python -m bench --calls 2000 --rounds 1             a quick look; too short to be quoted
  make bench ARGS="--json before.json"
  make bench ARGS=--write                             also into README.md and bench/results/

`latency` needs `{SATURATION}` in the same run, or --rate.

exit code: 0 all calls succeeded; 1 calls failed, or a peer did not start, died or stuck (the figures of the others are
written all the same); 2 usage, or a program is missing.
A missed goal is a result, not an error.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write the files. The exit code is as the help says; 130 after Ctrl-C or SIGTERM."""
    options = _parser().parse_args(arguments)
    return carry_out("bench", lambda: _bench(options))


def _bench(options: argparse.Namespace) -> int:
    cores = Cores.split(os.sched_getaffinity(0))
    plan = Plan(
        peers=available(options.peers),
        scenarios=options.scenarios,
        rounds=options.rounds,
        calls=options.calls,
        rate=options.rate,
        cores=cores,
        nghttpd=installed("nghttpd", "nghttp2-server"),
        h2load=installed("h2load", "nghttp2-client"),
    )
    if cores.shared:
        progress("only one CPU: proxy and load share it, calls/s mean nothing")
    if any(scenario.arrangement == "tls" for scenario in plan.scenarios):
        installed("openssl", "openssl")
    machine = describe(plan)
    runs, problems = measure(plan, progress)
    summaries = summarise(runs)
    found = ratios(summaries, [each.name for each in OURS])
    report = text(summaries, found, machine)
    print(report, end="")
    _write(options.json, as_json(runs, summaries, found, machine))
    failed = sum(summary.failed for summary in summaries)
    if failed:
        problems.append(f"{failed} calls failed: the numbers of these peers are not valid")
    if options.write:
        _write(RESULTS / "bench.json", as_json(runs, summaries, found, machine))
        _write(RESULTS / "bench.txt", report)
        chart.draw(RESULTS / "bench.png", summaries, OURS[0].name, f"{machine['cpu']}, {machine['kernel']}")
        write_between(README, BEGIN, END, markdown(summaries, found, machine, plan.rounds))
        progress("wrote bench.json, bench.txt and bench.png in bench/results, and the figures in README.md")
    if problems:
        raise BenchError("\n".join(problems))
    return 0


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    progress(f"wrote {path}")


def _parser() -> argparse.ArgumentParser:
    options = parser("python -m bench", _DESCRIPTION, _EPILOG, peers=PEERS, scenarios=SCENARIOS)
    add = options.add_argument
    everybody = tuple(peer for peer in PEERS.values() if not peer.on_request)
    everything = tuple(SCENARIOS.values())
    add(
        "--peers",
        type=names(PEERS),
        default=everybody,
        metavar="A,B",
        help="which proxies (default: all but unmetered)",
    )
    add("--scenarios", type=names(SCENARIOS), default=everything, metavar="A,B", help="which loads (default: all)")
    add("--rounds", type=number(int, 1, 1000), default=5, metavar="N", help="measured runs of each (default: 5)")
    add("--calls", type=number(int, 1, 1e7), metavar="N", help="calls per run (default: the peer's and load's own)")
    add("--rate", type=number(float, 1, 1e6), metavar="N", help="calls/s for `latency` (default: half the slowest's)")
    add("--json", type=Path, default=LATEST, metavar="FILE", help="all results (default: bench/results/latest.json)")
    add("--write", action="store_true", help="also write bench/results/bench.* and the figures in README.md")
    return options
