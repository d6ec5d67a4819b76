from __future__ import annotations

import pytest

from backend.store.sqlite import SqliteStore
from bench.micro import cache
from bench.micro.engine import EngineAlone
from bench.micro.store import SETUPS, Setup, appended_per_second, sync_time
from tests.support.messages import message


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
        "cache add_message",
    }


def test_the_cache_is_measured_with_every_message_found_in_l1():
    assert cache.add_in_memory(2) > 0
    assert cache.add_through(1) > 0


async def test_the_stores_are_measured_with_every_message_appended(tmp_path):
    assert sync_time(tmp_path) > 0
    assert sum(setup.goal for setup in SETUPS) == 1
    store = await SqliteStore.open(tmp_path / "a.db")
    rate, cpu = await appended_per_second(store, Setup("", writers=4, messages=40), 0)
    assert rate > 0
    assert cpu > 0
    for number in range(4):
        session = await store.load(f"chat-0-{number}", recent=1)
        assert session is not None
        assert session.length == 10
    await store.close()
