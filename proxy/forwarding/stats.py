"""What the calls of one process have come to, in plain numbers.

Counting costs every call, so the common end of a call is counted in place (`AnsweredCall._end`: one dict look-up,
three additions, one bisection), everything that went another way in a slow path here. Nothing is computed until
somebody asks for what has been `gathered`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Final

from proxy.grpc_wire.status import Status
from proxy.http2 import PassClock

if TYPE_CHECKING:
    from proxy.cluster.endpoint import Endpoint
    from proxy.forwarding.retry import Outcome

CALL_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds, in seconds, of the buckets of calls."""

TALLIES_A_SLICE: Final = 8

OK: Final = b"0"
CANCELLED: Final = b"1"
UNKNOWN: Final = b"2"

_NAMES: Final = {b"%d" % status: status.name for status in Status}


def status_name(status: bytes) -> str:
    """The name of a `grpc-status`; what is none counts as UNKNOWN, as clients read it."""
    return _NAMES.get(status, "UNKNOWN")


class Tally:
    """Calls of one route that one server answered (or that no server has answered)."""

    __slots__ = ("buckets", "others", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * (len(CALL_BOUNDS) + 1)
        """All calls by how long they took, from their first byte here to their last."""
        self.others: Counter[bytes] = Counter()
        """Those with another `grpc-status` than OK, by that: what is left was OK."""
        self.seconds = 0.0
        """Of all of them together."""

    def add(self, status: bytes) -> None:
        """One more with another status than OK. What a server sends as a status is not believed to be one."""
        self.others[status if status in _NAMES else UNKNOWN] += 1

    def merge(self, other: Tally) -> None:
        """All calls of `other` as well."""
        self.buckets = [a + b for a, b in zip(self.buckets, other.buckets, strict=True)]
        self.others += other.others
        self.seconds += other.seconds


Tallies = dict["Endpoint | None", Tally]
"""Of one route, by the server that had the call in the end."""

Labels = tuple[str, ...]


class StatsSnapshot:
    """Numbers at one moment. Those of several processes can be added up.

    Names and labels are those of the metrics (`proxy.admin.metrics`). Both attributes are built of dicts, tuples,
    lists, strings and numbers only, so that any serialisation takes them.
    """

    __slots__ = ("histograms", "values")

    def __init__(
        self,
        values: dict[str, dict[Labels, float]] | None = None,
        histograms: dict[str, dict[Labels, list[float]]] | None = None,
    ) -> None:
        self.values = {} if values is None else values
        """Name -> labels -> counter or gauge."""
        self.histograms = {} if histograms is None else histograms
        """Name -> labels -> observations in each bucket, the last one without a bound; then the sum of all observed."""

    def add(self, name: str, value: float, *labels: str) -> None:
        """Add to a counter or gauge."""
        family = self.values.setdefault(name, {})
        family[labels] = family.get(labels, 0) + value

    def observe(self, name: str, buckets: Iterable[float], total: float, *labels: str) -> None:
        """Add to a histogram whole buckets, and the sum of what was observed."""
        family = self.histograms.setdefault(name, {})
        numbers = [*buckets, total]
        found = family.get(labels)
        family[labels] = numbers if found is None else [a + b for a, b in zip(found, numbers, strict=True)]

    def merge(self, other: StatsSnapshot) -> None:
        """Add all numbers of another process."""
        for name, family in other.values.items():
            for labels, value in family.items():
                self.add(name, value, *labels)
        for name, histograms in other.histograms.items():
            for labels, numbers in histograms.items():
                self.observe(name, numbers[:-1], numbers[-1], *labels)


class Stats:
    """The counters of one process. `clock`: measures times. `on`: calls are counted at all."""

    __slots__ = (
        "attempt_failures",
        "chats_moved",
        "clock",
        "failovers",
        "head_misses",
        "keyless",
        "off_owner",
        "on",
        "retries",
        "routes",
    )

    def __init__(self, clock: PassClock, *, on: bool = True) -> None:
        self.clock = clock
        self.on = on
        self.routes: dict[str, Tallies] = {}
        """By the pattern of the route."""
        self.attempt_failures: Counter[tuple[str, Outcome]] = Counter()
        """By endpoint and why."""
        self.retries: Counter[Outcome] = Counter()
        """Calls given to a further server, by how the one before failed."""
        self.failovers = 0
        """Calls that a further server then answered."""
        self.off_owner: Counter[str] = Counter()
        """Calls that another server than their key's owner answered, by what kept them from it."""
        self.chats_moved: Counter[str] = Counter()
        self.keyless = 0
        self.head_misses = 0
        """Header lists that had to be read."""

    def of_route(self, pattern: str) -> Tallies:
        """Where the calls of a route are counted."""
        return self.routes.setdefault(pattern, {})

    def forget(self, endpoint: Endpoint, successor: Endpoint | None = None) -> None:
        """It has left the cluster: its numbers go with it, or to a `successor` of the same id, whose counters are the
        same to those who read them, and must not fall.
        """
        for tallies in self.routes.values():
            tally = tallies.pop(endpoint, None)
            if tally is not None and successor is not None:
                tallies.setdefault(successor, Tally()).merge(tally)
        if successor is None:
            for key in [key for key in self.attempt_failures if key[0] == endpoint.id]:
                del self.attempt_failures[key]

    def gathered(self) -> Generator[None, None, StatsSnapshot]:
        """The numbers now, in slices (`proxy.slices`): a thousand servers take some milliseconds."""
        told = StatsSnapshot()
        for pattern, tallies in tuple(self.routes.items()):
            for number, (endpoint, tally) in enumerate(tuple(tallies.items())):
                _tell(told, pattern, "" if endpoint is None else endpoint.id, tally)
                if number % TALLIES_A_SLICE == 0:
                    yield
        for (name, outcome), count in self.attempt_failures.items():
            told.add("districhat_attempt_failures_total", count, name, outcome.name.lower())
        for outcome, count in self.retries.items():
            told.add("districhat_retries_total", count, outcome.name.lower())
        for reason, count in self.off_owner.items():
            told.add("districhat_calls_off_owner_total", count, reason)
        for reason, count in self.chats_moved.items():
            told.add("districhat_chats_moved_total", count, reason)
        told.observe("districhat_pass_seconds", self.clock.buckets, self.clock.seconds)
        told.add("districhat_failovers_total", self.failovers)
        told.add("districhat_calls_without_key_total", self.keyless)
        told.add("districhat_memo_misses_total", self.head_misses, "headers")
        return told


def _tell(told: StatsSnapshot, route: str, endpoint: str, tally: Tally) -> None:
    told.add("districhat_calls_total", sum(tally.buckets) - tally.others.total(), route, endpoint, "OK")
    for status, count in tally.others.items():
        told.add("districhat_calls_total", count, route, endpoint, status_name(status))
    told.observe("districhat_call_seconds", tally.buckets, tally.seconds, endpoint)
