from __future__ import annotations

import pytest

from bench.micro.engine import EngineAlone
from tests.support.wire import message


def test_the_engine_alone_can_make_calls_for_ever():
    engines = EngineAlone(message())
    assert all(engines.call() > 0 for _ in range(2_000))  # more than a window of bytes: credit goes back


def test_goals_are_of_benchmarks_that_exist():
    pytest.importorskip("pyperf")
    from bench.micro.suite import GOALS, SIZES

    assert set(GOALS) == {
        *(f"ring lookup, {size} servers" for size in SIZES),
        "ring lookup, remembered",
        "ring build, 1000 servers",
    }
