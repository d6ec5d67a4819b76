"""The cache against a plain model: whatever is done to two servers on one store, in whatever order.

The model knows one list of messages per chat. Nothing is ever missing from it, twice in it or out of order, and what a
server says is what the list says. With write-back that holds once everything is written; a server that crashes loses
what it had not written, and nothing else.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from backend.cache.hierarchical import HierarchicalCache
from backend.cache.levels import CacheLevel
from backend.errors import StoreError
from backend.session import Message
from backend.store.base import Appended, StoreOptions
from backend.store.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from backend.session import Version
    from backend.store.base import AppendResult, Extended

T = TypeVar("T")

CHATS = st.sampled_from("abcdef")
SERVERS = st.integers(0, 1)
TTL = 100.0
WINDOW = 6


class FailingStore(MemoryStore):
    """Fails when told, before or after it has written."""

    def __init__(self, options: StoreOptions) -> None:
        super().__init__(options)
        self.failure = ""
        self.wrote = False
        """The last append did."""

    async def append(self, chat_id: str, message: Message, *, expected: Version) -> AppendResult:
        self._fail("before")
        result = await super().append(chat_id, message, expected=expected)
        self.wrote = isinstance(result, Appended)
        self._fail("after")
        return result

    async def extend(self, chat_id: str, messages: Sequence[Message], *, whole: bool = False) -> Extended:
        self._fail("before")
        result = await super().extend(chat_id, messages, whole=whole)
        self._fail("after")
        return result

    def _fail(self, when: str) -> None:
        if self.failure == when:
            self.failure = ""
            self.wrote = self.wrote and when == "after"
            raise StoreError(f"failed {when} writing")


class ServerModel(RuleBasedStateMachine):
    """What the store of one or more servers must have, as a list of texts for each chat."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.texts: dict[str, list[str]] = {}
        """What each chat has."""
        self.next_id = 0

    def run(self, call: Coroutine[object, object, T]) -> T:
        return self.loop.run_until_complete(call)

    def new_text(self) -> str:
        self.next_id += 1
        return f"{self.next_id}"

    def teardown(self) -> None:
        self.loop.close()


class WriteThrough(ServerModel):
    """Two servers, write-through. Every acknowledgement is checked against the list at once."""

    unwritten_limit: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.store = FailingStore(StoreOptions(dedupe_window=WINDOW, session_ttl=TTL, clock=lambda: self.now))
        self.caches: list[HierarchicalCache] = []
        self.used: dict[str, float] = {}

    @initialize(
        capacities=st.tuples(st.integers(0, 2), st.integers(0, 2)),
        limits=st.tuples(*[st.one_of(st.none(), st.integers(700, 2500))] * 2),
        recent=st.integers(1, 4),
    )
    def begin(self, capacities: tuple[int, int], limits: tuple[int | None, int | None], recent: int) -> None:
        async def make() -> HierarchicalCache:
            return HierarchicalCache(
                *capacities,
                store=self.store,
                l1_bytes=limits[0],
                l2_bytes=limits[1],
                recent_messages=recent,
                session_ttl=TTL,
                unwritten_limit=self.unwritten_limit,
                clock=lambda: self.now,
            )

        self.make = make
        self.recent = recent
        self.caches = [self.run(make()), self.run(make())]

    def alive(self, chat: str) -> list[str]:
        """The list of a chat, empty if its time is over."""
        if self.now - self.used.get(chat, self.now) > TTL:
            self.texts.pop(chat, None)
        return self.texts.setdefault(chat, [])

    @rule(server=SERVERS, chat=CHATS)
    def post(self, server: int, chat: str) -> None:
        texts = self.alive(chat)
        text = self.new_text()
        session, level, duplicate = self.run(self.caches[server].add_message(chat, Message(text, message_id=text)))
        assert not duplicate
        assert not (texts and level is CacheLevel.MISS)
        texts.append(text)
        self.used[chat] = self.now
        self.check(session, texts)

    @rule(server=SERVERS, chat=CHATS, back=st.integers(1, WINDOW + 2))
    def post_again(self, server: int, chat: str, back: int) -> None:
        texts = self.alive(chat)
        if back > len(texts):
            return
        text = texts[-back]
        position = len(texts) - back + 1
        session, _, duplicate = self.run(self.caches[server].add_message(chat, Message(text, message_id=text)))
        assert duplicate == (back <= WINDOW)
        if not duplicate:
            texts.append(text)
            self.used[chat] = self.now
            position = len(texts)
        self.check(session, texts[:position])

    @rule(server=SERVERS, chat=CHATS, when=st.sampled_from(["before", "after"]))
    def post_while_the_store_fails(self, server: int, chat: str, when: str) -> None:
        """And send it again, as a client would."""
        texts = self.alive(chat)
        text = self.new_text()
        message = Message(text, message_id=text)
        self.store.failure = when
        with pytest.raises(StoreError):
            self.run(self.caches[server].add_message(chat, message))
        wrote = self.store.wrote
        session, _, duplicate = self.run(self.caches[1 - server].add_message(chat, message))
        assert duplicate == wrote
        texts.append(text)
        self.used[chat] = self.now
        self.check(session, texts)

    @rule(server=SERVERS, chat=CHATS)
    def look(self, server: int, chat: str) -> None:
        """May be behind, when the other server went on; never ahead."""
        session, _ = self.run(self.caches[server].get_or_create(chat))
        assert len(session.recent) <= self.recent

    @rule(server=SERVERS, chat=CHATS)
    def end(self, server: int, chat: str) -> None:
        texts = self.alive(chat)
        assert self.run(self.caches[server].end(chat)) == len(texts)
        texts.clear()

    @rule(seconds=st.sampled_from([1.0, 60.0, 101.0, -50.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for chat in list(self.texts):
            self.alive(chat)
        self.run(self.store.sweep())

    @rule(server=SERVERS)
    def sweep(self, server: int) -> None:
        self.caches[server].forget_idle()

    @rule(server=SERVERS)
    def crash(self, server: int) -> None:
        self.caches[server] = self.run(self.make())

    def check(self, session: object, texts: list[str]) -> None:
        from backend.session import Session

        assert isinstance(session, Session)
        assert session.length == len(texts)
        assert [message.text for message in session.recent] == texts[-len(session.recent) :]
        assert len(session.recent) == min(self.recent, len(texts))

    @invariant()
    def the_store_has_what_was_acknowledged(self) -> None:
        for chat, texts in self.texts.items():
            if self.now - self.used.get(chat, self.now) > TTL:
                continue
            stored = self.run(self.store.load(chat, recent=1_000))
            assert ([] if stored is None else [message.text for message in stored.recent]) == texts

    @invariant()
    def levels_are_within_their_limits(self) -> None:
        for cache in self.caches:
            for level in (cache.levels.l1, cache.levels.l2):
                assert len(level.residents) <= level.capacity
                assert level.bytes == sum(each.size for each in level.residents.values())
                assert level.max_bytes is None or level.bytes <= level.max_bytes
                for resident in level.residents.values():
                    assert resident.level is level
                    assert resident.size == resident.session.size
            assert not set(cache.levels.l1.residents) & set(cache.levels.l2.residents)
            assert len(cache._locks) == 0


class WriteBack(ServerModel):
    """One server at a time has a chat, and writes back. What it acknowledged is in the store after a write, once and in
    order, or lost with it when it crashes before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.store = FailingStore(StoreOptions(dedupe_window=WINDOW))
        self.written: dict[str, int] = {}
        """How many of a chat's messages must be in the store whatever happens."""

    @initialize(
        capacities=st.tuples(st.integers(0, 2), st.integers(0, 2)),
        limits=st.tuples(*[st.one_of(st.none(), st.integers(700, 2500))] * 2),
        recent=st.integers(2, 4),
        unwritten=st.integers(1, 6),
    )
    def begin(
        self, capacities: tuple[int, int], limits: tuple[int | None, int | None], recent: int, unwritten: int
    ) -> None:
        async def make() -> HierarchicalCache:
            return HierarchicalCache(
                *capacities,
                store=self.store,
                l1_bytes=limits[0],
                l2_bytes=limits[1],
                recent_messages=recent,
                unwritten_limit=unwritten,
            )

        self.make = make
        self.limit = unwritten
        self.cache = self.run(make())

    @rule(chat=CHATS)
    def post(self, chat: str) -> None:
        texts = self.texts.setdefault(chat, [])
        text = self.new_text()
        session, level, duplicate = self.run(self.cache.add_message(chat, Message(text, message_id=text)))
        assert not duplicate
        assert (level is CacheLevel.MISS) == (not texts)
        texts.append(text)
        assert (session.length, session.recent[-1].text) == (len(texts), text)

    @rule(chat=CHATS, back=st.integers(1, WINDOW))
    def post_again(self, chat: str, back: int) -> None:
        texts = self.texts.get(chat, [])
        if back > len(texts):
            return
        text = texts[-back]
        session, _, duplicate = self.run(self.cache.add_message(chat, Message(text, message_id=text)))
        position = len(texts) - back + 1
        if not duplicate:
            # Further back than memory reaches: it is found out when it is written, and the count is right again then.
            self.run(self.cache.write_out())
        else:
            assert (session.length, session.recent[-1].text) == (position, text)
            assert len(session.recent) >= min(2, position)

    @rule(chat=CHATS)
    def end(self, chat: str) -> None:
        texts = self.texts.pop(chat, [])
        assert self.run(self.cache.end(chat)) == len(texts)

    @rule()
    def write(self) -> None:
        self.run(self.cache.write_out())
        self.check_store()

    @rule(when=st.sampled_from(["before", "after"]))
    def write_while_the_store_fails(self, when: str) -> None:
        self.store.failure = when
        with suppress(StoreError):  # it fails if there is anything to write
            self.run(self.cache.write_out())
        self.store.failure = ""
        self.run(self.cache.write_out())
        self.check_store()

    @rule()
    def move_to_another_server(self) -> None:
        """It drains, the next one goes on."""
        self.run(self.cache.write_out())
        self.cache = self.run(self.make())

    @rule()
    def crash(self) -> None:
        """Only the end of a chat may be missing, and only what was not written."""
        lost = self.cache.statistics().unwritten
        self.cache = self.run(self.make())
        missing = 0
        for chat, texts in self.texts.items():
            stored = self.stored(chat)
            assert stored == texts[: len(stored)]
            missing += len(texts) - len(stored)
            del texts[len(stored) :]
        assert missing == lost

    def stored(self, chat: str) -> list[str]:
        session = self.run(self.store.load(chat, recent=1_000))
        return [] if session is None else [message.text for message in session.recent]

    def check_store(self) -> None:
        for chat, texts in self.texts.items():
            assert self.stored(chat) == texts
        assert self.cache.statistics().unwritten == 0

    @invariant()
    def what_is_unwritten_is_bounded(self) -> None:
        if hasattr(self, "cache"):
            assert self.cache.statistics().unwritten <= self.limit


TestWriteThrough = WriteThrough.TestCase
TestWriteThrough.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestWriteBack = WriteBack.TestCase
TestWriteBack.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
