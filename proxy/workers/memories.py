"""What a worker remembers as a single process does, and tells the parent besides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.cluster.outlier import OutlierDetector, OutlierSettings
from proxy.forwarding.failback import DisplacedChats, FailbackSettings
from proxy.workers.messages import Moved

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.cluster.cluster import Cluster
    from proxy.cluster.endpoint import Endpoint
    from proxy.cluster.snapshot import ClusterSnapshot

TELL_AGAIN: Final = 5.0
"""Seconds between two words about the same displaced chat, or a quarter of its idle time: so much earlier than that
another worker may send it home."""


class ReportingDetector(OutlierDetector):
    """Quarantines at once what it sees itself, as the next call for the key may be its victim; ejects nobody. `report`
    is given everything that the parent needs to decide about ejections, and about keys that failed in other workers.
    """

    def __init__(
        self, settings: OutlierSettings, cluster: Cluster, report: Callable[[tuple[str, str, bytes, float]], None]
    ) -> None:
        super().__init__(_without_ejections(settings), cluster.snapshot)
        self._cluster = cluster
        self._report = report

    def reconfigure(self, settings: OutlierSettings) -> None:
        """See `configure`, for the cluster's present endpoints."""
        self.configure(_without_ejections(settings), self._cluster.snapshot)

    def attend(self, *, on: bool) -> None:
        """The parent wants to hear of all calls that go well, or no more."""
        self.attentive = on
        self._look_around()

    def succeeded(self, endpoint: Endpoint, key: bytes) -> None:
        """See `OutlierDetector`."""
        super().succeeded(endpoint, key)
        self._tell("succeeded", endpoint, key, 0.0)

    def failed(self, endpoint: Endpoint, key: bytes, now: float, *, again: bool = False) -> bool:
        """See `OutlierDetector`."""
        super().failed(endpoint, key, now, again=again)
        self._tell("failed_again" if again else "failed", endpoint, key, now)
        return False

    def began(self, key: bytes) -> None:
        """See `OutlierDetector`."""
        super().began(key)
        self._report(("began", "", key, 0.0))

    def lost(self, endpoint: Endpoint, key: bytes, now: float) -> None:
        """See `OutlierDetector`."""
        super().lost(endpoint, key, now)
        self._tell("lost", endpoint, key, now)

    def _tell(self, what: str, endpoint: Endpoint, key: bytes, now: float) -> None:
        # Only of those in the snapshot: another server may have the name of one that was removed.
        if self._cluster.snapshot.by_id.get(endpoint.id) is endpoint:
            self._report((what, endpoint.id, key, now))


def _without_ejections(settings: OutlierSettings) -> OutlierSettings:
    return settings.model_copy(update={"consecutive_failures": 0, "success_rate": False})


class SharedDisplacedChats(DisplacedChats):
    """A chat's calls may arrive at any worker, and must all go to the same server: each worker tells the others, by way
    of the parent, where a displaced chat has gone, and now and then that it is still in use there.
    """

    __slots__ = ("_tell", "_told")

    def __init__(self, settings: FailbackSettings, snapshot: ClusterSnapshot, tell: Callable[[Moved], None]) -> None:
        super().__init__(settings, snapshot)
        self._tell = tell
        self._told: dict[bytes, float] = {}
        """Key -> when the others last heard of it, from whomever."""

    def find(self, key: bytes, now: float) -> Endpoint | None:
        """See `DisplacedChats`."""
        endpoint = super().find(key, now)
        if endpoint is None:
            self._told.pop(key, None)
        elif now - self._told.get(key, 0.0) >= min(TELL_AGAIN, self._idle_time / 4):
            self._say(key, endpoint, now)
        return endpoint

    def served(self, key: bytes, endpoint: Endpoint, now: float) -> bool:
        """See `DisplacedChats`."""
        moved = super().served(key, endpoint, now)
        if key in self.chats:
            self._say(key, endpoint, now)
        return moved

    def came_home(self, key: bytes) -> None:
        """See `DisplacedChats`."""
        if key in self.chats or (self._former is not None and key not in self._settled):
            self._told.pop(key, None)
            self._tell(Moved(key, None, 0.0))
        super().came_home(key)

    def learn(self, moved: Moved, endpoint: Endpoint | None) -> None:
        """Another worker has told of a chat. `endpoint`: the one it means; None: home, or to nobody whom we know."""
        if endpoint is None:
            super().came_home(moved.key)
            self._told.pop(moved.key, None)
        else:
            super().served(moved.key, endpoint, moved.at)
            self._told[moved.key] = moved.at

    def _say(self, key: bytes, endpoint: Endpoint, now: float) -> None:
        if len(self._told) > 2 * len(self.chats):  # those that were forgotten without a word
            self._told = {each: at for each, at in self._told.items() if each in self.chats}
        self._told[key] = now
        self._tell(Moved(key, endpoint.id, now))
