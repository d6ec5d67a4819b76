"""The admin API's view of the proxy in whose process it runs."""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from proxy.admin import schema
from proxy.admin.call_records import DecisionSettings, Kept, decisions_of
from proxy.admin.events import EventBus
from proxy.admin.ports import LastServerError
from proxy.admin.ring_view import RingViews
from proxy.admin.slices import sliced
from proxy.balancing.hashing import RING_SIZE
from proxy.balancing.ring import RingSnapshot
from proxy.cluster.cluster import Cluster
from proxy.cluster.endpoint import Cause, Endpoint
from proxy.cluster.health import Sign
from proxy.control.cache_stats import CacheStatsPoller
from proxy.forwarding.explain import Deciding, Explanation, Verdict, explain
from proxy.forwarding.stats import CALL_BOUNDS, StatsSnapshot
from proxy.transport.slices import in_passes

TRAFFIC_A_SLICE: Final = 8
DRAINED: Final = "drained by the operator"

_GRAVEST: Final[tuple[tuple[Cause, schema.EndpointStatus], ...]] = (
    (Cause.OPERATOR, "draining"),
    (Cause.CONNECT, "unreachable"),
    (Cause.HEALTH, "unhealthy"),
    (Cause.EJECTED, "ejected"),
)


def status_of(blocks: Collection[Cause]) -> schema.EndpointStatus:
    """One word for a server that these speak against."""
    return next((word for cause, word in _GRAVEST if cause in blocks), "available")


class EndpointJournal:
    """Remembers since when a cause speaks against a server, and tells the event bus of it."""

    def __init__(self, events: EventBus) -> None:
        self._events = events
        self._since: dict[tuple[str, Cause], datetime] = {}
        self.begun: Counter[tuple[str, Cause]] = Counter()
        """How often a cause began to speak against a server, by its id."""

    def forget(self, endpoint: Endpoint) -> None:
        """It has left the cluster."""
        for cause in Cause:
            self._since.pop((endpoint.id, cause), None)
            self.begun.pop((endpoint.id, cause), None)

    def blocks(self, endpoint: Endpoint) -> tuple[schema.Block, ...]:
        """What speaks against it now."""
        return tuple(
            schema.Block(cause=cause.value, reason=why, since=self._since.get((endpoint.id, cause)))
            for cause, why in endpoint.blocks.items()
        )

    def note(self, endpoint: Endpoint, cause: Cause) -> None:
        """The cause speaks against the server now, or no more."""
        why = endpoint.blocks.get(cause)
        if endpoint.blocked_by(Cause.REMOVED) and cause is not Cause.REMOVED:
            return  # what becomes of its last connections; another may have its name by now
        if why is not None:
            event = self._events.publish(_BEGINS[cause], endpoint=endpoint.id, cause=cause.value, detail=why)
            self._since[endpoint.id, cause] = event.at
            self.begun[endpoint.id, cause] += 1
        else:
            self._since.pop((endpoint.id, cause), None)
            self._events.publish(_CEASES[cause], endpoint=endpoint.id, cause=cause.value)


_BEGINS: Final = {
    Cause.CONNECT: "unreachable",
    Cause.HEALTH: "unhealthy",
    Cause.EJECTED: "ejected",
    Cause.OPERATOR: "drained",
    Cause.REMOVED: "removed",
}
_CEASES: Final = {
    Cause.CONNECT: "reachable",
    Cause.HEALTH: "healthy",
    Cause.EJECTED: "recovered",
    Cause.OPERATOR: "undrained",
}


class Pool(Protocol):
    """What is told of the connections to an endpoint."""

    @property
    def connections(self) -> Collection[object]:
        """Ready for calls."""

    @property
    def waiting(self) -> Collection[object]:
        """Calls that are parked."""


class Carrying(Deciding, Protocol):
    """What is told of those who carry the calls."""

    @property
    def active(self) -> int:
        """Calls under way."""


@dataclass(frozen=True, slots=True)
class LocalProxy:
    """`AdminPort` of a data path in the same process, or of what is known of it there."""

    cluster: Cluster
    forwarder: Carrying
    pools: Mapping[Endpoint, Pool]
    events: EventBus
    journal: EndpointJournal
    settings: Callable[[], dict[str, Any]]
    """The settings that hold, as JSON, secrets masked."""
    unready: Callable[[], str]
    """See `AdminPort.not_ready`."""
    views: RingViews
    reloading: Callable[[], Awaitable[schema.Reloaded]]
    """See `AdminPort.reload`."""
    gathering: Callable[[], Awaitable[StatsSnapshot]]
    """The numbers of the data path."""
    remembering: Callable[[], Awaitable[Collection[bytes]]]
    """See `AdminPort.recent_keys`."""
    check_results: Mapping[tuple[str, Sign], int]
    """Health checks, by endpoint and what they gave."""
    cache_stats: CacheStatsPoller
    latest: Callable[[int, bytes | None], Awaitable[Sequence[Kept]]]
    """The latest records of calls of the data path: so many, of this chat."""
    decision_settings: DecisionSettings

    def not_ready(self) -> str:
        """See `AdminPort`."""
        return self.unready()

    def config(self) -> dict[str, Any]:
        """See `AdminPort`."""
        return self.settings()

    def snapshot(self) -> schema.Snapshot:
        """See `AdminPort`."""
        snapshot = self.cluster.snapshot
        return schema.Snapshot(version=snapshot.version, fingerprint=snapshot.ring.fingerprint)

    def ring(self) -> RingSnapshot:
        """See `AdminPort`."""
        return self.cluster.snapshot.ring

    def virtual_nodes(self) -> int:
        """See `AdminPort`."""
        return self.cluster.snapshot.settings.virtual_nodes

    async def endpoints(self) -> schema.Endpoints:
        """See `AdminPort`."""
        snapshot = self.cluster.snapshot
        view = await self.views.of(snapshot.ring)
        traffic = await in_passes(traffic_of(await self.gathering()))
        self.cache_stats.want()
        told = [
            self._endpoint(snapshot.by_id[node.id], node.vnodes, view.shares[index], traffic)
            async for index, node in sliced(enumerate(snapshot.ring.nodes))
        ]
        return schema.Endpoints(
            snapshot=self.snapshot(),
            at=datetime.now(UTC),
            not_ready=self.not_ready(),
            active_calls=self.forwarder.active,
            latency_bounds=CALL_BOUNDS,
            endpoints=tuple(told),
            unserved=traffic.get("", schema.Traffic()),
        )

    def _endpoint(
        self, endpoint: Endpoint, virtual_nodes: int, share: float, traffic: Mapping[str, schema.Traffic]
    ) -> schema.Endpoint:
        pool = self.pools.get(endpoint)
        cache = self.cache_stats.latest(endpoint)
        return schema.Endpoint(
            id=endpoint.id,
            address=str(endpoint.address),
            weight=endpoint.weight,
            virtual_nodes=virtual_nodes,
            share=share,
            status=status_of(endpoint.blocks),
            available=endpoint.available,
            blocks=self.journal.blocks(endpoint),
            active_calls=endpoint.active,
            connections=len(pool.connections) if pool else 0,
            waiting_calls=len(pool.waiting) if pool else 0,
            traffic=traffic.get(endpoint.id, schema.Traffic()),
            cache=schema.CacheStats(**cache._asdict()) if cache is not None else None,
        )

    async def statistics(self) -> StatsSnapshot:
        """See `AdminPort`."""
        told = await self.gathering()
        snapshot = self.cluster.snapshot
        view = await self.views.of(snapshot.ring)
        async for index, node in sliced(enumerate(snapshot.ring.nodes)):
            tell_of_endpoint(told, snapshot.by_id[node.id], view.shares[index])
        for (name, cause), count in self.journal.begun.items():
            told.add("districhat_endpoint_blocks_total", count, name, cause.value)
        for (name, sign), count in self.check_results.items():
            told.add("districhat_health_checks_total", count, name, sign.value)
        told.add("districhat_ready", not self.not_ready())
        told.add("districhat_ring_version", snapshot.version)
        told.add("districhat_ring_info", 1, snapshot.ring.fingerprint, snapshot.ring.layout)
        told.add("districhat_build_info", 1, importlib.metadata.version("districhat"))
        return told

    async def explain(self, key: bytes, limit: int) -> schema.Explanation:
        """See `AdminPort`."""
        found = explain(self.forwarder, key, limit)
        return schema.Explanation(
            snapshot=self.snapshot(),
            key=key.decode("utf-8", "backslashreplace"),
            hash=found.key_hash,
            position=found.key_hash / RING_SIZE,
            owner=found.owner.id,
            chosen=found.chosen.id if found.chosen else None,
            verdict=found.verdict.value,
            summary=summary(found),
            candidates=tuple(
                schema.Candidate(
                    id=each.endpoint.id,
                    address=str(each.endpoint.address),
                    status=status_of(each.endpoint.blocks),
                    available=each.endpoint.available,
                    chosen=each.chosen,
                    passed_over=each.why,
                    blocks=self.journal.blocks(each.endpoint),
                    active_calls=each.endpoint.active,
                )
                for each in found.candidates
            ),
            more_candidates=found.more,
            displaced=schema.Displaced(endpoint=found.displaced_to.id, idle=found.idle) if found.displaced_to else None,
            quarantined_for=found.quarantined_for,
        )

    async def decisions(self, limit: int, key: bytes | None = None) -> schema.Decisions:
        """See `AdminPort`."""
        return decisions_of(await self.latest(limit, key), self.decision_settings)

    async def recent_keys(self) -> Collection[bytes]:
        """See `AdminPort`."""
        return await self.remembering()

    async def drain(self, endpoint_id: str, reason: str, *, force: bool) -> schema.Drained:
        """See `AdminPort`."""
        snapshot = self.cluster.snapshot
        endpoint = snapshot.by_id[endpoint_id]
        if not force and endpoint.available and not any(each.available for each in snapshot if each is not endpoint):
            raise LastServerError(f"{endpoint_id} is the only server that is available")
        changed = not endpoint.blocked_by(Cause.OPERATOR)
        endpoint.block(Cause.OPERATOR, f"{DRAINED}: {reason}" if reason else DRAINED)
        return _drained(endpoint, changed=changed)

    async def undrain(self, endpoint_id: str) -> schema.Drained:
        """See `AdminPort`."""
        endpoint = self.cluster.snapshot.by_id[endpoint_id]
        changed = endpoint.blocked_by(Cause.OPERATOR)
        endpoint.unblock(Cause.OPERATOR)
        return _drained(endpoint, changed=changed)

    async def reload(self) -> schema.Reloaded:
        """See `AdminPort`."""
        return await self.reloading()


def tell_of_endpoint(told: StatsSnapshot, endpoint: Endpoint, share: float) -> None:
    """Add what the control plane knows of a server."""
    told.add("districhat_endpoint_available", endpoint.available, endpoint.id)
    told.add("districhat_endpoint_weight", endpoint.weight, endpoint.id)
    told.add("districhat_endpoint_share", share, endpoint.id)
    for cause, _ in _GRAVEST:
        told.add("districhat_endpoint_blocked", cause in endpoint.blocks, endpoint.id, cause.value)


def traffic_of(told: StatsSnapshot) -> Generator[None, None, dict[str, schema.Traffic]]:
    """What each server has done, by its id; under the empty one: calls that no server had in the end. In slices."""
    calls: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    for (_, name, status), count in told.values.get("districhat_calls_total", {}).items():
        calls[name] += int(count)
        if status != "OK":
            errors[name] += int(count)
    times = {name: numbers for (name,), numbers in told.histograms.get("districhat_call_seconds", {}).items()}
    found = {}
    for number, name in enumerate(calls.keys() | times.keys()):
        found[name] = schema.Traffic(
            calls=calls[name],
            errors=errors[name],
            latency_sum=times[name][-1] if name in times else 0.0,
            latency_counts=tuple(int(count) for count in times[name][:-1]) if name in times else (),
        )
        if number % TRAFFIC_A_SLICE == 0:
            yield
    return found


def _drained(endpoint: Endpoint, *, changed: bool) -> schema.Drained:
    status = status_of(endpoint.blocks)
    return schema.Drained(id=endpoint.id, changed=changed, status=status, active_calls=endpoint.active)


def summary(found: Explanation) -> str:
    """An explanation in a sentence."""
    owner, chosen = found.owner.id, found.chosen.id if found.chosen else ""
    match found.verdict:
        case Verdict.OWNER:
            return f"{owner} owns the key and takes it"
        case Verdict.DISPLACED:
            return f"{owner} owns the key, but the chat stays with {chosen}, which has its session"
        case Verdict.PASSED_OVER:
            return f"{owner} owns the key but cannot take it ({found.owner.reason}); {chosen} is the next that can"
        case Verdict.PANIC:
            return f"no server is available; {chosen} is tried all the same"
        case Verdict.OVER_BOUND:
            full = next(each for each in found.candidates if each.why.startswith("over"))
            return f"{full.endpoint.id} shall have the call, but is {full.why}"
        case Verdict.QUARANTINED:
            return f"the chat failed on two servers in a row: refused for {found.quarantined_for:.0f} s more"
        case Verdict.NOBODY:
            return f"{owner} owns the key, and no server can take it"
