"""What a change would move, against the owners themselves."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.balancing.errors import DuplicateNodeError, UnknownNodeError
from proxy.balancing.plan import Plan, changed, planning
from proxy.balancing.ring import RingNode, RingSnapshot
from proxy.slices import at_once

SIZE = 2**32
PLACES = st.integers(0, 6) | st.integers(SIZE - 4, SIZE - 1) | st.integers(0, SIZE - 1)
POINTS = st.dictionaries(st.sampled_from("abcd"), st.lists(PLACES, min_size=1, max_size=8), min_size=1)
MEMBERS = st.dictionaries(st.text(min_size=1, max_size=4), st.integers(1, 40), min_size=2, max_size=8)


def ring_of_points(points: dict[str, list[int]]) -> RingSnapshot:
    nodes = [RingNode(node_id, len(places)) for node_id, places in points.items()]
    return RingSnapshot.build(nodes, "murmur3", lambda node: points[node.id])


def ring(members: dict[str, int]) -> RingSnapshot:
    return RingSnapshot.build([RingNode(node_id, vnodes) for node_id, vnodes in members.items()])


def plan(before: RingSnapshot, after: RingSnapshot, keys: list[bytes] | None = None) -> Plan:
    return at_once(planning(before, after, keys or []))


def owner(points: dict[str, list[int]], place: int) -> str:
    """By looking at every point."""
    return min((min((point - place) % SIZE for point in places), node) for node, places in points.items())[1]


@given(before=POINTS, after=POINTS)
def test_places_that_move_are_those_whose_owner_is_another(
    before: dict[str, list[int]], after: dict[str, list[int]]
) -> None:
    expected: Counter[tuple[str, str]] = Counter()
    last = -1
    for end in sorted(
        {point for points in (before, after) for places in points.values() for point in places} | {SIZE - 1}
    ):
        # Every place of the piece has the same owners: looked at both of its ends.
        pair = owner(before, end), owner(after, end)
        assert pair == (owner(before, last + 1), owner(after, last + 1))
        if pair[0] != pair[1]:
            expected[pair] += end - last
        last = end
    assert plan(ring_of_points(before), ring_of_points(after)).places == expected


@given(before=MEMBERS, after=MEMBERS, keys=st.lists(st.binary(max_size=8), max_size=30))
def test_keys_that_move_are_those_whose_owner_is_another(
    before: dict[str, int], after: dict[str, int], keys: list[bytes]
) -> None:
    old, new = ring(before), ring(after)
    expected = Counter((old.owner(key), new.owner(key)) for key in keys if old.owner(key) != new.owner(key))
    assert plan(old, new, keys).keys == expected


@given(MEMBERS)
def test_whoever_is_removed_gives_all_it_has_and_nobody_else_gives_anything(members: dict[str, int]) -> None:
    gone = min(members)
    before = ring(members)
    after = ring({node: vnodes for node, vnodes in members.items() if node != gone})
    found = plan(before, after).places
    assert {source for source, _ in found} <= {gone}
    assert sum(found.values()) / SIZE == before.shares()[gone]
    back = plan(after, before).places
    assert back == {(target, source): places for (source, target), places in found.items()}


@given(MEMBERS)
def test_the_same_members_move_nothing(members: dict[str, int]) -> None:
    assert plan(ring(members), ring(members)) == Plan({}, {})


NODES = [RingNode("a", 100, "h:1"), RingNode("b", 150, "h:2")]


def test_a_change_adds_removes_and_reweights() -> None:
    after = changed(NODES, 100, add={"c": 2.0}, remove={"a"}, reweight={"b": 1.0})
    assert {node.id: node.vnodes for node in after} == {"b": 100, "c": 200}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"remove": {"x"}}, UnknownNodeError),
        ({"reweight": {"x": 1.0}}, UnknownNodeError),
        ({"add": {"a": 1.0}}, DuplicateNodeError),
        ({"remove": {"a"}, "reweight": {"a": 2.0}}, DuplicateNodeError),
        ({"remove": {"a"}, "add": {"a": 2.0}}, DuplicateNodeError),
    ],
)
def test_an_unclear_change_is_refused(change: dict, error: type[Exception]) -> None:
    with pytest.raises(error):
        changed(NODES, 100, **{"add": {}, "remove": (), "reweight": {}, **change})
