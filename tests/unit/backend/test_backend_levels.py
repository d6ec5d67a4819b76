from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.cache.levels import CacheLevel, CacheLevels
from backend.session import Session


class PlainLevels:
    """The contract in the plainest form: two lists, most recent first."""

    def __init__(self, l1_capacity: int, l2_capacity: int) -> None:
        self.capacities = l1_capacity, l2_capacity
        self.l1: list[str] = []
        self.l2: list[str] = []
        self.demotions = self.promotions = self.evictions = 0

    def enter(self, chat: str) -> None:
        l1_capacity, l2_capacity = self.capacities
        first = self.l1 if l1_capacity else self.l2
        self.promotions += first is self.l1 and chat in self.l2
        for level in (self.l1, self.l2):
            if chat in level:
                level.remove(chat)
        first.insert(0, chat)
        if len(self.l1) > l1_capacity:
            self.l2.insert(0, self.l1.pop())
            self.demotions += l2_capacity > 0
        if len(self.l2) > l2_capacity:
            self.l2.pop()
            self.evictions += 1

    def discard(self, chat: str) -> None:
        self.l1 = [other for other in self.l1 if other != chat]
        self.l2 = [other for other in self.l2 if other != chat]


capacities = st.integers(0, 4)
steps = st.lists(st.tuples(st.sampled_from("abcdefghi"), st.sampled_from(["enter", "enter", "enter", "discard"])))


@given(capacities, capacities, steps)
def test_levels_do_what_two_plain_lists_do(l1_capacity: int, l2_capacity: int, steps: list[tuple[str, str]]) -> None:
    levels = CacheLevels(l1_capacity, l2_capacity)
    plain = PlainLevels(l1_capacity, l2_capacity)
    for number, (chat, step) in enumerate(steps):
        if step == "enter":
            levels.enter(Session(chat, number))
            plain.enter(chat)
        else:
            levels.discard(chat)
            plain.discard(chat)
        assert (levels.l1_chats(), levels.l2_chats()) == (plain.l1, plain.l2)
        assert (levels.demotions, levels.promotions, levels.evictions) == (
            plain.demotions,
            plain.promotions,
            plain.evictions,
        )


def test_find_names_the_level_and_moves_nothing() -> None:
    levels = CacheLevels(1, 2)
    for chat in "abc":
        levels.enter(Session(chat))
    assert levels.find("a") == (Session("a"), CacheLevel.L2)
    assert levels.find("c") == (Session("c"), CacheLevel.L1)
    assert levels.find("z") is None
    assert (levels.l1_chats(), levels.l2_chats()) == (["c"], ["b", "a"])


def test_entering_again_replaces_the_earlier_state() -> None:
    levels = CacheLevels(2, 2)
    levels.enter(Session("a", 1))
    levels.enter(Session("a", 2))
    assert levels.find("a") == (Session("a", 2), CacheLevel.L1)
    assert levels.l1_chats() == ["a"]


def test_negative_capacity_is_refused() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        CacheLevels(-1, 5)
