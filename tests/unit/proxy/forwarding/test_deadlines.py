from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.forwarding.deadlines import GRANULARITY, HORIZON, NEAR, DeadlineWheel


class Watched:
    def __init__(self, log: list[Watched]) -> None:
        self.log = log

    def deadline_exceeded(self) -> None:
        self.log.append(self)


class Stopwatch:
    """Notes when it expired."""

    def __init__(self, shell: Shell, deadline: float) -> None:
        self.shell, self.deadline = shell, deadline
        self.expired: list[float] = []

    def deadline_exceeded(self) -> None:
        self.expired.append(self.shell.now)


class Shell:
    """Fires the wheel at the times it armed, and only then."""

    def __init__(self) -> None:
        self.now = 0.0
        self.armed: float | None = None
        self.arms = 0
        self.wheel = DeadlineWheel(self.arm)

    def arm(self, at: float) -> None:
        self.armed = at
        self.arms += 1

    def run_until(self, end: float) -> None:
        while self.armed is not None and self.armed <= end:
            self.now, self.armed = self.armed, None
            self.wheel.expire(self.now)


@given(st.lists(st.tuples(st.floats(0, 1000), st.booleans()), max_size=50))
def test_every_deadline_that_is_not_called_off_expires_once_and_in_time(deadlines: list[tuple[float, bool]]) -> None:
    shell = Shell()
    watched = []
    for deadline, called_off in deadlines:
        each = Stopwatch(shell, deadline)
        bucket = shell.wheel.add(each, deadline, 0.0)
        if called_off:
            bucket.discard(each)
        watched.append((each, called_off))
    shell.run_until(2000)
    for each, called_off in watched:
        assert len(each.expired) == (not called_off)
        assert all(
            each.deadline <= at <= each.deadline + (1.1 if each.deadline > NEAR else 2 * GRANULARITY)
            for at in each.expired
        )
    assert len(shell.wheel) == 0


def test_calls_with_the_same_timeout_share_timers() -> None:
    shell = Shell()
    for index in range(1000):
        shell.wheel.add(Watched([]), 9.0 + index * 1e-6, 0.0)
    assert shell.arms == 1


def test_an_earlier_deadline_arms_the_timer_anew() -> None:
    shell, expired = Shell(), []
    late, early = Watched(expired), Watched(expired)
    shell.wheel.add(late, 10.0, 0.0)
    shell.wheel.add(early, 5.0, 0.0)
    assert shell.armed is not None
    assert shell.armed < 5.1
    shell.run_until(5.1)
    assert expired == [early]
    shell.run_until(10.1)
    assert expired == [early, late]


def test_whatever_deadlines_clients_think_of_the_buckets_are_few() -> None:
    wheel = DeadlineWheel(lambda _at: None)
    for index in range(20_000):
        timed = Watched([])
        wheel.add(timed, index * 7.0, 0.0).discard(timed)
        wheel.add(timed, HORIZON * 1000 + index, 0.0).discard(timed)
    assert len(wheel._buckets) < 6000


def test_a_bug_that_meets_one_call_takes_no_other_calls_deadline() -> None:
    shell, expired = Shell(), []

    class Broken:
        def deadline_exceeded(self) -> None:
            raise ZeroDivisionError

    shell.wheel.add(Broken(), 1.0, 0.0)
    shell.wheel.add(Watched(expired), 1.0, 0.0)
    shell.wheel.add(Watched(expired), 2.0, 0.0)
    with pytest.raises(ExceptionGroup):
        shell.run_until(1.5)
    shell.run_until(2.5)
    assert len(expired) == 2
