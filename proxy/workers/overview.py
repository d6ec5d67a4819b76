"""All workers together, as the operator sees a single process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from proxy.cluster.cluster import Cluster
    from proxy.cluster.endpoint import Endpoint
    from proxy.cluster.outlier import OutlierDetector
    from proxy.forwarding.failback import DisplacedChats
    from proxy.forwarding.settings import RetrySettings
    from proxy.workers.knowledge import Knowledge


class Figures(NamedTuple):
    """What there is of connections to one server; only how many."""

    connections: range
    waiting: range


class Overview(Mapping["Endpoint", Figures]):
    """Both what `explain` asks of a forwarder, and the connections by server: of what the workers told last."""

    def __init__(self, knowledge: Knowledge, now: Callable[[], float]) -> None:
        self._knowledge = knowledge
        self.now = now

    @property
    def active(self) -> int:
        """Calls under way."""
        return sum(worker.load.total for worker in self._knowledge.workers.values())

    @property
    def cluster(self) -> Cluster:
        """Whose snapshot all workers have, or are about to."""
        return self._knowledge.cluster

    @property
    def detector(self) -> OutlierDetector:
        """The parent's."""
        return self._knowledge.detector

    @property
    def displaced(self) -> DisplacedChats:
        """What all workers have told."""
        return self._knowledge.displaced

    @property
    def retry(self) -> RetrySettings:
        """As it holds now."""
        return self._knowledge.settings.retry

    def __getitem__(self, endpoint: Endpoint) -> Figures:
        loads = [worker.load for worker in self._knowledge.workers.values()]
        return Figures(
            range(sum(load.connections.get(endpoint.id, 0) for load in loads)),
            range(sum(load.waiting.get(endpoint.id, 0) for load in loads)),
        )

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self.cluster.snapshot)

    def __len__(self) -> int:
        return len(self.cluster.snapshot.by_id)
