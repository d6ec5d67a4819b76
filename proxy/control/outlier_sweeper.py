"""The clock behind outlier detection."""

from __future__ import annotations

import logging

from proxy.cluster.outlier import OutlierDetector, OutlierSettings
from proxy.transport.reactor import Handle, Reactor

log = logging.getLogger(__name__)


class OutlierSweeper:
    """Calls the detector's clockwork: ejections that are over, comparisons at the end of an interval."""

    EVERY = 1.0  # seconds

    def __init__(self, detector: OutlierDetector, settings: OutlierSettings, reactor: Reactor) -> None:
        self._detector = detector
        self.interval = settings.interval
        """Seconds between two comparisons."""
        self._reactor = reactor
        self._compared = 0.0
        self._timer: Handle | None = None

    def start(self) -> None:
        """Begin."""
        self._compared = self._reactor.now()
        self._timer = self._reactor.call_later(self.EVERY, self._sweep)

    def _sweep(self) -> None:
        now = self._reactor.now()
        for endpoint in self._detector.sweep(now):
            log.info("%s: the time of its ejection is over", endpoint.id)
        if now - self._compared >= self.interval:
            self._compared = now
            self._detector.compare(now)
        self._timer = self._reactor.call_later(self.EVERY, self._sweep)

    def stop(self) -> None:
        """End. Nothing happens if it was not started."""
        if self._timer is not None:
            self._timer.cancel()
