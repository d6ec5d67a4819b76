"""The pause between two tries."""

from __future__ import annotations

from proxy.backoff import doubled


def test_the_pause_doubles_up_to_its_ceiling() -> None:
    assert [doubled(0.25, failures, 5.0) for failures in range(7)] == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0]


def test_no_number_of_failures_in_a_row_is_too_many() -> None:
    assert doubled(0.25, 1_024, 5.0) == 5.0
    assert doubled(0.25, 10**9, 5.0) == 5.0
