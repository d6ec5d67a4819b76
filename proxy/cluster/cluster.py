"""The servers behind the proxy, as they are now."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.balancing.settings import RingSettings
from proxy.cluster.address import Address
from proxy.cluster.endpoint import Endpoint
from proxy.cluster.settings import EndpointSettings
from proxy.cluster.snapshot import ClusterSnapshot


class Cluster:
    """Owns the endpoints and publishes their snapshot. One reference, replaced whole."""

    __slots__ = ("snapshot",)

    def __init__(self, endpoints: Sequence[EndpointSettings], ring: RingSettings) -> None:
        members = tuple(Endpoint(each.id, Address.parse(each.address), each.weight) for each in endpoints)
        self.snapshot = ClusterSnapshot(members, ring)
