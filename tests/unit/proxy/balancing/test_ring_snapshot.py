from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import FrozenInstanceError
from fractions import Fraction
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.balancing.errors import DuplicateNodeError, EmptyRingError
from proxy.balancing.hashing import HashLayout
from proxy.balancing.ring import RingNode, RingSnapshot

NODES = [RingNode("Server-A", 100, "a:1"), RingNode("Server-B", 150, "b:1"), RingNode("Server-C", 100, "c:1")]

HASHES = st.integers(0, 2**32 - 1)
LAYOUTS: st.SearchStrategy[HashLayout] = st.sampled_from(["murmur3", "crc32"])
MEMBERS = st.dictionaries(st.text(min_size=1, max_size=8), st.integers(1, 30), min_size=1, max_size=12).map(
    lambda members: [RingNode(node_id, vnodes) for node_id, vnodes in members.items()]
)


def ring_of_points(points: dict[str, list[int]]) -> RingSnapshot:
    """A ring whose points are chosen, not hashed."""
    nodes = [RingNode(node_id, len(places)) for node_id, places in points.items()]
    return RingSnapshot.build(nodes, "murmur3", lambda node: points[node.id])


def naive_order(points: dict[str, list[int]], key_hash: int) -> list[str]:
    """The order of failover by looking at every point."""
    nearest = sorted((min((p - key_hash) % 2**32 for p in places), node.encode()) for node, places in points.items())
    return [node.decode() for _, node in nearest]


@given(
    # Few places and few bits: equal points and crowded prefixes are the rule, the ends of the ring included.
    points=st.dictionaries(
        st.sampled_from(["a", "b", "c", "ä", "\U0001f600", "\uffff"]),
        st.lists(st.integers(0, 6) | st.integers(2**32 - 4, 2**32 - 1) | HASHES, min_size=1, max_size=12),
        min_size=1,
    ),
    key_hash=st.integers(0, 8) | st.integers(2**32 - 6, 2**32 - 1) | HASHES,
)
def test_walk_and_owner_agree_with_looking_at_every_point(points: dict[str, list[int]], key_hash: int) -> None:
    ring = ring_of_points(points)
    expected = naive_order(points, key_hash)
    assert [ring.nodes[index].id for index in ring.walk(key_hash)] == expected
    assert ring.nodes[ring.owner_index(key_hash)].id == expected[0]


def test_a_key_on_a_point_belongs_to_it_and_one_after_it_to_the_next() -> None:
    ring = ring_of_points({"a": [100], "b": [200]})
    owners = {key_hash: ring.nodes[ring.owner_index(key_hash)].id for key_hash in (0, 100, 101, 200, 201, 2**32 - 1)}
    assert owners == {0: "a", 100: "a", 101: "b", 200: "b", 201: "a", 2**32 - 1: "a"}


def test_of_equal_points_the_smaller_id_wins_and_its_leaving_gives_the_place_to_the_other() -> None:
    both = {"b": [100], "a": [100], "z": [2**31]}
    ring = ring_of_points(both)
    assert ring.nodes[ring.owner_index(50)].id == "a"
    del both["a"]
    ring = ring_of_points(both)
    assert ring.nodes[ring.owner_index(50)].id == "b"


def test_many_points_under_one_prefix_are_told_apart() -> None:
    ring = ring_of_points({"a": list(range(0, 2000, 2)), "b": list(range(1, 2000, 2))})
    owners = [ring.nodes[ring.owner_index(key_hash)].id for key_hash in (0, 1, 998, 1999, 2000)]
    assert owners == ["a", "b", "a", "b", "a"]


@given(members=MEMBERS, layout=LAYOUTS, key_hash=HASHES)
def test_walk_yields_each_node_once_and_the_owner_first(
    members: list[RingNode], layout: HashLayout, key_hash: int
) -> None:
    ring = RingSnapshot.build(members, layout)
    walked = list(ring.walk(key_hash))
    assert sorted(walked) == list(range(len(members)))
    assert walked[0] == ring.owner_index(key_hash)


@given(members=MEMBERS, layout=LAYOUTS, key_hash=HASHES)
def test_the_next_on_the_walk_owns_the_key_once_those_before_it_are_gone(
    members: list[RingNode], layout: HashLayout, key_hash: int
) -> None:
    ring = RingSnapshot.build(members, layout)
    left = list(ring.nodes)
    for index in ring.walk(key_hash):
        smaller = RingSnapshot.build(left, layout)
        assert smaller.nodes[smaller.owner_index(key_hash)] == ring.nodes[index]
        left.remove(ring.nodes[index])


def test_walk_is_lazy() -> None:
    assert len(list(islice(RingSnapshot.build(NODES).walk(7), 2))) == 2


@given(members=MEMBERS, layout=LAYOUTS)
def test_shares_are_exact_and_sum_to_one(members: list[RingNode], layout: HashLayout) -> None:
    ring = RingSnapshot.build(members, layout)
    shares = ring.shares()
    assert set(shares) == {node.id for node in members}
    assert sum(map(Fraction, shares.values())) == 1


@given(points=st.lists(HASHES, min_size=1, max_size=20))
def test_shares_count_the_hashes_each_node_owns(points: list[int]) -> None:
    ring = ring_of_points({"a": points[::2], "b": points[1::2]} if len(points) > 1 else {"a": points})
    ends = sorted({*points, 2**32 - 1})
    counted = dict.fromkeys(ring.shares(), 0)
    for before, end in pairwise([-1, *ends]):
        counted[ring.nodes[ring.owner_index(end)].id] += end - before
    assert ring.shares() == {node_id: count / 2**32 for node_id, count in counted.items()}


@pytest.mark.parametrize(("per_weight", "tolerance"), [(100, 0.33), (2000, 0.10)])
def test_shares_match_weights_within_a_third_at_100_vnodes_and_a_tenth_at_2000(
    per_weight: int, tolerance: float
) -> None:
    # The share of n vnodes has a relative standard deviation of about 1/sqrt(n): 10 % and 2.2 %. Three to four of them.
    weights = {f"server-{number}.chat.svc:50051": 1 + number % 3 for number in range(9)}
    ring = RingSnapshot.build([RingNode(name, weight * per_weight) for name, weight in weights.items()])
    for name, share in ring.shares().items():
        assert share == pytest.approx(weights[name] / sum(weights.values()), rel=tolerance)


def test_shares_of_crc32_are_within_half_and_double_of_the_weights() -> None:
    # The original's layout is that uneven; see proxy/balancing/hashing.py.
    ring = RingSnapshot.build([RingNode(f"server-{number}.chat.svc:50051", 100) for number in range(16)], "crc32")
    assert all(1 / 32 < share < 2 / 16 for share in ring.shares().values())


@given(members=MEMBERS, layout=LAYOUTS, data=st.data())
def test_order_of_nodes_is_irrelevant(members: list[RingNode], layout: HashLayout, data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(members))
    ring, other = RingSnapshot.build(members, layout), RingSnapshot.build(shuffled, layout)
    assert ring == other
    assert ring._points == other._points
    assert ring._owners == other._owners


def test_fingerprint_tells_members_vnodes_and_layout_apart_but_not_addresses() -> None:
    base = RingSnapshot.build(NODES).fingerprint
    assert RingSnapshot.build(reversed(NODES)).fingerprint == base
    assert RingSnapshot.build([node._replace(address="elsewhere:9") for node in NODES]).fingerprint == base
    others = [
        RingSnapshot.build(NODES, "crc32"),
        RingSnapshot.build(NODES[:2]),
        RingSnapshot.build([*NODES[:2], NODES[2]._replace(vnodes=101)]),
        RingSnapshot.build([*NODES[:2], NODES[2]._replace(id="Server-D")]),
        RingSnapshot.build([]),
    ]
    assert len({base, *(ring.fingerprint for ring in others)}) == 6


def test_fingerprint_is_not_fooled_by_an_id_that_imitates_another_node() -> None:
    forged = RingSnapshot.build([RingNode("a 1\n1 b", 1)])
    assert forged.fingerprint != RingSnapshot.build([RingNode("a", 1), RingNode("b", 1)]).fingerprint


@pytest.mark.parametrize("seed", ["0", "12345"])
def test_fingerprint_is_the_same_in_other_processes_and_releases(seed: str) -> None:
    code = (
        "from proxy.balancing.ring import RingNode, RingSnapshot;"
        "print(RingSnapshot.build([RingNode('Server-A', 100), RingNode('Server-B', 150)]).fingerprint)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, text=True)
    # Written down: proxies of different releases compare fingerprints, so a change is a breaking one.
    assert output.stdout.strip() == FINGERPRINT


FINGERPRINT = "1e0fe31cd3942240"


def test_a_snapshot_cannot_be_changed() -> None:
    ring = RingSnapshot.build(NODES)
    with pytest.raises(FrozenInstanceError):
        ring.nodes = ()  # type: ignore[misc]


def test_snapshots_with_other_addresses_differ() -> None:
    assert RingSnapshot.build([RingNode("a", 1, "x:1")]) != RingSnapshot.build([RingNode("a", 1, "y:1")])


def test_two_nodes_with_one_id_are_refused() -> None:
    with pytest.raises(DuplicateNodeError) as caught:
        RingSnapshot.build([RingNode("a", 1), RingNode("b", 1), RingNode("a", 2)])
    assert caught.value.node_id == "a"


def test_an_empty_ring_has_no_owner_no_walk_and_no_shares() -> None:
    ring = RingSnapshot.build([])
    with pytest.raises(EmptyRingError):
        ring.owner_index(0)
    with pytest.raises(EmptyRingError):
        ring.owner(b"chat-000")
    assert list(ring.walk(2**32 - 1)) == []
    assert ring.shares() == {}


def test_a_single_node_owns_everything() -> None:
    ring = RingSnapshot.build([RingNode("only", 1)])
    assert {ring.owner_index(key_hash) for key_hash in (0, 1, 2**31, 2**32 - 1)} == {0}
    assert ring.shares() == {"only": 1.0}


@given(
    points=st.dictionaries(
        st.sampled_from(["a", "b", "c"]),
        st.lists(st.integers(0, 6) | st.integers(2**32 - 4, 2**32 - 1) | HASHES, min_size=1, max_size=8),
        min_size=1,
    )
)
def test_arcs_are_the_whole_ring_in_the_longest_pieces_of_one_owner(points: dict[str, list[int]]) -> None:
    ring = ring_of_points(points)
    arcs = list(ring.arcs())
    owners = {ring.owner_index(place) for places in points.values() for place in places}
    assert {arc.node for arc in arcs} == owners, "whoever owns anything has an arc, and nobody else"
    following = [*arcs[1:], arcs[0]]
    for arc, after in zip(arcs, following, strict=True):
        assert arc.end == after.start
        assert len(arcs) == 1 or arc.node != after.node
        for place in (arc.end, (arc.start + 1) % 2**32):
            assert ring.owner_index(place) == arc.node
    lengths = [(arc.end - arc.start) % 2**32 or 2**32 for arc in arcs]
    assert sum(lengths) == 2**32
    shares = dict.fromkeys(ring.shares(), 0.0)
    for arc, length in zip(arcs, lengths, strict=True):
        shares[ring.nodes[arc.node].id] += length / 2**32
    assert shares == ring.shares()


def test_an_empty_ring_has_no_arcs() -> None:
    assert list(RingSnapshot.build([]).arcs()) == []
