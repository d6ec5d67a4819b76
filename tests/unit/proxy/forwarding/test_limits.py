from __future__ import annotations

import pytest

from proxy.forwarding.limits import LimitCounters, LimitWatch


class Clock:
    def __init__(self) -> None:
        self.now = 50.0
        self.lines: list[str] = []
        self.watch = LimitWatch(lambda: self.now, self.lines.append)


def test_every_excess_is_counted_and_one_a_second_is_said() -> None:
    clock = Clock()
    for _ in range(5):
        clock.watch.exceeded("connections", "client 10.0.0.1: 7 connections are open")
    assert clock.watch.counters.connections == 5
    assert clock.lines == ["limit connections: client 10.0.0.1: 7 connections are open"]
    clock.now += 1.0
    clock.watch.exceeded("connections", "again")
    assert clock.lines[1:] == ["limit connections: again (and 4 more since the last line)"]


def test_one_limit_does_not_silence_another() -> None:
    clock = Clock()
    clock.watch.exceeded("connections", "a")
    clock.watch.exceeded("premature_resets", "b")
    assert len(clock.lines) == 2


def test_a_limit_without_a_counter_is_a_bug() -> None:
    with pytest.raises(AttributeError):
        Clock().watch.exceeded("no_such_limit", "x")


def test_all_counters_start_at_zero() -> None:
    counters = LimitCounters().snapshot()
    assert set(counters) == set(LimitCounters.__slots__)
    assert not any(counters.values())
