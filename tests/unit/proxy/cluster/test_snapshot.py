from __future__ import annotations

import pytest

from proxy.balancing.hash_ring import HashRing
from proxy.balancing.settings import RingSettings
from proxy.cluster.cluster import Cluster
from proxy.cluster.endpoint import Cause
from proxy.cluster.settings import EndpointSettings
from proxy.cluster.snapshot import MAX_MEMO, ClusterSnapshot


def cluster(*members: tuple[str, float], **ring: object) -> ClusterSnapshot:
    endpoints = [EndpointSettings(id=name, address="127.0.0.1:1", weight=weight) for name, weight in members]
    return Cluster(endpoints, RingSettings.model_validate(ring)).snapshot


KEYS = [b"chat-%03d" % number for number in range(500)]


@pytest.mark.parametrize("layout", ["murmur3", "crc32"])
def test_the_owner_is_the_rings_whether_remembered_or_not(layout: str) -> None:
    snapshot = cluster(("A", 1.0), ("B", 1.5), ("C", 1.0), hash=layout)
    ring = HashRing(100, layout)  # type: ignore[arg-type]
    for name, capacity in (("C", 100), ("A", 100), ("B", 150)):
        ring.add_node(name, capacity)
    for _ in range(2):
        assert [snapshot.owner(key).id for key in KEYS] == [ring.get_node(key)[0] for key in KEYS]


def test_candidates_begin_with_the_owner_and_name_everyone_once() -> None:
    snapshot = cluster(*((name, 1.0) for name in "ABCDE"))
    for key in KEYS:
        names = [endpoint.id for endpoint in snapshot.candidates(key)]
        assert names[0] == snapshot.owner(key).id
        assert sorted(names) == list("ABCDE")


def test_availability_changes_no_owner() -> None:
    snapshot = cluster(("A", 1.0), ("B", 1.0))
    before = [snapshot.owner(key) for key in KEYS]
    snapshot.by_id["A"].block(Cause.HEALTH, "gone")
    assert [snapshot.owner(key) for key in KEYS] == before


def test_least_loaded_counts_calls_by_weight() -> None:
    snapshot = cluster(("A", 1.0), ("B", 4.0), ("C", 1.0))
    snapshot.by_id["A"].active = 2
    snapshot.by_id["B"].active = 4
    assert [endpoint.id for endpoint in snapshot.least_loaded()] == ["C", "B", "A"]


def test_the_memo_of_owners_is_bounded() -> None:
    snapshot = cluster(("A", 1.0), ("B", 1.0))
    for number in range(MAX_MEMO):
        snapshot.owner(b"%d" % number)
    assert len(snapshot._memo) == MAX_MEMO
    snapshot.owner(b"one more")
    assert len(snapshot._memo) == 1
    snapshot.owner(b"k" * 4096)
    assert b"k" * 4096 not in snapshot._memo
