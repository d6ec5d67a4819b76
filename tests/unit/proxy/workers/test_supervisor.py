"""Sums over workers."""

from __future__ import annotations

from proxy.forwarding.stats import StatsSnapshot
from proxy.workers.knowledge import added_up
from proxy.workers.process import why_ended
from proxy.workers.questions import counters_of, earliest
from proxy.workers.supervisor import core_count


def test_figures_are_added_up_key_by_key() -> None:
    assert added_up([{"A": 1, "B": 2}, {"B": 3}, {}]) == {"A": 1, "B": 5}


def test_of_times_that_every_worker_tells_the_earliest_counts() -> None:
    assert earliest([{("a",): 2.0, ("b",): 3.0}, {}, {("a",): 1.0}]) == {("a",): 1.0, ("b",): 3.0}


def test_of_a_worker_that_is_no_more_only_what_grows_is_kept() -> None:
    numbers = StatsSnapshot()
    numbers.add("districhat_calls_total", 7, "route")
    numbers.add("districhat_active_calls", 3)
    numbers.observe("districhat_call_seconds", [1, 2], 0.5, "A")
    kept = counters_of(numbers)
    assert kept.values == {"districhat_calls_total": {("route",): 7}}
    assert kept.histograms == numbers.histograms


def test_how_a_worker_ended_is_said_in_words() -> None:
    assert why_ended(-9) == "was ended by SIGKILL"
    assert why_ended(-200) == "was ended by signal 200"
    assert why_ended(2) == "ended with status 2"


def test_auto_stands_for_at_least_one_core() -> None:
    assert core_count() >= 1
