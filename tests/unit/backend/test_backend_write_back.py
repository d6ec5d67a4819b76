"""Write-back, one rule a test; what holds for any order of events is in test_backend_cache_model.py."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from backend.cache.hierarchical import HierarchicalCache
from backend.cache.levels import CacheLevel
from backend.errors import StoreError
from backend.maintenance import Maintenance
from backend.session import Message
from backend.store.base import StoreOptions
from backend.store.memory import MemoryStore
from tests.support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backend.store.base import Extended


class CountingStore(MemoryStore):
    """Knows how often it was written to; fails while told to."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[tuple[str, int]] = []
        self.fails = False

    async def extend(self, chat_id: str, messages: Sequence[Message], *, whole: bool = False) -> Extended:
        if self.fails:
            raise StoreError("away")
        self.writes.append((chat_id, len(messages)))
        return await super().extend(chat_id, messages, whole=whole)


def named(text: str) -> Message:
    return Message(text, message_id=text)


async def texts(store: MemoryStore, chat: str = "chat") -> list[str]:
    session = await store.load(chat, recent=1000)
    return [] if session is None else [message.text for message in session.recent]


async def test_messages_are_acknowledged_from_memory_and_written_together() -> None:
    store = CountingStore()
    cache = HierarchicalCache(store=store, unwritten_limit=100)
    for number in range(5):
        session, level, _ = await cache.add_message("chat", named(str(number)))
        assert session.length == number + 1
        assert level is (CacheLevel.L1 if number else CacheLevel.MISS)
    assert store.writes == []
    await cache.write_out()
    assert store.writes == [("chat", 5)]
    await cache.write_out()
    assert store.writes == [("chat", 5)]
    assert (await cache.add_message("chat", named("5")))[1] is CacheLevel.L1, "memory went on being believed"


async def test_a_repeat_is_found_in_memory_and_gives_the_session_as_it_was() -> None:
    cache = HierarchicalCache(store=CountingStore(), unwritten_limit=100)
    first = (await cache.add_message("chat", named("a")))[0]
    second = (await cache.add_message("chat", named("b")))[0]
    await cache.add_message("chat", named("c"))
    assert await cache.add_message("chat", named("a")) == (first, CacheLevel.L1, True)
    assert await cache.add_message("chat", named("b")) == (second, CacheLevel.L1, True)
    assert cache.statistics().duplicates == 2


async def test_a_repeat_that_memory_does_not_reach_back_to_is_found_in_the_store() -> None:
    store = CountingStore()
    cache = HierarchicalCache(store=store, recent_messages=2, unwritten_limit=100)
    for text in "abcd":
        await cache.add_message("chat", named(text))
    session, _, duplicate = await cache.add_message("chat", named("c"))
    assert (session.length, duplicate) == (3, True)
    assert [message.text for message in session.recent] == ["b", "c"]
    session, _, duplicate = await cache.add_message("chat", named("a"))
    assert not duplicate, "further back than memory reaches: found out when it is written"
    await cache.write_out()
    assert await texts(store) == ["a", "b", "c", "d"]
    assert (await cache.add_message("chat", named("e")))[0].length == 5


async def test_beyond_its_limit_messages_are_written_through() -> None:
    store = CountingStore()
    cache = HierarchicalCache(store=store, unwritten_limit=2)
    for number in range(4):
        await cache.add_message("chat", named(str(number)))
    assert await texts(store) == ["0", "1", "2"]
    assert cache.statistics().unwritten == 1


async def test_a_message_that_was_written_through_is_known_in_memory_too() -> None:
    cache = HierarchicalCache(store=CountingStore(), unwritten_limit=1)
    for text in "abc":
        assert not (await cache.add_message("chat", named(text)))[2]
    for position, text in enumerate("abc", start=1):
        session, level, duplicate = await cache.add_message("chat", named(text))
        assert (session.length, level, duplicate) == (position, CacheLevel.L1, True)


async def test_a_store_that_is_away_fails_messages_beyond_the_limit_and_none_is_lost() -> None:
    store = CountingStore()
    cache = HierarchicalCache(store=store, unwritten_limit=2)
    store.fails = True
    for text in "ab":
        await cache.add_message("chat", named(text))
    with pytest.raises(StoreError, match="away"):
        await cache.add_message("chat", named("c"))
    with pytest.raises(StoreError, match="away"):
        await cache.write_out()
    store.fails = False
    session, _, duplicate = await cache.add_message("chat", named("c"))
    assert (session.length, duplicate) == (3, False)
    assert await texts(store) == ["a", "b", "c"]


async def test_one_chat_that_cannot_be_written_does_not_keep_the_others() -> None:
    class OneBad(CountingStore):
        async def extend(self, chat_id: str, messages: Sequence[Message], *, whole: bool = False) -> Extended:
            if chat_id == "bad":
                raise StoreError("bad page")
            return await super().extend(chat_id, messages, whole=whole)

    store = OneBad()
    cache = HierarchicalCache(store=store, unwritten_limit=100)
    for chat in ("a", "bad", "b"):
        await cache.add_message(chat, named("1"))
    with pytest.raises(StoreError, match="bad page"):
        await cache.write_out()
    assert [chat for chat, _ in store.writes] == ["a", "b"]
    assert cache.statistics().unwritten == 1


async def test_two_servers_that_both_wrote_back_to_a_chat_lose_and_double_nothing() -> None:
    store = CountingStore()
    first, second = (HierarchicalCache(store=store, unwritten_limit=100) for _ in range(2))
    await first.add_message("chat", named("0"))
    await first.write_out()
    for text in ("a", "b"):
        await first.add_message("chat", named(f"1{text}"))
        await second.add_message("chat", named(f"2{text}"))
    await first.add_message("chat", named("both"))
    await second.add_message("chat", named("both"))
    await first.write_out()
    await second.write_out()
    assert await texts(store) == ["0", "1a", "1b", "both", "2a", "2b"]
    session, level, _ = await second.add_message("chat", named("3"))
    assert (session.length, level) == (7, CacheLevel.DISK), "its memory was behind"
    assert second.statistics().conflicts == 1


class ForgetfulStore(MemoryStore):
    """Takes the messages, and its first answer is lost."""

    answers_lost = 1

    async def extend(self, chat_id: str, messages: Sequence[Message], *, whole: bool = False) -> Extended:
        result = await super().extend(chat_id, messages, whole=whole)
        if self.answers_lost:
            self.answers_lost -= 1
            raise StoreError("the answer was lost")
        return result


async def test_more_messages_than_the_dedupe_window_are_each_written_once_though_an_answer_is_lost() -> None:
    store = ForgetfulStore(StoreOptions(dedupe_window=4))
    cache = HierarchicalCache(store=store, unwritten_limit=100, dedupe_window=4)
    sent = [str(number) for number in range(10)]
    for text in sent:
        await cache.add_message("chat", named(text))
    with pytest.raises(StoreError, match="lost"):
        await cache.write_out()
    await cache.write_out()
    assert await texts(store) == sent
    assert cache.statistics().unwritten == 0
    session, _, _ = await cache.add_message("chat", named("10"))
    assert session.length == 11


async def test_a_long_session_is_written_in_parts_and_stays_in_memory() -> None:
    store = CountingStore()
    cache = HierarchicalCache(store=store, unwritten_limit=100, dedupe_window=4)
    for number in range(10):
        await cache.add_message("chat", named(str(number)))
    await cache.write_out()
    assert store.writes == [("chat", 4), ("chat", 4), ("chat", 2)]
    session, level, _ = await cache.add_message("chat", named("10"))
    assert (session.length, level) == (11, CacheLevel.L1)
    assert cache.statistics().conflicts == 0


async def test_a_session_from_a_peer_is_taken_once_though_an_answer_is_lost() -> None:
    store = ForgetfulStore(StoreOptions(dedupe_window=4))
    cache = HierarchicalCache(store=store, dedupe_window=4)
    messages = [named(str(number)) for number in range(10)]
    with pytest.raises(StoreError, match="lost"):
        await cache.absorb("chat", messages, whole=False)
    await cache.absorb("chat", messages, whole=False)
    assert await texts(store) == [message.text for message in messages]


async def test_an_evicted_session_is_written_before_it_is_read_again() -> None:
    store = CountingStore()
    cache = HierarchicalCache(1, 0, store=store, unwritten_limit=100)
    await cache.add_message("a", named("1"))
    await cache.add_message("b", named("1"))
    assert cache.eviction.is_set()
    assert store.writes == []
    session, level, _ = await cache.add_message("a", named("2"))
    assert (session.length, level) == (2, CacheLevel.DISK)
    assert store.writes == [("a", 1)]


async def test_an_ended_session_leaves_nothing_to_write() -> None:
    store = CountingStore()
    cache = HierarchicalCache(store=store, unwritten_limit=100)
    await cache.add_message("chat", named("1"))
    assert await cache.end("chat") == 1
    await cache.write_out()
    assert store.writes == []
    assert (await cache.add_message("chat", named("1")))[1] is CacheLevel.MISS


async def test_a_reply_goes_with_its_message_written_or_not() -> None:
    store = CountingStore()
    cache = HierarchicalCache(store=store, unwritten_limit=100)
    first = (await cache.add_message("chat", named("1")))[0]
    assert await cache.set_reply(first, "one") == "one"
    second = (await cache.add_message("chat", named("2")))[0]
    assert [message.reply for message in second.recent] == ["one", None]
    await cache.write_out()
    assert await cache.set_reply(second, "two") == "two"
    assert await cache.set_reply(second, "three") == "two", "the first reply stays"
    session = await store.load("chat", recent=9)
    assert session is not None
    assert [message.reply for message in session.recent] == ["one", "two"]
    repeated = (await cache.add_message("chat", named("2")))[0]
    assert repeated.last.reply == "two"


async def test_a_reply_is_kept_with_its_message_wherever_that_was_written() -> None:
    """Another server wrote to the chat first, so the message has another number than its server told the client."""
    store = CountingStore()
    first, second = (HierarchicalCache(store=store, unwritten_limit=100) for _ in range(2))
    await first.add_message("chat", named("0"))
    await first.write_out()
    await second.add_message("chat", named("mine"))
    await first.add_message("chat", named("theirs"))
    session = (await first.add_message("chat", named("mine too")))[0]
    await second.write_out()
    await first.write_out()
    await first.set_reply(session, "to mine too")
    found = await store.load("chat", recent=9)
    assert found is not None
    assert {message.text: message.reply for message in found.recent if message.reply} == {"mine too": "to mine too"}


async def test_a_reply_is_not_kept_with_a_message_of_the_chats_successor() -> None:
    store = CountingStore()
    cache = HierarchicalCache(store=store, unwritten_limit=100)
    session = (await cache.add_message("chat", named("old")))[0]
    await cache.end("chat")
    await cache.add_message("chat", named("new"))
    await cache.write_out()
    assert await cache.set_reply(session, "to the old one") == "to the old one"
    found = await store.load("chat", recent=9)
    assert found is not None
    assert found.last.reply is None


async def test_a_reply_to_an_ended_chat_is_given_and_not_kept() -> None:
    store = MemoryStore()
    cache = HierarchicalCache(store=store)
    session = (await cache.add_message("chat", named("1")))[0]
    await cache.end("chat")
    assert await cache.set_reply(session, "late") == "late"
    assert await store.load("chat", recent=1) is None


async def test_a_reply_makes_a_session_larger_in_its_level() -> None:
    cache = HierarchicalCache(store=MemoryStore())
    session = (await cache.add_message("chat", named("1")))[0]
    before = cache.levels.l1.bytes
    await cache.set_reply(session, "x" * 1000)
    assert cache.levels.l1.bytes == before + 1000
    resident = cache.levels.find("chat")
    assert resident is not None
    assert resident.size == resident.session.size == cache.levels.l1.bytes


async def test_messages_of_one_chat_keep_their_order_when_some_have_to_wait() -> None:
    """The fast path must not overtake those that wait for the store."""
    gate = asyncio.Event()

    class Gated(MemoryStore):
        async def load(self, chat_id: str, *, recent: int, until: int | None = None):  # type: ignore[no-untyped-def]
            await gate.wait()
            return await super().load(chat_id, recent=recent, until=until)

    store = Gated()
    cache = HierarchicalCache(store=store, unwritten_limit=100)
    async with asyncio.TaskGroup() as tasks:
        calls = [tasks.create_task(cache.add_message("chat", named(str(number)))) for number in range(5)]
        await asyncio.sleep(0)
        gate.set()
    assert [call.result()[0].last.text for call in calls] == ["0", "1", "2", "3", "4"]
    assert [call.result()[0].length for call in calls] == [1, 2, 3, 4, 5]


async def test_maintenance_writes_in_time_and_goes_on_after_a_failure() -> None:
    store = CountingStore()
    cache = HierarchicalCache(store=store, unwritten_limit=100)
    maintenance = Maintenance(cache, store, write_interval=0.01, session_ttl=None)
    store.fails = True
    await cache.add_message("chat", named("1"))
    await asyncio.sleep(0)
    store.fails = False
    await eventually(lambda: store.writes, "the write")
    await maintenance.stop()
    await maintenance.stop()


async def test_absorbing_adds_what_is_new_and_memory_learns_of_it() -> None:
    store = CountingStore()
    cache = HierarchicalCache(store=store, unwritten_limit=100)
    await cache.add_message("chat", named("1"))
    assert await cache.absorb("chat", [named("1"), named("2")], whole=True) == 1
    session, level, _ = await cache.add_message("chat", named("3"))
    assert (session.length, level) == (3, CacheLevel.DISK)
    assert await cache.absorb("chat", [named("2")], whole=True) == 0
    assert (await cache.add_message("chat", named("4")))[1] is CacheLevel.L1, "nothing new, so memory still holds"
