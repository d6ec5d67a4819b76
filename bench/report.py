"""From runs to a verdict: medians, spreads, ratios against the goals; as tables, as JSON, as a part of the README."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING

from bench.goals import GOALS, Goal
from bench.load.result import Latencies
from bench.scenarios import SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from bench.runner import Run

BEGIN = "<!-- figures of `make bench ARGS=--write`; do not edit -->"
END = "<!-- end of the figures -->"

_COLUMNS = (
    *("scenario", "peer", "CPU us", "min-max", "per", "calls/s", "core busy", "MiB"),
    *("p50 ms", "p99 ms", "p99.9 ms", "calls", "failed"),
)
_TEXT_COLUMNS = 2


@dataclass(frozen=True)
class Summary:
    """All rounds of one peer with one scenario: medians, where nothing else is said."""

    scenario: str
    peer: str
    unit: str
    cpu_us: float
    """CPU microseconds per unit."""
    cpu_us_min: float
    cpu_us_max: float
    calls_per_second: float
    busy: float
    memory_mib: float
    """The largest."""
    latencies: Latencies | None
    """Each percentile's median over the rounds."""
    calls: int
    """Of all rounds together, like `failed`."""
    failed: int

    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        late = self.latencies
        return (
            self.scenario,
            self.peer,
            f"{self.cpu_us:.1f}",
            f"{self.cpu_us_min:.1f}-{self.cpu_us_max:.1f}",
            self.unit,
            f"{self.calls_per_second:.0f}",
            f"{self.busy:.0%}",
            f"{self.memory_mib:.0f}",
            *((f"{value * 1000:.2f}" for value in (late.p50, late.p99, late.p999)) if late else ("", "", "")),
            str(self.calls),
            str(self.failed) if not self.failed else f"{self.failed} FAILED",
        )


def summarise(runs: Sequence[Run]) -> list[Summary]:
    """One summary for each scenario and peer, in the order they first appear."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.scenario, run.peer), []).append(run)
    scenarios = dict.fromkeys(scenario for scenario, _ in groups)
    return [
        _summary(scenario, peer, group)
        for wanted in scenarios
        for (scenario, peer), group in groups.items()
        if scenario == wanted
    ]


def _summary(scenario: str, peer: str, runs: Sequence[Run]) -> Summary:
    cpu = [run.cpu_us for run in runs]
    late = [run.latencies for run in runs if run.latencies is not None]
    return Summary(
        scenario=scenario,
        peer=peer,
        unit=SCENARIOS[scenario].unit,
        cpu_us=median(cpu),
        cpu_us_min=min(cpu),
        cpu_us_max=max(cpu),
        calls_per_second=median(run.calls_per_second for run in runs),
        busy=median(run.busy for run in runs),
        memory_mib=max(run.memory_mib for run in runs),
        latencies=Latencies(
            median(each.p50 for each in late), median(each.p99 for each in late), median(each.p999 for each in late)
        )
        if late
        else None,
        calls=sum(run.calls for run in runs),
        failed=sum(run.failed for run in runs),
    )


@dataclass(frozen=True)
class Ratio:
    """The median of a build of ours over another peer's, in one scenario: below 1 we are cheaper, or faster."""

    scenario: str
    ours: str
    """Which build."""
    peer: str
    measure: str
    """`CPU` per unit, or `p99` of the latencies."""
    ratio: float
    goal: float | None
    """What it should be at most; None: nothing was aimed at."""

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        return None if self.goal is None else self.ratio <= self.goal

    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        verdict = {None: "", True: "met", False: "MISSED"}[self.met]
        goal = "" if self.goal is None else f"{self.goal:g}"
        return (self.scenario, f"{self.ours} / {self.peer}", self.measure, f"{self.ratio:.2f}", goal, verdict)


def ratios(summaries: Sequence[Summary], ours: Sequence[str], goals: Sequence[Goal] = GOALS) -> list[Ratio]:
    """Each build of ours against each other peer in the same scenario. Empty if we were not measured, or nobody else.

    A summary with failed calls is left out: a failed call is cheap, and must not look like a fast one.
    """
    limits = {(goal.scenario, goal.peer, goal.measure): goal.limit for goal in goals}
    good = {(summary.peer, summary.scenario): summary for summary in summaries if not summary.failed}
    found = []
    for build in ours:
        for (peer, scenario), summary in good.items():
            own = good.get((build, scenario))
            if peer in ours or own is None:
                continue
            ratio = own.cpu_us / summary.cpu_us
            found.append(Ratio(scenario, build, peer, "CPU", ratio, limits.get((scenario, peer, "CPU"))))
            if own.latencies and summary.latencies:
                late = own.latencies.p99 / summary.latencies.p99
                found.append(Ratio(scenario, build, peer, "p99", late, limits.get((scenario, peer, "p99"))))
    return found


def text(summaries: Sequence[Summary], found: Sequence[Ratio], machine: Mapping[str, str]) -> str:
    """Everything for people: the machine, the table of results, the table of ratios."""
    lines = [f"{label:12} {value}" for label, value in machine.items()]
    lines += ["", *aligned(_COLUMNS, [summary.cells() for summary in summaries])]
    if found:
        columns = ("scenario", "ours / peer", "of", "ratio", "goal", "")
        lines += ["", *aligned(columns, [ratio.cells() for ratio in found])]
    for build, goals in _goals_by_build(found):
        lines += ["", f"{build}: {sum(goal.met is True for goal in goals)} of {len(goals)} goals met"]
    return "\n".join(lines) + "\n"


def _goals_by_build(found: Sequence[Ratio]) -> list[tuple[str, list[Ratio]]]:
    """For each build of ours the ratios that have a goal."""
    return [
        (build, [each for each in found if each.ours == build and each.met is not None])
        for build in dict.fromkeys(each.ours for each in found)
    ]


def aligned(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; its first two columns are text, the others numbers."""
    everything = [columns, *rows]
    widths = [max(len(row[column]) for row in everything) for column in range(len(columns))]
    return [
        "  ".join(
            cell.ljust(width) if column < _TEXT_COLUMNS else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in everything
    ]


def as_json(
    runs: Sequence[Run], summaries: Sequence[Summary], found: Sequence[Ratio], machine: Mapping[str, str]
) -> str:
    """Everything, every single run included, for later comparison."""
    document = {
        "machine": dict(machine),
        "summaries": [asdict(summary) for summary in summaries],
        "ratios": [asdict(ratio) | {"met": ratio.met} for ratio in found],
        "runs": [asdict(run) | {"cpu_us": run.cpu_us} for run in runs],
    }
    return json.dumps(document, indent=1) + "\n"


def markdown(summaries: Sequence[Summary], found: Sequence[Ratio], machine: Mapping[str, str], rounds: int) -> str:
    """The figures for the README: CPU per unit and the ratios, a row a scenario, a column a peer."""
    peers = list(dict.fromkeys(summary.peer for summary in summaries))
    cells = {(summary.scenario, summary.peer): summary for summary in summaries}
    builds = list(dict.fromkeys(ratio.ours for ratio in found))
    shares = {(r.scenario, r.peer, r.ours): f"{r.ratio:.2f}" for r in found if r.measure == "CPU"}
    lines = [f"| load | {' | '.join(peers)} |", "|---" * (len(peers) + 1) + "|"]
    for scenario in dict.fromkeys(summary.scenario for summary in summaries):
        row = []
        for peer in peers:
            summary = cells.get((scenario, peer))
            known = [shares[scenario, peer, build] for build in builds if (scenario, peer, build) in shares]
            share = f" ({', '.join(known)})" if known else ""
            row.append("" if summary is None else f"{summary.cpu_us:.1f}{share}" if not summary.failed else "failed")
        lines.append(f"| {scenario}, us/{SCENARIOS[scenario].unit} | {' | '.join(row)} |")
    lines += _latency_rows(cells, peers)
    about = (
        f"Medians of {rounds} interleaved rounds; in brackets the figure of {' and of '.join(builds)} divided by that"
        " peer's: below 1 is cheaper than the peer. What the loads are: `python -m bench --help`."
    )
    verdicts = []
    for build, goals in _goals_by_build(found):
        missed = [f"{r.scenario} {r.peer} {r.measure} {r.ratio:.2f} (goal {r.goal:g})" for r in goals if not r.met]
        met = f"`{build}` meets {len(goals) - len(missed)} of {len(goals)} goals"
        verdicts += ["", f"{met}; missed: {', '.join(missed)}." if missed else f"{met}."]
    made_on = (machine["cpu"], machine["kernel"], f"Python {machine['python']}", machine["packages"])
    chart = "![CPU of the proxy by load, relative to ours](bench/results/bench.png)"
    return (
        "\n".join([chart, "", *lines, "", about, *verdicts, "", f"{'; '.join((*made_on, machine['programs']))}."])
        + "\n"
    )


def _latency_rows(cells: Mapping[tuple[str, str], Summary], peers: Sequence[str]) -> list[str]:
    rows = []
    for scenario in dict.fromkeys(scenario for scenario, _ in cells):
        late = [(cells.get((scenario, peer)) or None) for peer in peers]
        if not any(summary and summary.latencies for summary in late):
            continue
        for label, of in (("p50", "p50"), ("p99", "p99"), ("p99.9", "p999")):
            values = [
                f"{getattr(summary.latencies, of) * 1000:.2f}" if summary and summary.latencies else ""
                for summary in late
            ]
            rate = max(summary.calls_per_second for summary in late if summary)
            rows.append(f"| {label} at {rate:.0f} calls/s, ms | {' | '.join(values)} |")
        rows.append(
            "| memory, MiB, at most | "
            + " | ".join(f"{max(s.memory_mib for s in cells.values() if s.peer == peer):.0f}" for peer in peers)
            + " |"
        )
    return rows


def write_between(path: Path, begin: str, end: str, content: str) -> None:
    """Replace what stands between the lines `begin` and `end` of a file. ValueError if they are not there, once."""
    before, found_begin, rest = path.read_text(encoding="utf-8").partition(begin + "\n")
    old, found_end, after = rest.partition(end)
    if not (found_begin and found_end) or begin in after:
        raise ValueError(f"{path.name} has no single pair of the lines {begin!r} and {end!r}")
    del old
    path.write_text(f"{before}{begin}\n{content}{end}{after}", encoding="utf-8")
