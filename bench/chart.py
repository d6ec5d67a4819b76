"""The figures as a picture: a group of bars a scenario, a bar a peer, everything relative to ours."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from bench.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bench.report import Summary

_CEILING = 4.0
"""Bars are cut off here; their number stands above them."""


def draw(path: Path, summaries: Sequence[Summary], ours: str, subtitle: str) -> None:
    """Write a PNG. UsageError without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("no chart without matplotlib: pip install matplotlib")
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra: only who wants a picture needs it

    good = {(each.scenario, each.peer): each for each in summaries if not each.failed}
    scenarios = [name for name in dict.fromkeys(each.scenario for each in summaries) if (name, ours) in good]
    peers = list(dict.fromkeys(each.peer for each in summaries))
    figure = Figure(figsize=(max(8.0, 1.3 * len(scenarios)), 4.6), layout="constrained")
    axes = figure.subplots()
    width = 0.85 / len(peers)
    for number, peer in enumerate(peers):
        places, heights, labels = [], [], []
        for place, scenario in enumerate(scenarios):
            summary = good.get((scenario, peer))
            if summary is not None:
                places.append(place + (number - (len(peers) - 1) / 2) * width)
                heights.append(min(_CEILING, summary.cpu_us / good[scenario, ours].cpu_us))
                labels.append(f"{summary.cpu_us:.0f}" if summary.cpu_us >= 100 else f"{summary.cpu_us:.1f}")
        bars = axes.bar(places, heights, width, label=peer)
        axes.bar_label(bars, labels, fontsize=6, rotation=90, padding=2)
    axes.axhline(1.0, color="black", linewidth=0.7)
    axes.set_ylim(0, _CEILING + 0.6)
    axes.set_xticks(range(len(scenarios)), [f"{name}\nus/{_unit(summaries, name)}" for name in scenarios], fontsize=7)
    axes.set_ylabel(f"CPU, {ours} = 1")
    axes.set_title(f"CPU of the proxy, lower is better\n{subtitle}", fontsize=8)
    axes.legend(fontsize=7, ncols=len(peers))
    figure.savefig(path, dpi=130)


def _unit(summaries: Sequence[Summary], scenario: str) -> str:
    return next(each.unit for each in summaries if each.scenario == scenario)
