"""The immutable view of the cluster that a call looks up in."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Final

from proxy.balancing.hash_ring import HashRing
from proxy.balancing.hashing import hash_function, vnodes_for_weight
from proxy.balancing.settings import RingSettings
from proxy.cluster.endpoint import Endpoint

MAX_MEMO: Final = 65_536
"""Keys whose owner is remembered, at about 150 bytes each. A busy proxy sees the same chats again and again, and a hit
costs a tenth of a ring lookup."""
MAX_MEMO_KEY: Final = 256
"""Bytes of the longest key worth remembering, so that the memo's memory is bounded too."""


class ClusterSnapshot:
    """Members and ring. A new one replaces it when members or weights change; calls keep the one they started with."""

    __slots__ = ("_endpoints", "_hash", "_memo", "by_id", "ring", "version")

    def __init__(self, endpoints: tuple[Endpoint, ...], settings: RingSettings, version: int = 1) -> None:
        """`endpoints` is not empty and its ids are distinct; their order does not matter. `version`: counts the
        snapshots of a process, for people.
        """
        self.version = version
        ring = HashRing(settings.virtual_nodes, settings.hash)
        for endpoint in endpoints:
            ring.add_node(
                endpoint.id, vnodes_for_weight(endpoint.weight, settings.virtual_nodes), str(endpoint.address)
            )
        self.ring = ring.snapshot()
        self.by_id: Mapping[str, Endpoint] = {endpoint.id: endpoint for endpoint in endpoints}
        self._endpoints = tuple(self.by_id[node.id] for node in self.ring.nodes)
        self._hash = hash_function(settings.hash)
        self._memo: dict[bytes, Endpoint] = {}

    def owner(self, key: bytes) -> Endpoint:
        """The endpoint whose chats `key` belongs to, available or not."""
        owner = self._memo.get(key)
        if owner is None:
            owner = self._endpoints[self.ring.owner_index(self._hash(key))]
            if len(key) <= MAX_MEMO_KEY:
                if len(self._memo) >= MAX_MEMO:
                    self._memo.clear()
                self._memo[key] = owner
        return owner

    @property
    def recent_keys(self) -> Collection[bytes]:
        """Keys whose owner was asked for, as far as they are remembered."""
        return self._memo.keys()

    def candidates(self, key: bytes) -> Iterator[Endpoint]:
        """Every endpoint once, in ring order from the owner of `key`, available or not."""
        endpoints = self._endpoints
        return (endpoints[index] for index in self.ring.walk(self._hash(key)))

    def least_loaded(self) -> Iterator[Endpoint]:
        """Every endpoint once, the fewest active calls for its weight first; equal ones in order of id."""
        return iter(sorted(self.by_id.values(), key=lambda endpoint: (endpoint.active / endpoint.weight, endpoint.id)))

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self.by_id.values())
