"""The mutable ring: nodes come and go, and snapshots of it go to the data path.

The sorted points are kept in a `SortedList`, but only from the first lookup on: a cluster that only adds nodes and
takes snapshots (which sort integers instead of pairs) never pays for them.
"""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING

from sortedcontainers import SortedList

from proxy.balancing.errors import DuplicateNodeError, EmptyRingError, InvalidCapacityError, UnknownNodeError
from proxy.balancing.hashing import HashLayout, hash_function, vnode_points
from proxy.balancing.ring import RingNode, RingSnapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

_Entry = tuple[int, str]
"""A vnode: its point and the id of its node. Sorted as pairs, so equal points go to the smaller id."""


class HashRing:
    """A consistent-hash ring that can change. Not for the hot path: ask a `snapshot` there.

    `virtual_nodes` is the number of vnodes of a node added without a capacity; `layout` names the hash. Keys may be
    `str` (hashed as UTF-8) or `bytes`, with equal results.
    """

    def __init__(self, virtual_nodes: int = 100, layout: HashLayout = "murmur3") -> None:
        self._virtual_nodes = virtual_nodes
        self._layout = layout
        self._hash = hash_function(layout)
        self._nodes: dict[str, RingNode] = {}
        self._points: dict[str, list[int]] = {}
        self._entries: SortedList[_Entry] | None = None
        self._snapshot: RingSnapshot | None = None

    def __len__(self) -> int:
        """The number of nodes (not of vnodes)."""
        return len(self._nodes)

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._nodes

    def add_node(self, node_id: str, capacity: int | None = None, address: str = "") -> None:
        """Put a node on the ring with `capacity` vnodes (default: `virtual_nodes`). Only keys it now owns move.

        Raises `DuplicateNodeError` and `InvalidCapacityError`; then nothing has changed. O(V log N).
        """
        vnodes = self._virtual_nodes if capacity is None else capacity
        if vnodes < 1:
            raise InvalidCapacityError(node_id, vnodes)
        if node_id in self._nodes:
            raise DuplicateNodeError(node_id)
        points = vnode_points(node_id, vnodes, self._hash)
        self._nodes[node_id] = RingNode(node_id, vnodes, address)
        self._points[node_id] = points
        self._snapshot = None
        if self._entries is not None:
            self._entries.update((point, node_id) for point in points)

    def remove_node(self, node_id: str) -> None:
        """Take a node off the ring. Only its own keys move, each to the next distinct node clockwise.

        Raises `UnknownNodeError`. O(V log N).
        """
        if self._nodes.pop(node_id, None) is None:
            raise UnknownNodeError(node_id)
        points = self._points.pop(node_id)
        self._snapshot = None
        if self._entries is not None:
            for point in points:
                self._entries.remove((point, node_id))

    def get_node(self, key: str | bytes) -> tuple[str, str]:
        """The owner of a key: (id, address). Raises `EmptyRingError`. O(log N)."""
        for node_id in self._clockwise(key):
            return node_id, self._nodes[node_id].address
        raise EmptyRingError

    def get_nodes(self, key: str | bytes, n: int) -> list[tuple[str, str]]:
        """The first `n` distinct nodes clockwise from a key, owner first, as (id, address): the order of failover.

        Fewer when the ring has fewer; none for `n` < 1. Raises `EmptyRingError`.
        """
        if not self._nodes:
            raise EmptyRingError
        found: dict[str, str] = {}
        wanted = min(n, len(self._nodes))
        for node_id in self._clockwise(key):
            if len(found) >= wanted:
                break
            found[node_id] = self._nodes[node_id].address
        return list(found.items())

    def snapshot(self) -> RingSnapshot:
        """The ring as it is now, immutable. The same object until the ring changes."""
        if self._snapshot is None:
            points = self._points
            self._snapshot = RingSnapshot.build(self._nodes.values(), self._layout, lambda node: points[node.id])
        return self._snapshot

    def _clockwise(self, key: str | bytes) -> Iterator[str]:
        """The node of every vnode once round the ring, from the key's own on."""
        if self._entries is None:
            self._entries = SortedList((point, node_id) for node_id, points in self._points.items() for point in points)
        entries = self._entries
        # The empty id sorts before every other, so this finds the first of equal points too.
        first = entries.bisect_left((self._hash(key.encode() if isinstance(key, str) else key), ""))
        for _, node_id in chain(entries.islice(first), islice(entries, first)):
            yield node_id
