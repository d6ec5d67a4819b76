from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.cache.levels import CacheLevels, Level, Resident
from backend.session import Message, Session


class PlainLevels:
    """The contract in the plainest form: two lists, most recent first, and a table of sizes."""

    def __init__(self, capacities: tuple[int, int], limits: tuple[int | None, int | None]) -> None:
        self.capacities = capacities
        self.limits = limits
        self.levels: tuple[list[str], list[str]] = ([], [])
        self.sizes: dict[str, int] = {}
        self.demotions = self.promotions = self.evictions = 0
        self.too_large = [0, 0]
        self.evicted: list[str] = []

    def bytes(self, level: int) -> int:
        return sum(self.sizes[chat] for chat in self.levels[level])

    def place(self, chat: str) -> int | None:
        return next((level for level in (0, 1) if chat in self.levels[level]), None)

    def enter(self, chat: str, size: int) -> None:
        before = self.place(chat)
        self.discard(chat)
        self.sizes[chat] = size
        if self.fits(chat, 0):
            self.promotions += before == 1
            self.levels[0].insert(0, chat)
            while self.overfull(0):
                self.go_down(self.levels[0].pop(), 0)
        else:
            self.go_down(chat, before)

    def go_down(self, chat: str, before: int | None) -> None:
        if not self.fits(chat, 1):
            self.leave(chat)
            return
        self.demotions += before == 0
        self.levels[1].insert(0, chat)
        while self.overfull(1):
            self.leave(self.levels[1].pop())

    def leave(self, chat: str) -> None:
        self.evictions += 1
        self.evicted.append(chat)

    def fits(self, chat: str, level: int) -> bool:
        limit = self.limits[level]
        fits = self.capacities[level] > 0 and (limit is None or self.sizes[chat] <= limit)
        self.too_large[level] += self.capacities[level] > 0 and not fits
        return fits

    def overfull(self, level: int) -> bool:
        limit = self.limits[level]
        return len(self.levels[level]) > self.capacities[level] or (limit is not None and self.bytes(level) > limit)

    def discard(self, chat: str) -> None:
        for level in self.levels:
            if chat in level:
                level.remove(chat)


capacities = st.integers(0, 4)
limits = st.one_of(st.none(), st.integers(1, 30))
steps = st.lists(
    st.tuples(st.sampled_from("abcdefghi"), st.sampled_from(["enter", "grew", "resize", "discard"]), st.integers(1, 12))
)


def resident(chat: str, size: int = 1) -> Resident:
    made = Resident(Session(chat))
    made.size = size
    return made


def grow(resident: Resident, by: int) -> None:
    """As `append` and `replace` do."""
    resident.size += by
    if resident.level is not None:
        resident.level.bytes += by


@given(st.tuples(capacities, capacities), st.tuples(limits, limits), steps)
def test_levels_do_what_two_plain_lists_do(
    capacities: tuple[int, int], limits: tuple[int | None, int | None], steps: list[tuple[str, str, int]]
) -> None:
    evicted: list[str] = []
    levels = CacheLevels(
        *capacities,
        l1_bytes=limits[0],
        l2_bytes=limits[1],
        evicted=lambda resident: evicted.append(resident.chat_id),
    )
    plain = PlainLevels(capacities, limits)
    for chat, step, size in steps:
        here = levels.find(chat)
        if step == "discard":
            levels.discard(chat)
            plain.discard(chat)
        elif here is None:
            levels.enter(resident(chat, size))
            plain.enter(chat, size)
        elif step == "enter":
            levels.enter(here)
            plain.enter(chat, plain.sizes[chat])
        elif step == "grew":
            by = size - 4 if here.size + size - 4 > 0 else 1
            grow(here, by)
            levels.used(here)
            plain.enter(chat, plain.sizes[chat] + by)
        else:
            grow(here, size)
            plain.sizes[chat] += size
        assert (levels.l1.chats(), levels.l2.chats()) == plain.levels
        assert (levels.l1.bytes, levels.l2.bytes) == (plain.bytes(0), plain.bytes(1))
        assert [levels.l1.too_large, levels.l2.too_large] == plain.too_large
        assert evicted == plain.evicted
        assert (levels.demotions, levels.promotions, levels.evictions) == (
            plain.demotions,
            plain.promotions,
            plain.evictions,
        )


def test_find_names_the_level_and_moves_nothing() -> None:
    levels = CacheLevels(1, 2)
    for chat in "abc":
        levels.enter(resident(chat))
    for chat, level in (("a", levels.l2), ("c", levels.l1)):
        found = levels.find(chat)
        assert found is not None
        assert found.level is level
    assert levels.find("z") is None
    assert (levels.l1.chats(), levels.l2.chats()) == (["c"], ["b", "a"])


def test_one_large_session_pushes_out_as_many_as_it_needs_room_for() -> None:
    levels = CacheLevels(5, 5, l1_bytes=10, l2_bytes=4)
    for chat in "abc":
        levels.enter(resident(chat, 3))
    levels.enter(resident("large", 9))
    assert (levels.l1.chats(), levels.l2.chats()) == (["large"], ["c"])
    assert (levels.demotions, levels.evictions) == (3, 2)
    assert (levels.l1.departures, levels.l2.departures) == (3, 2)


def test_a_session_larger_than_a_level_passes_it_by_and_says_so() -> None:
    told: list[tuple[str, Level]] = []
    levels = CacheLevels(5, 5, l1_bytes=5, l2_bytes=8, too_large=lambda each, level: told.append((each.chat_id, level)))
    levels.enter(resident("small", 3))
    levels.enter(resident("large", 7))
    levels.enter(resident("huge", 9))
    assert (levels.l1.chats(), levels.l2.chats()) == (["small"], ["large"])
    assert told == [("large", levels.l1), ("huge", levels.l1), ("huge", levels.l2)]
    assert (levels.l1.too_large, levels.l2.too_large) == (2, 1)


def test_a_session_that_outgrows_l1_goes_down_and_comes_back_when_it_shrinks() -> None:
    levels = CacheLevels(5, 5, l1_bytes=5)
    chat = resident("chat", 4)
    levels.enter(chat)
    grow(chat, 3)
    levels.used(chat)
    assert chat.level is levels.l2
    grow(chat, -3)
    levels.used(chat)
    assert chat.level is levels.l1
    assert (levels.demotions, levels.promotions) == (1, 1)


def test_idle_sessions_are_found_from_the_least_recent_on() -> None:
    levels = CacheLevels(2, 2)
    for used, chat in enumerate("abcd"):
        each = resident(chat)
        each.used = float(used)
        levels.enter(each)
    assert levels.idle_since(0.0) == []
    assert levels.idle_since(1.5) == ["a", "b"]
    assert sorted(levels.idle_since(9.0)) == ["a", "b", "c", "d"]


def test_a_session_counts_the_bytes_of_its_texts() -> None:
    small, large = Session("a", 1, (Message("x"),)), Session("a", 1, (Message("x" * 10_000),))
    assert large.size - small.size == 9_999
    assert Session("a", 1, (Message("x", reply="ü" * 1000),)).size == small.size + 2000


def test_negative_capacity_is_refused() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        CacheLevels(-1, 5)
