"""The servers behind the proxy, as they are now, and how they change.

The endpoints of a new configuration are matched with the present ones by id and by how they are reached. Whoever is in
both keeps its `Endpoint`, and with it its connections, its calls and whatever is said against it. A server under a new
address is a new server with an old name: its chats stay, since the id alone decides about those.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from typing import NamedTuple

from proxy.balancing.settings import RingSettings
from proxy.cluster.address import Address
from proxy.cluster.endpoint import Cause, Endpoint
from proxy.cluster.settings import EndpointSettings
from proxy.cluster.snapshot import ClusterSnapshot
from proxy.slices import at_once


class Succession(NamedTuple):
    """What `Cluster.publish` will make true."""

    snapshot: ClusterSnapshot
    """The present one if members, weights and ring stay."""
    weights: Mapping[Endpoint, float]
    added: tuple[Endpoint, ...]
    removed: tuple[Endpoint, ...]


class Cluster:
    """Owns the endpoints and publishes their snapshot. One reference, replaced whole."""

    __slots__ = ("snapshot",)

    def __init__(self, endpoints: Iterable[EndpointSettings], ring: RingSettings, version: int = 1) -> None:
        """`version`: of the first snapshot."""
        weights = {_endpoint(each): each.weight for each in endpoints}
        self.snapshot = at_once(ClusterSnapshot.building(weights, ring, version))

    def succession(
        self, endpoints: Iterable[EndpointSettings], ring: RingSettings, version: int | None = None
    ) -> Generator[None, None, Succession]:
        """The change to these endpoints, in slices; nothing has changed until it is published. Only one may be under
        way. `version`: of the new snapshot, if that is not simply the next number.
        """
        present = self.snapshot
        weights: dict[Endpoint, float] = {}
        added = []
        for each in endpoints:
            endpoint = present.by_id.get(each.id)
            if endpoint is None or not _is_reached(endpoint, each):
                endpoint = _endpoint(each)
                added.append(endpoint)
            weights[endpoint] = each.weight
        removed = tuple(each for each in present if each not in weights)
        stays = not added and not removed and ring == present.settings
        if stays and all(endpoint.weight == weight for endpoint, weight in weights.items()):
            return Succession(present, weights, (), ())
        snapshot = yield from ClusterSnapshot.building(weights, ring, version or present.version + 1)
        return Succession(snapshot, weights, tuple(added), removed)

    def publish(self, succession: Succession) -> None:
        """Calls look up in the new snapshot from now on; those under way keep theirs, and walk past whom it lacks."""
        for endpoint, weight in succession.weights.items():
            endpoint.weight = weight
        self.snapshot = succession.snapshot
        for endpoint in succession.removed:
            successor = succession.snapshot.by_id.get(endpoint.id)
            if successor is not None and endpoint.blocked_by(Cause.OPERATOR):
                successor.block(Cause.OPERATOR, endpoint.blocks[Cause.OPERATOR])  # who drains means the name
            endpoint.block(Cause.REMOVED, "removed from the configuration")


def _endpoint(settings: EndpointSettings) -> Endpoint:
    address = Address.parse(settings.address)
    return Endpoint(settings.id, address, settings.weight, tls=settings.tls, server_name=settings.server_name)


def _is_reached(endpoint: Endpoint, settings: EndpointSettings) -> bool:
    """Whether connections to `endpoint` are what the settings ask for."""
    return (endpoint.address, endpoint.tls, endpoint.server_name) == (
        Address.parse(settings.address),
        settings.tls,
        settings.server_name,
    )
