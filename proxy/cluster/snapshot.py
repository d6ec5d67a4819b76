"""The immutable view of the cluster that a call looks up in."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping
from typing import Final

from proxy.balancing.hashing import vnodes_for_weight
from proxy.balancing.ring import RingNode, RingSnapshot
from proxy.balancing.settings import RingSettings
from proxy.cluster.endpoint import Endpoint

MAX_MEMO: Final = 65_536
"""Keys whose owner is remembered, at about 150 bytes each. A busy proxy sees the same chats again and again, and a hit
costs a tenth of a ring lookup."""
MAX_MEMO_KEY: Final = 256
"""Bytes of the longest key worth remembering, so that the memo's memory is bounded too."""


class ClusterSnapshot:
    """Members and ring. A new one replaces it when members or weights change; calls keep the one they started with."""

    __slots__ = ("_endpoints", "_hash", "_memo", "by_id", "misses", "ring", "settings", "version")

    def __init__(
        self, endpoints: tuple[Endpoint, ...], ring: RingSnapshot, settings: RingSettings, version: int
    ) -> None:
        """`ring`: of exactly these endpoints, as `building` makes it."""
        self.ring = ring
        self.settings = settings
        """What the ring was made by."""
        self.version = version
        """1 for the first of a cluster; each later one has the next number."""
        self.by_id: Mapping[str, Endpoint] = {endpoint.id: endpoint for endpoint in endpoints}
        self._endpoints = tuple(self.by_id[node.id] for node in ring.nodes)
        self._hash = ring.hash_key
        self._memo: dict[bytes, Endpoint] = {}
        self.misses = 0
        """Owners that were not remembered."""

    @classmethod
    def building(
        cls, endpoints: Mapping[Endpoint, float], settings: RingSettings, version: int
    ) -> Generator[None, None, ClusterSnapshot]:
        """The snapshot of these endpoints with these weights, in slices (see `RingSnapshot.building`). There is at
        least one, and their ids are distinct; their order does not matter.
        """
        nodes = [
            RingNode(each.id, vnodes_for_weight(weight, settings.virtual_nodes), str(each.address))
            for each, weight in endpoints.items()
        ]
        ring = yield from RingSnapshot.building(nodes, settings.hash)
        return cls(tuple(endpoints), ring, settings, version)

    def owner(self, key: bytes) -> Endpoint:
        """The endpoint whose chats `key` belongs to, available or not."""
        owner = self._memo.get(key)
        if owner is None:
            self.misses += 1
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
        for index in self.ring.walk(self._hash(key)):
            yield endpoints[index]

    def least_loaded(self) -> Iterator[Endpoint]:
        """Every endpoint once, the fewest active calls for its weight first; equal ones in order of id."""
        return iter(sorted(self.by_id.values(), key=_load))

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self.by_id.values())


def _load(endpoint: Endpoint) -> tuple[float, str]:
    return (endpoint.active + endpoint.elsewhere) / endpoint.weight, endpoint.id
