"""What we want to reach: ours divided by the peer's, medians of one run, all features on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Measure = Literal["CPU", "p99"]


@dataclass(frozen=True)
class Goal:
    """An upper limit for one ratio."""

    scenario: str
    peer: str
    limit: float
    measure: Measure = "CPU"


def _goals(scenarios: str, measure: Measure = "CPU", **limits: float) -> list[Goal]:
    return [
        Goal(scenario, peer.replace("_", "-"), limit, measure)
        for scenario in scenarios.split()
        for peer, limit in limits.items()
    ]


GOALS: tuple[Goal, ...] = (
    *_goals("8x32", haproxy=0.9, nginx=0.5, envoy=0.35),
    *_goals("64x1", haproxy=1.0, nginx=0.9, envoy=0.4, tcp_relay=1.6),
    *_goals("deadlines", haproxy=1.0, nginx=0.9, envoy=0.4),
    *_goals("responses requests", haproxy=0.6, nginx=0.7, envoy=1.3),
    *_goals("tokens", haproxy=1.0, nginx=1.0, envoy=0.5),
    *_goals("latency", "p99", haproxy=1.0, nginx=1.0, envoy=1.0),
)
