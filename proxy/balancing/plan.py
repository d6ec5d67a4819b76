"""What a change of the members would move, before it is made: a comparison of two rings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Generator, Iterable, Mapping
from heapq import merge
from typing import Final, NamedTuple

from proxy.balancing.errors import DuplicateNodeError, UnknownNodeError
from proxy.balancing.hashing import RING_SIZE, vnodes_for_weight
from proxy.balancing.ring import RingNode, RingSnapshot

_SLICE: Final = 64


class Plan(NamedTuple):
    """What goes where. Pairs are (from, to), by the ids of nodes."""

    places: Mapping[tuple[str, str], int]
    """Places on the ring that get another owner."""
    keys: Mapping[tuple[str, str], int]
    """Keys, of those that were given, that do."""


def changed(
    nodes: Iterable[RingNode],
    virtual_nodes: int,
    *,
    add: Mapping[str, float],
    remove: Collection[str],
    reweight: Mapping[str, float],
) -> list[RingNode]:
    """The members after a change. `add` and `reweight`: weights by id, with `virtual_nodes` vnodes for each 1.0.

    Raises UnknownNodeError and DuplicateNodeError. To remove and to add the same id, or to reweight it and remove it,
    is a DuplicateNodeError too: it is not clear what is meant.
    """
    members = {node.id: node for node in nodes}
    for node_id in (*remove, *reweight):
        if node_id not in members:
            raise UnknownNodeError(node_id)
    for node_id in add:
        if node_id in members:
            raise DuplicateNodeError(node_id)
    for node_id in reweight:
        if node_id in remove:
            raise DuplicateNodeError(node_id)
    for node_id in remove:
        del members[node_id]
    for node_id, weight in {**add, **reweight}.items():
        members[node_id] = RingNode(node_id, vnodes_for_weight(weight, virtual_nodes))
    return list(members.values())


def planning(before: RingSnapshot, after: RingSnapshot, keys: Iterable[bytes]) -> Generator[None, None, Plan]:
    """Compare two rings, neither of them empty, of the same layout. In slices (`proxy.slices`): 200,000 vnodes take
    some hundred milliseconds.
    """
    places: Counter[tuple[str, str]] = Counter()
    last = -1
    # Between two neighbouring points of both rings together, the owner is the same for all places, on either ring.
    for number, point in enumerate(merge(before.points(), after.points(), (RING_SIZE - 1,))):
        if point > last:
            _note(places, before, after, point, point - last)
            last = point
        if number % _SLICE == 0:
            yield
    moved: Counter[tuple[str, str]] = Counter()
    hash_key = before.hash_key
    for number, key in enumerate(keys):
        _note(moved, before, after, hash_key(key), 1)
        if number % _SLICE == 0:
            yield
    return Plan(places, moved)


def _note(found: Counter[tuple[str, str]], before: RingSnapshot, after: RingSnapshot, place: int, amount: int) -> None:
    source = before.nodes[before.owner_index(place)].id
    target = after.nodes[after.owner_index(place)].id
    if source != target:
        found[source, target] += amount
