from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxy.balancing.errors import DuplicateNodeError, EmptyRingError, InvalidCapacityError, UnknownNodeError
from proxy.balancing.hash_ring import HashRing
from proxy.balancing.hashing import HashLayout

GOLDEN = sorted((Path(__file__).parents[3] / "data" / "ring").glob("*.json"))
KEYS = [f"chat-{number}" for number in range(300)]
LAYOUTS: st.SearchStrategy[HashLayout] = st.sampled_from(["murmur3", "crc32"])
SERVERS = st.dictionaries(st.text(min_size=1, max_size=6), st.integers(1, 40), min_size=1, max_size=8)


def ring_with(servers: dict[str, int], layout: HashLayout = "murmur3") -> HashRing:
    ring = HashRing(layout=layout)
    for server, capacity in servers.items():
        ring.add_node(server, capacity, f"{server}:50051")
    return ring


def owners(ring: HashRing) -> dict[str, str]:
    return {key: ring.get_node(key)[0] for key in KEYS}


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_vectors_hold_for_the_ring_and_for_its_snapshot(path: Path) -> None:
    vectors: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    ring = ring_with(vectors["servers"], vectors["hash"])
    snapshot = ring.snapshot()
    for server, point in vectors["points_of_first_vnodes"].items():
        assert snapshot.hash_key(f"{server}#0".encode()) == point
    for key, order in vectors["orders"].items():
        assert [server for server, _ in ring.get_nodes(key, 99)] == order
        assert [snapshot.nodes[i].id for i in snapshot.walk(snapshot.hash_key(key.encode()))] == order
        assert snapshot.owner(key.encode()) == ring.get_node(key)[0] == order[0]


def test_there_are_golden_vectors_for_both_layouts() -> None:
    assert {path.stem for path in GOLDEN} == {"contract_crc32", "contract_murmur3", "uneven_crc32", "uneven_murmur3"}


def test_crc32_places_the_contracts_chats_as_the_original_does() -> None:
    servers = {"A": 100, "B": 150, "C": 100}
    points = sorted((zlib.crc32(f"{server}#{i}".encode()), server) for server, n in servers.items() for i in range(n))
    ring = ring_with(servers, "crc32")
    for number in range(25):
        chat = f"chat-{number:03d}"
        place = zlib.crc32(chat.encode())
        owner = next((server for point, server in points if point >= place), points[0][1])
        assert ring.get_node(chat) == (owner, f"{owner}:50051")


@given(servers=SERVERS, layout=LAYOUTS, data=st.data())
def test_order_of_adding_is_irrelevant(servers: dict[str, int], layout: HashLayout, data: st.DataObject) -> None:
    shuffled = dict(data.draw(st.permutations(list(servers.items()))))
    assert ring_with(servers, layout).snapshot() == ring_with(shuffled, layout).snapshot()


@given(servers=SERVERS, layout=LAYOUTS, capacity=st.integers(1, 40), looked_up=st.booleans())
def test_adding_and_removing_a_node_restores_the_identical_ring(
    servers: dict[str, int], layout: HashLayout, capacity: int, looked_up: bool
) -> None:
    ring = ring_with(servers, layout)
    before = ring.snapshot()
    if looked_up:  # from then on the sorted points are kept up to date
        ring.get_node("x")
    ring.add_node("the new one", capacity)
    ring.remove_node("the new one")
    after = ring.snapshot()
    assert after == before
    assert after.fingerprint == before.fingerprint
    assert (after._points, after._owners, after._start) == (before._points, before._owners, before._start)
    assert all(ring.get_node(key)[0] == before.owner(key.encode()) for key in KEYS)


@given(servers=SERVERS, layout=LAYOUTS, data=st.data())
def test_removing_a_node_moves_only_its_keys_each_to_the_next_server(
    servers: dict[str, int], layout: HashLayout, data: st.DataObject
) -> None:
    ring = ring_with({**servers, "stays behind": 5}, layout)
    gone = data.draw(st.sampled_from(sorted(servers)))
    before = {key: ring.get_nodes(key, 2) for key in KEYS}
    ring.remove_node(gone)
    for key, (owner, following) in before.items():
        assert ring.get_node(key) == (following if owner[0] == gone else owner)


@given(servers=SERVERS, layout=LAYOUTS, capacity=st.integers(1, 40))
def test_adding_a_node_moves_keys_only_to_it(servers: dict[str, int], layout: HashLayout, capacity: int) -> None:
    ring = ring_with(servers, layout)
    before = owners(ring)
    ring.add_node("the new one", capacity)
    for key, owner in owners(ring).items():
        assert owner in (before[key], "the new one")


@given(servers=SERVERS, key=st.text(), n=st.integers(-1, 10))
def test_get_nodes_are_distinct_from_the_owner_on_and_no_more_than_asked_for(
    servers: dict[str, int], key: str, n: int
) -> None:
    ring = ring_with(servers)
    found = ring.get_nodes(key, n)
    assert len(found) == max(0, min(n, len(servers)))
    assert len(set(found)) == len(found)
    assert found[:1] == [ring.get_node(key)][: max(0, n)]
    assert all(address == f"{server}:50051" for server, address in found)


@given(servers=SERVERS, layout=LAYOUTS, key=st.text())
def test_str_and_bytes_keys_have_the_same_owner(servers: dict[str, int], layout: HashLayout, key: str) -> None:
    ring = ring_with(servers, layout)
    assert ring.get_node(key) == ring.get_node(key.encode())
    assert ring.get_nodes(key, 3) == ring.get_nodes(key.encode(), 3)


def test_capacity_defaults_to_the_rings_virtual_nodes() -> None:
    ring = HashRing(virtual_nodes=7)
    ring.add_node("a")
    ring.add_node("b", 3)
    assert [node.vnodes for node in ring.snapshot().nodes] == [7, 3]
    assert HashRing()._virtual_nodes == 100


def test_a_snapshot_stays_the_same_object_until_the_ring_changes_and_is_not_changed_by_it() -> None:
    ring = ring_with({"a": 10, "b": 10})
    first = ring.snapshot()
    assert ring.snapshot() is first
    ring.remove_node("a")
    assert [node.id for node in first.nodes] == ["a", "b"]
    assert [node.id for node in ring.snapshot().nodes] == ["b"]


def test_adding_a_node_twice_is_refused_and_changes_nothing() -> None:
    ring = ring_with({"a": 10})
    before = ring.snapshot()
    with pytest.raises(DuplicateNodeError, match="'a'"):
        ring.add_node("a", 20)
    assert ring.snapshot() is before


def test_removing_an_unknown_node_is_refused() -> None:
    with pytest.raises(UnknownNodeError, match="'b'"):
        ring_with({"a": 10}).remove_node("b")


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_node_without_vnodes_is_refused(capacity: int) -> None:
    ring = HashRing()
    with pytest.raises(InvalidCapacityError, match=str(capacity)):
        ring.add_node("a", capacity)
    assert "a" not in ring
    assert len(ring) == 0


def test_an_empty_ring_has_no_nodes_to_give() -> None:
    ring = ring_with({"a": 10})
    ring.remove_node("a")
    with pytest.raises(EmptyRingError):
        ring.get_node("chat-000")
    with pytest.raises(EmptyRingError):
        ring.get_nodes("chat-000", 2)
    assert ring.snapshot().nodes == ()


class RingAgainstModel(RuleBasedStateMachine):
    """Any sequence of changes gives the ring that would be built from the members at once."""

    def __init__(self) -> None:
        super().__init__()
        self.ring = HashRing()
        self.model: dict[str, int] = {}

    @rule(server=st.sampled_from("abcdef"), capacity=st.integers(1, 20))
    def add(self, server: str, capacity: int) -> None:
        if server in self.model:
            with pytest.raises(DuplicateNodeError):
                self.ring.add_node(server, capacity)
        else:
            self.ring.add_node(server, capacity, f"{server}:50051")
            self.model[server] = capacity

    @rule(server=st.sampled_from("abcdef"))
    def remove(self, server: str) -> None:
        if server in self.model:
            self.ring.remove_node(server)
            del self.model[server]
        else:
            with pytest.raises(UnknownNodeError):
                self.ring.remove_node(server)

    @precondition(lambda self: self.model)
    @rule(key=st.text(max_size=5))
    def look_up(self, key: str) -> None:
        assert self.ring.get_nodes(key, 9) == ring_with(self.model).get_nodes(key, 9)
        assert self.ring.get_node(key)[0] == self.ring.snapshot().owner(key.encode())

    @invariant()
    def same_members(self) -> None:
        assert len(self.ring) == len(self.model)
        assert all(server in self.ring for server in self.model)
        assert self.ring.snapshot() == ring_with(self.model).snapshot()


TestRingAgainstModel = RingAgainstModel.TestCase
