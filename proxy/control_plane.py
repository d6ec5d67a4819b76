"""The control plane: what decides about servers, and carries no call.

There is one, however many data planes carry calls. It watches the servers (health checks, the ends of calls that data
planes tell its `detector`), and speaks by `Endpoint.block` and `unblock`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from proxy.cluster.address import Address
from proxy.cluster.outlier import OutlierDetector
from proxy.control.health import HealthChecker
from proxy.control.outlier_sweeper import OutlierSweeper

if TYPE_CHECKING:
    from proxy.cluster.cluster import Cluster
    from proxy.cluster.endpoint import Endpoint
    from proxy.settings import Settings
    from proxy.transport.reactor import Reactor

log = logging.getLogger(__name__)


class DataPlanes(Protocol):
    """Those who carry the calls, as the control plane sees them."""

    def answers(self, endpoint: Endpoint) -> None:
        """`endpoint` has just been seen to answer: do not wait with connecting to it."""


class ControlPlane:
    """Health checks and outlier detection, from `start` until `stop`."""

    def __init__(self, settings: Settings, cluster: Cluster, reactor: Reactor) -> None:
        self.cluster = cluster
        self.detector = OutlierDetector(settings.outlier, cluster.snapshot)
        self._data_planes: DataPlanes | None = None
        self._sweeper = OutlierSweeper(self.detector, settings.outlier, reactor)
        self._checker = HealthChecker(
            cluster.snapshot,
            settings.health,
            addresses={each.id: Address.parse(each.check_address or each.address) for each in settings.endpoints},
            on_success=self._passed_a_check,
            chance=reactor.random,
        )

    def speak_to(self, data_planes: DataPlanes) -> None:
        """Who is told what is decided, besides what the endpoints say. Before `start`."""
        self._data_planes = data_planes

    def start_sweeping(self) -> None:
        """Begin to count the time of ejections."""
        self._sweeper.start()

    async def start(self) -> None:
        """Begin to watch the servers. Returns when each has been checked once, or the time for that is over."""
        self.start_sweeping()
        await self._checker.start()

    async def stop(self) -> None:
        """Watch no more. May be called without `start`."""
        self._sweeper.stop()
        await self._checker.stop()

    def _passed_a_check(self, endpoint: Endpoint) -> None:
        if self.detector.checked_healthy(endpoint):
            log.info("%s is well again: its ejection ends before its time", endpoint.id)
        if self._data_planes is not None:
            self._data_planes.answers(endpoint)
