"""Where the records of calls go: the list of recent decisions, the access log, the log of slow calls, traces.

One call in so many is recorded, and what is for each of these is a part of that. Records are kept and logged as they
come from the data path; nothing is formatted before somebody reads.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from itertools import islice
from math import gcd
from typing import Any, Final, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field

from proxy.admin import schema
from proxy.admin.logs import LogSettings
from proxy.forwarding.call_record import CallRecord
from proxy.forwarding.headers import is_recorded
from proxy.forwarding.stats import status_name

ACCESS: Final = "districhat.access"
SLOW: Final = "districhat.slow"


class DecisionSettings(BaseModel):
    """`[decisions]`: what is told of single calls."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kept: int = Field(default=1000, ge=0, le=100_000)
    """Recent calls that the admin API tells of, at about 1 KiB each. 0: none."""
    sample: int = Field(default=100, ge=1, le=1_000_000_000)
    """One call in so many is kept. Calls that ask for an explanation always are."""
    chat_ids: Literal["hashed", "plain"] = "hashed"
    """How chats are named there and in the logs of calls. `hashed`: the same chat has the same hash (BLAKE2b, 64 bits)
    in every proxy; whoever knows an id can find its calls. There is no salt: who can guess ids, such as numbers, finds
    them by trying."""
    trailers: bool = True
    """Clients that send the metadata `x-districhat-explain: 1` are told in the trailers which server answered, after
    how many attempts, and why: `x-districhat-endpoint`, `-owner`, `-attempts`, `-reasons`, `-snapshot`."""


class Tracer(Protocol):
    """Makes spans of calls."""

    sample: int
    """One call in so many that bring no trace of their own; 0: none."""

    def record(self, record: CallRecord, ended: datetime) -> None:
        """A call is over."""


class Kept(NamedTuple):
    """A record that was kept."""

    ended: datetime
    record: CallRecord


class CallRecords:
    """A `Watcher` of the data path."""

    def __init__(self, decisions: DecisionSettings, log: LogSettings, tracer: Tracer | None = None) -> None:
        self._settings = decisions
        self._kept: deque[Kept] = deque(maxlen=decisions.kept)
        self._tracer = tracer
        self._access = logging.getLogger(ACCESS)
        self._slow = logging.getLogger(SLOW)
        keep = decisions.sample if decisions.kept else 0
        trace = tracer.sample if tracer is not None else 0
        # As many calls are watched as all three samples can be taken from.
        self.every = gcd(keep, log.access_sample, trace)
        """One call in so many is to be watched; 0: none."""
        self._strides = tuple(each // self.every if each else 0 for each in (keep, log.access_sample, trace))
        self._sampled = 0

    def ended(self, record: CallRecord, *, sampled: bool) -> None:
        """See `Watcher`."""
        keep, logged, traced = not sampled, False, False
        if sampled:
            self._sampled += 1
            keep, logged, traced = (stride > 0 and self._sampled % stride == 0 for stride in self._strides)
        if record.traceparent:  # whether its trace is recorded, its client has decided
            traced = is_recorded(record.traceparent)
        now = datetime.now(UTC)
        if keep and self._kept.maxlen:
            self._kept.append(Kept(now, record))
        if logged:
            self._access.info(json.dumps(self._line(record, now), ensure_ascii=False))
        if self._tracer is not None and traced:
            self._tracer.record(record, now)

    def slow(self, record: CallRecord) -> None:
        """See `Watcher`."""
        self._slow.warning(json.dumps(self._line(record, datetime.now(UTC)), ensure_ascii=False))

    def latest(self, limit: int, key: bytes | None = None) -> tuple[Kept, ...]:
        """The calls that are kept, newest first, at most so many. `key`: only those of this chat."""
        return tuple(islice((each for each in reversed(self._kept) if key is None or each.record.key == key), limit))

    def _line(self, record: CallRecord, now: datetime) -> dict[str, Any]:
        line: dict[str, Any] = {
            "time": (now - timedelta(seconds=record.seconds)).isoformat(),
            "method": record.method,
            "route": record.route,
            "chat": chat_of(record.key, self._settings),
            "owner": record.owner,
            "endpoint": record.endpoint,
            "status": status_name(record.status),
            "seconds": round(record.seconds, 6),
            "attempts": [f"{each.endpoint}: {each.outcome}" for each in record.attempts],
        }
        if record.reasons:
            line["reasons"] = record.reasons
        if record.traceparent:
            line["traceparent"] = record.traceparent.decode("latin-1")
        return line


def hashed(key: bytes) -> str:
    """What a chat is called where its id must not be told: 16 hex digits, the same everywhere."""
    return blake2b(key, digest_size=8).hexdigest()


def chat_of(key: bytes, settings: DecisionSettings) -> str:
    """What a chat is called; empty without a key."""
    if key and settings.chat_ids == "plain":
        return key.decode("utf-8", "backslashreplace")
    return hashed(key) if key else ""


def decisions_of(latest: Iterable[Kept], settings: DecisionSettings) -> schema.Decisions:
    """The body that tells of these calls, in their order."""
    return schema.Decisions(
        sample=settings.sample if settings.kept else 0,
        chat_ids=settings.chat_ids,
        decisions=tuple(_decision(each, settings) for each in latest),
    )


def _decision(kept: Kept, settings: DecisionSettings) -> schema.Decision:
    record = kept.record
    return schema.Decision(
        at=kept.ended - timedelta(seconds=record.seconds),
        method=record.method,
        route=record.route,
        chat=chat_of(record.key, settings),
        owner=record.owner or None,
        endpoint=record.endpoint or None,
        status=status_name(record.status),
        seconds=record.seconds,
        attempts=tuple(schema.Attempt(**each._asdict()) for each in record.attempts),
        reasons=record.reasons,
    )
