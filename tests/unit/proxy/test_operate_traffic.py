"""Rates and percentiles from counters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.admin.schema import Traffic
from proxy.commands.operate.traffic import Rates, quantile, rates, total

BOUNDS = (0.01, 0.1, 1.0)


def traffic(calls: int, errors: int = 0, *counts: int) -> Traffic:
    return Traffic(calls=calls, errors=errors, latency_counts=counts)


def test_rates_are_differences_by_time() -> None:
    before, now = traffic(10, 1, 5, 5, 0, 0), traffic(30, 6, 5, 25, 0, 0)
    assert rates(before, now, 4.0, BOUNDS) == Rates(
        calls=5.0, errors=0.25, p50=pytest.approx(0.055), p99=pytest.approx(0.0991)
    )


def test_nothing_can_be_said_of_one_look_or_of_counters_that_began_anew() -> None:
    assert rates(None, traffic(3), 1.0, BOUNDS) == Rates()
    assert rates(traffic(5), traffic(3), 1.0, BOUNDS) == Rates()
    assert rates(traffic(5), traffic(5), 0.0, BOUNDS) == Rates()


def test_without_calls_there_is_a_rate_and_nothing_else() -> None:
    assert rates(traffic(5, 1, 5, 0, 0, 0), traffic(5, 1, 5, 0, 0, 0), 1.0, BOUNDS) == Rates(calls=0.0)


def test_a_server_that_is_new_has_no_counters_before() -> None:
    assert rates(traffic(0), traffic(2, 0, 2, 0, 0, 0), 1.0, BOUNDS).p50 == 0.005


def test_beyond_the_last_bound_it_is_the_last_bound() -> None:
    assert quantile([0, 0, 0, 7], BOUNDS, 0.5) == 1.0


@given(st.lists(st.integers(0, 1000), min_size=4, max_size=4), st.floats(0.01, 0.99))
def test_a_quantile_lies_in_the_bucket_where_that_share_is_reached(counts: list[int], share: float) -> None:
    found = quantile(counts, BOUNDS, share)
    if not any(counts):
        assert found is None
        return
    assert found is not None
    below = sum(count for count, bound in zip(counts, BOUNDS, strict=False) if bound < found)
    upto = sum(count for count, bound in zip(counts, (0.0, *BOUNDS), strict=True) if bound < found)
    assert below <= share * sum(counts) + 1e-6
    assert found == 1.0 or upto >= share * sum(counts) - 1e-6


def test_a_sum_of_counters() -> None:
    assert total([traffic(1, 1, 1, 0), traffic(2, 0, 0, 2), traffic(0)]) == traffic(3, 1, 1, 2)
    assert total([]) == traffic(0)
