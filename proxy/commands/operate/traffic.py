"""From counters to rates, as the dashboard does it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

from proxy.admin.schema import Traffic

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, slots=True)
class Rates:
    """What happened between two looks at the counters; None: it cannot be said."""

    calls: float | None = None
    """A second."""
    errors: float | None = None
    """Of the calls, 0 to 1."""
    p50: float | None = None
    p99: float | None = None
    """Seconds that half, and 99 % of the calls did not exceed."""


def total(all_of: Iterable[Traffic]) -> Traffic:
    """The sum of counters."""
    calls = errors = 0
    seconds = 0.0
    counts: list[int] = []
    for each in all_of:
        calls += each.calls
        errors += each.errors
        seconds += each.latency_sum
        counts = [one + other for one, other in zip_longest(counts, each.latency_counts, fillvalue=0)]
    return Traffic(calls=calls, errors=errors, latency_sum=seconds, latency_counts=tuple(counts))


def rates(before: Traffic | None, now: Traffic, seconds: float, bounds: Sequence[float]) -> Rates:
    """What happened in `seconds` from `before` to `now`. Nothing can be said if the counters began anew in between."""
    if before is None or seconds <= 0 or now.calls < before.calls or now.errors < before.errors:
        return Rates()
    calls = now.calls - before.calls
    counts = [one - other for one, other in zip_longest(now.latency_counts, before.latency_counts, fillvalue=0)]
    return Rates(
        calls=calls / seconds,
        errors=(now.errors - before.errors) / calls if calls else None,
        p50=quantile(counts, bounds, 0.5),
        p99=quantile(counts, bounds, 0.99),
    )


def quantile(counts: Sequence[int], bounds: Sequence[float], share: float) -> float | None:
    """The seconds that a share (0 to 1) of the calls did not exceed, by linear interpolation within the bucket; None
    without calls. Beyond the last of the `bounds` it is that bound.
    """
    wanted = share * sum(counts)
    if not wanted or not bounds:
        return None
    seen = 0
    for index, count in enumerate(counts[: len(bounds)]):
        if count and seen + count >= wanted:
            lower = bounds[index - 1] if index else 0.0
            return lower + (bounds[index] - lower) * (wanted - seen) / count
        seen += count
    return bounds[-1]
