"""The control plane: what decides about servers, and carries no call.

There is one, however many data planes carry calls. It watches the servers (health checks, the ends of calls that data
planes tell its `detector`), and speaks by `Endpoint.block` and `unblock`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from proxy.admin.events import EventBus
from proxy.admin.local import EndpointJournal
from proxy.cluster.address import Address
from proxy.cluster.outlier import OutlierDetector
from proxy.control.cache_stats import CacheStatsPoller
from proxy.control.health import HealthChecker
from proxy.control.outlier_sweeper import OutlierSweeper
from proxy.transport.slices import in_passes
from proxy.transport.tls import Tls

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from proxy.cluster.cluster import Cluster, Succession
    from proxy.cluster.endpoint import Cause, Endpoint
    from proxy.cluster.health import Sign
    from proxy.settings import Settings
    from proxy.transport.reactor import Reactor
    from proxy.transport.tls import EndpointTls

log = logging.getLogger(__name__)


class DataPlanes(Protocol):
    """Those who carry the calls, as the control plane sees them."""

    def answers(self, endpoint: Endpoint) -> None:
        """`endpoint` has just been seen to answer: do not wait with connecting to it."""

    def said(self, endpoint: Endpoint, cause: Cause) -> None:
        """`cause` speaks against `endpoint` now, or no more."""

    def prepare(self, settings: Settings, added: Iterable[Endpoint]) -> None:
        """These endpoints are about to be published."""

    def apply(self, settings: Settings) -> None:
        """The cluster has published: go on by that, and by these settings."""

    async def applied(self) -> None:
        """Returns when calls are carried by what was applied."""


class ControlPlane:
    """Health checks and outlier detection, from `start` until `stop`."""

    def __init__(self, settings: Settings, cluster: Cluster, reactor: Reactor) -> None:
        self.cluster = cluster
        self._reactor = reactor
        self._tls = Tls(None, settings.upstream.tls)
        self.events = EventBus()
        """What happens to the servers, for the operator."""
        self.journal = EndpointJournal(self.events)
        self.detector = OutlierDetector(settings.outlier, cluster.snapshot)
        self._data_planes: DataPlanes | None = None
        self._watch(cluster.snapshot)
        self._sweeper = OutlierSweeper(self.detector, settings.outlier, reactor)
        self._checker = HealthChecker(
            cluster.snapshot,
            settings.health,
            addresses=_check_addresses(settings),
            secured=self._secured_checks(settings, cluster.snapshot),
            on_success=self._passed_a_check,
            chance=reactor.random,
        )
        self.cache_stats = CacheStatsPoller(self._asked(settings, cluster.snapshot))

    def speak_to(self, data_planes: DataPlanes) -> None:
        """Who is told what is decided, besides what the endpoints say. Before `start`."""
        self._data_planes = data_planes

    @property
    def check_results(self) -> Mapping[tuple[str, Sign], int]:
        """Health checks by endpoint and what they gave."""
        return self._checker.results

    def tell(self, kind: str, detail: str) -> None:
        """Let the operator know of something that is not about a server."""
        self.events.publish(kind, detail=detail)

    def start_sweeping(self) -> None:
        """Begin to count the time of ejections."""
        self._sweeper.start()

    async def start(self) -> None:
        """Begin to watch the servers. Returns when each has been checked once, or the time for that is over."""
        self.start_sweeping()
        self._tls.watch(self._reactor)
        await self._checker.start()

    async def stop(self) -> None:
        """Watch no more. May be called without `start`."""
        self._sweeper.stop()
        self._tls.stop()
        await self.cache_stats.stop()
        await self._checker.stop()

    async def apply(self, settings: Settings) -> int:
        """Go on by these settings, without disturbing a call. Returns the number of the snapshot that holds now.

        New servers are connected to and checked before they get calls; one whose checks do not end in time is taken for
        healthy, as at the start. Only one `apply` may be under way.
        """
        planes = self._data_planes
        assert planes is not None  # noqa: S101 - see `speak_to`
        succession = await in_passes(self.cluster.succession(settings.endpoints, settings.ring))
        self.prepare(settings, succession)
        secured = self._secured_checks(settings, succession.weights)
        await self._checker.configure(succession.weights, settings.health, _check_addresses(settings), secured)
        self.switch(settings, succession)
        await planes.applied()
        return self.cluster.snapshot.version

    def prepare(self, settings: Settings, succession: Succession) -> None:
        """The first part of `apply`: get to know the new servers."""
        self._watch(succession.added)
        if self._data_planes is not None:
            self._data_planes.prepare(settings, succession.added)

    def switch(self, settings: Settings, succession: Succession) -> None:
        """The moment of `apply`: from one call to the next all of it holds."""
        for endpoint in succession.removed:
            self.journal.forget(endpoint)
        self.cluster.publish(succession)
        self.detector.configure(settings.outlier, succession.weights)
        self._sweeper.interval = settings.outlier.interval
        self.cache_stats.configure(self._asked(settings, succession.weights))
        if self._data_planes is not None:
            self._data_planes.apply(settings)
        self.events.publish("reloaded", detail=f"snapshot {self.cluster.snapshot.version}")

    def _secured_checks(self, settings: Settings, endpoints: Iterable[Endpoint]) -> dict[str, EndpointTls]:
        """Of the endpoints that are checked over TLS, by id."""
        tls = self._tls.upstream
        if tls is None:
            return {}
        secured = {each.id for each in settings.endpoints if (each.tls if each.check_tls is None else each.check_tls)}
        return {each.id: tls.of(each) for each in endpoints if each.id in secured}

    def _asked(self, settings: Settings, endpoints: Iterable[Endpoint]) -> dict[Endpoint, EndpointTls | None]:
        """Who is asked for cache statistics: nobody if that is switched off."""
        if not settings.admin.cache_stats:
            return {}
        tls = self._tls.upstream
        secured = {each.id for each in settings.endpoints if each.tls}
        return {each: tls.of(each) if tls is not None and each.id in secured else None for each in endpoints}

    def _watch(self, endpoints: Iterable[Endpoint]) -> None:
        for endpoint in endpoints:
            endpoint.watch = self._said

    def _said(self, endpoint: Endpoint, cause: Cause) -> None:
        self.journal.note(endpoint, cause)
        if self._data_planes is not None:
            self._data_planes.said(endpoint, cause)

    def _passed_a_check(self, endpoint: Endpoint) -> None:
        if self.detector.checked_healthy(endpoint):
            log.info("%s is well again: its ejection ends before its time", endpoint.id)
        if self._data_planes is not None:
            self._data_planes.answers(endpoint)


def _check_addresses(settings: Settings) -> dict[str, Address]:
    return {each.id: Address.parse(each.check_address or each.address) for each in settings.endpoints}
