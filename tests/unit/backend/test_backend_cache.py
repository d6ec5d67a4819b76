from __future__ import annotations

import asyncio
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.cache.hierarchical import CacheStatistics, HierarchicalCache
from backend.cache.levels import CacheLevel
from backend.errors import ContentionError, StoreError
from backend.session import Message, Version
from backend.store.base import Appended, AppendResult, Conflict
from backend.store.memory import MemoryStore

L1, L2, DISK, MISS = CacheLevel.L1, CacheLevel.L2, CacheLevel.DISK, CacheLevel.MISS


class GatedStore(MemoryStore):
    """Appends to a chat in `gates` wait for its event; `failure` is raised instead of answering."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: dict[str, asyncio.Event] = {}
        self.waiting = asyncio.Event()
        self.failure: Exception | None = None
        self.fail_after_writing = False

    async def append(self, chat_id: str, message: Message, *, expected: Version) -> AppendResult:
        if chat_id in self.gates:
            self.waiting.set()
            await self.gates[chat_id].wait()
        if self.failure and not self.fail_after_writing:
            raise self.failure
        result = await super().append(chat_id, message, expected=expected)
        if self.failure:
            raise self.failure
        return result


@given(
    st.integers(0, 3),
    st.integers(0, 3),
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans()), max_size=60),
)
def test_every_request_finds_its_session_where_the_contract_says(
    l1_capacity: int, l2_capacity: int, requests: list[tuple[str, bool]]
) -> None:
    async def check() -> None:
        cache = HierarchicalCache(l1_capacity, l2_capacity, store=MemoryStore())
        recency: list[str] = []  # all chats, most recent first: with moves in this order, memory is its beginning
        lengths: Counter[str] = Counter()
        found: Counter[CacheLevel] = Counter()
        for chat, adds in requests:
            place = recency.index(chat) if chat in recency else sys.maxsize
            if place < l1_capacity:
                expected = L1
            elif place < l1_capacity + l2_capacity:
                expected = L2
            else:
                expected = DISK if lengths[chat] else MISS
            lengths[chat] += adds
            session, level = (await (cache.add_message(chat, Message("x")) if adds else cache.get_or_create(chat)))[:2]
            assert (session.length, level) == (lengths[chat], expected)
            found[level] += 1
            recency = [chat, *(other for other in recency if other != chat)]
            assert cache.levels.l1.chats() == recency[:l1_capacity]
            assert cache.levels.l2.chats() == recency[l1_capacity : l1_capacity + l2_capacity]
        statistics = cache.statistics()
        assert (statistics.l1_hits, statistics.l2_hits, statistics.disk_hits, statistics.misses) == (
            found[L1],
            found[L2],
            found[DISK],
            found[MISS],
        )
        assert statistics.requests == len(requests)

    asyncio.run(check())


async def test_sessions_go_down_the_levels_and_come_back() -> None:
    cache = HierarchicalCache(1, 1, store=MemoryStore())
    levels = [(await cache.add_message(chat, Message("x")))[1] for chat in "abcaab"]
    assert levels == [MISS, MISS, MISS, DISK, L1, DISK]
    assert cache.statistics() == CacheStatistics(
        l1_hits=1,
        l2_hits=0,
        disk_hits=2,
        misses=3,
        demotions=4,
        promotions=0,
        evictions=3,
        duplicates=0,
        conflicts=0,
        expired=0,
        ended=0,
        unwritten=0,
    )


async def test_a_session_holds_its_recent_messages_and_the_length_of_all() -> None:
    cache = HierarchicalCache(store=MemoryStore(), recent_messages=2)
    for text in "abc":
        session, _, _ = await cache.add_message("chat", Message(text))
    assert (session.length, session.recent) == (3, (Message("b"), Message("c")))


async def test_messages_of_one_chat_are_applied_in_the_order_they_came() -> None:
    store = GatedStore()
    gate = store.gates["a"] = asyncio.Event()
    cache = HierarchicalCache(store=store)
    async with asyncio.TaskGroup() as tasks:
        calls = [tasks.create_task(cache.add_message("a", Message(str(number)))) for number in range(5)]
        await store.waiting.wait()
        gate.set()
    assert [call.result()[0].recent[-1].text for call in calls] == ["0", "1", "2", "3", "4"]
    assert [call.result()[1] for call in calls] == [MISS, L1, L1, L1, L1]


async def test_a_chat_does_not_wait_for_another() -> None:
    store = GatedStore()
    gate = store.gates["slow"] = asyncio.Event()
    cache = HierarchicalCache(store=store)
    async with asyncio.TaskGroup() as tasks:
        slow = tasks.create_task(cache.add_message("slow", Message("x")))
        await store.waiting.wait()
        await cache.add_message("fast", Message("x"))
        assert not slow.done()
        gate.set()
    assert cache.levels.l1.chats() == ["slow", "fast"]


async def test_locks_of_idle_chats_are_let_go() -> None:
    cache = HierarchicalCache(store=MemoryStore())
    await cache.add_message("a", Message("x"))
    assert len(cache._locks) == 0


async def test_a_stale_owner_reads_the_session_again() -> None:
    store = MemoryStore()
    first, second = HierarchicalCache(store=store), HierarchicalCache(store=store)
    await first.add_message("chat", Message("to first"))
    await second.add_message("chat", Message("to second"))
    session, level, _ = await first.add_message("chat", Message("to first again"))
    assert (session.length, level) == (3, DISK)
    assert [message.text for message in session.recent] == ["to first", "to second", "to first again"]
    assert (await first.add_message("chat", Message("x")))[1] is L1


async def test_a_repeated_message_id_gives_the_first_answer() -> None:
    cache = HierarchicalCache(store=MemoryStore())
    first, _, _ = await cache.add_message("chat", Message("a", message_id="1"))
    assert (await cache.add_message("chat", Message("a", message_id="1")))[0] == first
    await cache.add_message("chat", Message("b", message_id="2"))
    assert (await cache.add_message("chat", Message("a", message_id="1")))[0] == first
    assert (await cache.get_or_create("chat"))[0].length == 2
    assert (await cache.add_message("other", Message("a", message_id="1")))[0].length == 1


async def test_a_message_repeated_to_another_server_gives_the_first_answer() -> None:
    store = MemoryStore()
    first, second = HierarchicalCache(store=store), HierarchicalCache(store=store)
    await second.add_message("chat", Message("a", message_id="1"))
    answered, _, _ = await first.add_message("chat", Message("b", message_id="2"))
    repeated, level, _ = await second.add_message("chat", Message("b", message_id="2"))
    assert (repeated, level) == (answered, DISK)


async def test_a_failed_append_leaves_nothing_in_memory() -> None:
    store = GatedStore()
    cache = HierarchicalCache(store=store)
    await cache.add_message("chat", Message("a"))
    store.failure, store.fail_after_writing = StoreError("lost the answer"), True
    with pytest.raises(StoreError, match="lost the answer"):
        await cache.add_message("chat", Message("b"))
    store.failure = None
    assert cache.levels.l1.chats() == []
    session, level, _ = await cache.add_message("chat", Message("c"))
    assert (session.length, level) == (3, DISK)


async def test_a_new_session_whose_message_was_refused_is_still_new() -> None:
    store = GatedStore()
    store.failure = StoreError("full")
    cache = HierarchicalCache(store=store)
    with pytest.raises(StoreError):
        await cache.add_message("chat", Message("a"))
    store.failure = None
    session, level, _ = await cache.add_message("chat", Message("a"))
    assert (session.length, level) == (1, MISS)
    assert cache.statistics().requests == 1


async def test_a_cancelled_message_does_not_block_or_confuse_its_chat() -> None:
    store = GatedStore()
    store.gates["chat"] = asyncio.Event()
    cache = HierarchicalCache(store=store)
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(cache.add_message("chat", Message("a")))
        await store.waiting.wait()
        call.cancel()
    store.gates.clear()
    assert (await cache.add_message("chat", Message("b")))[0].length == 1


async def test_endless_conflicts_are_an_error() -> None:
    class BusyStore(MemoryStore):
        async def append(self, chat_id: str, message: Message, *, expected: Version) -> AppendResult:
            result = await super().append(chat_id, message, expected=expected)
            return Conflict(Version(result.epoch, result.position)) if isinstance(result, Appended) else result

    cache = HierarchicalCache(store=BusyStore())
    with pytest.raises(ContentionError):
        await cache.add_message("chat", Message("a"))
    assert cache.levels.l1.chats() == []
