"""From runs to a verdict: medians, spreads, ratios; as a table, as plain lines, as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rich.console import Console

    from bench.runner import Run

_COLUMNS = ("shape", "peer", "CPU us/call", "min-max", "calls/s", "core busy", "calls", "failed")


@dataclass(frozen=True)
class Summary:
    """All rounds of one peer with one shape."""

    shape: str
    peer: str
    cpu_us: float
    """Median, like the two below."""
    cpu_us_min: float
    cpu_us_max: float
    calls_per_second: float
    busy: float
    calls: int
    """Of all rounds together, like `failed`."""
    failed: int

    def cells(self) -> tuple[str, ...]:
        """The row of the tables."""
        return (
            self.shape,
            self.peer,
            f"{self.cpu_us:.1f}",
            f"{self.cpu_us_min:.1f}-{self.cpu_us_max:.1f}",
            f"{self.calls_per_second:.0f}",
            f"{self.busy:.0%}",
            str(self.calls),
            str(self.failed) if not self.failed else f"{self.failed} FAILED",
        )


def summarise(runs: Sequence[Run]) -> list[Summary]:
    """One summary for each shape and peer, in the order they first appear."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.shape, run.peer), []).append(run)
    shapes = dict.fromkeys(shape for shape, _ in groups)
    return [
        _summary(shape, peer, group) for wanted in shapes for (shape, peer), group in groups.items() if shape == wanted
    ]


def _summary(shape: str, peer: str, runs: Sequence[Run]) -> Summary:
    cpu = [run.cpu_us_per_call for run in runs]
    return Summary(
        shape=shape,
        peer=peer,
        cpu_us=median(cpu),
        cpu_us_min=min(cpu),
        cpu_us_max=max(cpu),
        calls_per_second=median(run.calls_per_second for run in runs),
        busy=median(run.busy for run in runs),
        calls=sum(run.calls for run in runs),
        failed=sum(run.failed for run in runs),
    )


@dataclass(frozen=True)
class Ratio:
    """Our median over another peer's, for one shape: below 1 we are cheaper."""

    shape: str
    ours: str
    peer: str
    ratio: float

    def __str__(self) -> str:
        factor = f"{1 / self.ratio:.1f} times less" if self.ratio < 1 else f"{self.ratio:.1f} times the"
        return f"{self.shape}: {self.ours} / {self.peer} = {self.ratio:.3f} ({factor} CPU per call)"


def ratios(summaries: Sequence[Summary], ours: str) -> list[Ratio]:
    """Ours against each other peer of the same shape. Empty if we were not measured, or nobody else was.

    A summary with failed calls is left out: a failed call is cheap, and must not look like a fast one.
    """
    good = [summary for summary in summaries if not summary.failed]
    base = {summary.shape: summary.cpu_us for summary in good if summary.peer == ours}
    return [
        Ratio(summary.shape, ours, summary.peer, base[summary.shape] / summary.cpu_us)
        for summary in good
        if summary.peer != ours and summary.shape in base
    ]


def show(console: Console, summaries: Sequence[Summary], found: Sequence[Ratio], machine: Mapping[str, str]) -> None:
    """A table on a terminal; aligned plain lines in a pipe or file."""
    for label, text in machine.items():
        console.print(f"{label:12} {text}", highlight=False, markup=False, soft_wrap=True)
    console.print()
    if console.is_terminal:
        table = Table(*_COLUMNS[:2])
        for column in _COLUMNS[2:]:
            table.add_column(column, justify="right")
        for summary in summaries:
            table.add_row(*summary.cells(), style="red" if summary.failed else None)
        console.print(table)
    else:
        for line in plain_lines(summaries):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    for ratio in found:
        console.print(str(ratio), highlight=False, markup=False, soft_wrap=True)


def plain_lines(summaries: Sequence[Summary]) -> list[str]:
    """The table in aligned columns, without a terminal's help."""
    rows = [_COLUMNS, *(summary.cells() for summary in summaries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def write_json(
    path: Path,
    runs: Sequence[Run],
    summaries: Sequence[Summary],
    found: Sequence[Ratio],
    machine: Mapping[str, str],
) -> None:
    """Everything, every single run included, for later comparison. Makes the directory if it is missing."""
    document = {
        "machine": dict(machine),
        "summaries": [asdict(summary) for summary in summaries],
        "ratios": [asdict(ratio) for ratio in found],
        "runs": [asdict(run) | {"cpu_us_per_call": run.cpu_us_per_call} for run in runs],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
