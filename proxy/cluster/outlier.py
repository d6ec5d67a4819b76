"""Outlier detection: servers that fail their calls are ejected for a time; keys that fail everywhere are quarantined.

Rules of this file:

1. Pure: every method takes `now`; what it decides it does to `Endpoint`s by `block` and `unblock`.
2. A server is ejected for failures in a row, but only if they were of at least `min_chats` different keys: one
   poisonous chat must not be able to eject server after server.
3. A key that fails on two servers in a row is the likelier culprit, if those servers fail nobody else, or if both
   died over it: it is quarantined, so that it does not walk on and take the next server with it. When one call is
   answered UNAVAILABLE by server after server, all of them have failed, but only the first answer speaks against the
   key: a cluster that is short of something answers so everywhere, and one call would quarantine its chat. Resets and
   deaths speak against it each time: they are what a poisonous chat does to servers.
4. The time of an ejection is `base_ejection_time` x the number of times it has happened lately, up to a maximum
   (gRFC A50, Envoy).
5. At least half of the servers, and at least one, are never ejected.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from math import sqrt

from pydantic import BaseModel, ConfigDict, Field

from proxy.cluster.endpoint import Cause, Endpoint
from proxy.durations import Seconds, SecondsOrZero

MAX_SUSPECTS = 4096
"""Keys with a recent failure that are remembered; the oldest is forgotten first."""


class OutlierSettings(BaseModel):
    """`[outlier]`: when calls themselves show that a server is sick."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    consecutive_failures: int = Field(default=5, ge=0, le=1_000_000)
    """Failures in a row that eject a server. 0: none do."""
    min_chats: int = Field(default=2, ge=1, le=1000)
    """Different keys that these failures must have had at least."""
    success_rate: bool = False
    """Also eject servers whose share of good calls is far below that of the others."""
    success_rate_min_calls: int = Field(default=100, ge=1, le=1_000_000_000)
    """Calls a server must have had in an interval to be compared."""
    success_rate_min_servers: int = Field(default=3, ge=2, le=1_000_000_000)
    """Servers that must have had so many calls for the comparison to mean anything."""
    success_rate_deviations: float = Field(default=1.9, gt=0, allow_inf_nan=False)
    """Standard deviations below the mean that eject (gRFC A50: stdev_factor 1900)."""
    interval: Seconds = 10.0
    """Seconds between two comparisons; also how often the memory of past ejections fades by one."""
    base_ejection_time: Seconds = 30.0
    """Seconds of the first ejection; of the second twice as long, and so on."""
    max_ejection_time: Seconds = 300.0
    """Seconds of an ejection at most."""
    checks_to_return: int = Field(default=2, ge=1, le=1000)
    """Active health checks an ejected server must pass to return before its time."""
    max_ejection_percent: float = Field(default=50.0, ge=0, le=100)
    """Servers that may be ejected at the same time, in percent of all. One is always left."""
    quarantine_time: SecondsOrZero = 30.0
    """Seconds that a key which failed on two servers in a row is answered UNAVAILABLE at once. 0: no quarantine."""


class _Record:
    """What is known of one endpoint."""

    __slots__ = ("bad", "checks", "ejected_until", "ejections", "failures", "good", "keys")

    def __init__(self) -> None:
        self.failures = 0
        """In a row."""
        self.keys: set[bytes] = set()
        """Of these failures, as many as matter."""
        self.ejected_until = 0.0
        self.checks = 0
        """Active checks passed since the ejection."""
        self.ejections = 0
        """How often lately."""
        self.good = 0
        self.bad = 0
        """Calls of this interval."""


class OutlierDetector:
    """Watches the ends of calls. Hot callers report a success only while `troubled` says so (see there)."""

    def __init__(self, settings: OutlierSettings, endpoints: Iterable[Endpoint]) -> None:
        self._settings = settings
        self._records = {endpoint: _Record() for endpoint in endpoints}
        self._suspects: OrderedDict[bytes, dict[Endpoint, float]] = OrderedDict()
        """Key -> where and when it failed since it last went well."""
        self.quarantined: OrderedDict[bytes, float] = OrderedDict()
        """Key -> the end of its quarantine. The hot path looks whether it is empty, and asks only then."""
        self.troubled = settings.success_rate
        """Whether a success could change anything. Nearly always False, and then a good call costs one test."""
        self.quarantines = 0
        """Keys quarantined since the start."""

        self.attentive = settings.success_rate
        """Whether calls that go well are to be reported in any case."""
        self.on_quarantine: Callable[[bytes, float], None] = _nobody
        """Is told of each new quarantine: the key, and until when."""

    def configure(self, settings: OutlierSettings, endpoints: Iterable[Endpoint]) -> None:
        """From now on by these settings, over these endpoints. What is known of those that stay is kept; ejections and
        quarantines under way end as they were to.
        """
        self._settings = settings
        self.attentive = settings.success_rate
        self._records = {endpoint: self._records.get(endpoint) or _Record() for endpoint in endpoints}
        for places in self._suspects.values():
            for gone in places.keys() - self._records.keys():
                del places[gone]
        self._look_around()

    # Ends of calls.

    def succeeded(self, endpoint: Endpoint, key: bytes) -> None:
        """A call for `key` (empty: it had none) went well on `endpoint`."""
        record = self._records.get(endpoint)
        if record is None:
            return  # removed meanwhile
        record.good += 1
        record.failures = 0
        record.keys.clear()
        self._suspects.pop(key, None)
        self._look_around()

    def failed(self, endpoint: Endpoint, key: bytes, now: float, *, again: bool = False) -> bool:
        """A call for `key` failed on `endpoint` by the server's fault. Returns whether that ejected the endpoint.
        `again`: the same call had such an answer from another server before: that speaks against the key no more.
        """
        settings = self._settings
        record = self._records.get(endpoint)
        if record is None:
            return False  # removed meanwhile
        record.bad += 1
        record.failures += 1
        if len(record.keys) < max(settings.min_chats, 2):
            # Calls without a key belong to no chat, so each speaks for itself.
            record.keys.add(key or b"\0call %d" % record.failures)
        self.troubled = True
        if not again:
            self._suspect(endpoint, key, now, died=False)
        if (
            settings.consecutive_failures
            and record.failures >= settings.consecutive_failures
            and len(record.keys) >= settings.min_chats
        ):
            return self._eject(endpoint, f"{record.failures} failures in a row", now)
        return False

    def began(self, key: bytes) -> None:
        """A server has begun to answer a call for `key`: it did not die of it."""
        self._suspects.pop(key, None)

    def lost(self, endpoint: Endpoint, key: bytes, now: float) -> None:
        """The connection to `endpoint` broke with a call for `key` on it. Many calls share that fate and it counts as
        one failure of the server, which the caller reports; but any of them may be the one that killed it.
        """
        if endpoint in self._records:
            self.troubled = True
            self._suspect(endpoint, key, now, died=True)

    def _look_around(self) -> None:
        self.troubled = (
            self.attentive or bool(self._suspects) or any(record.failures for record in self._records.values())
        )

    # Quarantine.

    def _suspect(self, endpoint: Endpoint, key: bytes, now: float, *, died: bool) -> None:
        seconds = self._settings.quarantine_time
        if not key or not seconds:
            return
        places = self._suspects.setdefault(key, {})
        self._suspects.move_to_end(key)
        places[endpoint] = now
        for old in [each for each, at in places.items() if at <= now - seconds]:
            del places[old]
        if len(places) >= 2 and (died or all(self._records[each].keys <= {key} for each in places)):
            del self._suspects[key]
            self.quarantine(key, now + seconds)
            self.quarantines += 1
            self.on_quarantine(key, now + seconds)
        if len(self._suspects) > MAX_SUSPECTS:
            self._suspects.popitem(last=False)

    def quarantine(self, key: bytes, until: float) -> None:
        """Answer calls for `key` with UNAVAILABLE until then."""
        self.quarantined[key] = until
        self.quarantined.move_to_end(key)
        if len(self.quarantined) > MAX_SUSPECTS:
            self.quarantined.popitem(last=False)

    def quarantined_for(self, key: bytes, now: float) -> float:
        """Seconds that `key` stays quarantined; 0: it is not."""
        until = self.quarantined.get(key)
        if until is None:
            return 0.0
        if until <= now:
            del self.quarantined[key]
            return 0.0
        return until - now

    def quarantine_left(self, key: bytes, now: float) -> float:
        """The same, and nothing is forgotten."""
        return max(0.0, self.quarantined.get(key, now) - now)

    # Ejection.

    def _eject(self, endpoint: Endpoint, why: str, now: float) -> bool:
        settings = self._settings
        record = self._records[endpoint]
        record.failures = 0
        record.keys.clear()
        if endpoint.blocked_by(Cause.EJECTED):
            return False  # a call that was under way when it was ejected
        total = len(self._records)
        ejected = sum(each.blocked_by(Cause.EJECTED) for each in self._records)
        if ejected + 1 > min(total * settings.max_ejection_percent / 100, total - 1):
            return False
        record.ejections += 1
        seconds = min(settings.max_ejection_time, settings.base_ejection_time * record.ejections)
        record.ejected_until = now + seconds
        record.checks = 0
        endpoint.block(Cause.EJECTED, f"ejected for {seconds:g} s after {why}")
        return True

    def checked_healthy(self, endpoint: Endpoint) -> bool:
        """`endpoint` has passed an active check: after `checks_to_return` of them it returns before its time. Returns
        whether it did.
        """
        if not endpoint.blocked_by(Cause.EJECTED):
            return False
        record = self._records[endpoint]
        record.checks += 1
        if record.checks < self._settings.checks_to_return:
            return False
        endpoint.unblock(Cause.EJECTED)
        return True

    def sweep(self, now: float) -> list[Endpoint]:
        """Let those return whose time is over, and forget old suspicions. Returns who returned. Call it often: every
        second, say.
        """
        for key in [key for key, until in self.quarantined.items() if until <= now]:
            del self.quarantined[key]
        old = now - self._settings.quarantine_time
        for key in [key for key, places in self._suspects.items() if max(places.values(), default=0.0) <= old]:
            del self._suspects[key]
        self._look_around()
        returned = []
        for endpoint, record in self._records.items():
            if endpoint.blocked_by(Cause.EJECTED) and record.ejected_until <= now:
                endpoint.unblock(Cause.EJECTED)
                returned.append(endpoint)
        return returned

    def compare(self, now: float) -> list[Endpoint]:
        """The end of an interval: success rates are compared, and the memory of past ejections fades by one.

        Returns the endpoints that this ejected. Call it every `interval` seconds.
        """
        ejected = self._below_the_others(now) if self._settings.success_rate else []
        for endpoint, record in self._records.items():
            if not record.bad:
                record.failures = 0  # those in a row were long ago
                record.keys.clear()
            record.good = record.bad = 0
            if not endpoint.blocked_by(Cause.EJECTED) and record.ejections:
                record.ejections -= 1
        return ejected

    def _below_the_others(self, now: float) -> list[Endpoint]:
        settings = self._settings
        rates = {
            endpoint: record.good / (record.good + record.bad)
            for endpoint, record in self._records.items()
            if record.good + record.bad >= settings.success_rate_min_calls
        }
        if len(rates) < settings.success_rate_min_servers:
            return []
        mean = sum(rates.values()) / len(rates)
        deviation = sqrt(sum((rate - mean) ** 2 for rate in rates.values()) / len(rates))
        floor = mean - settings.success_rate_deviations * deviation
        return [
            endpoint
            for endpoint, rate in rates.items()
            if rate < floor and self._eject(endpoint, f"a success rate of {rate:.0%} where {mean:.0%} is the mean", now)
        ]


def _nobody(_key: bytes, _until: float) -> None:
    """Nobody wants to know."""
