"""Why a key goes where it goes: the decision of `Call`'s routing once more, with its reasons, and without a trace."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.cluster.cluster import Cluster
    from proxy.cluster.endpoint import Cause, Endpoint
    from proxy.cluster.outlier import OutlierDetector
    from proxy.forwarding.failback import DisplacedChats
    from proxy.forwarding.settings import RetrySettings


class Verdict(Enum):
    """What decides where a call goes, or that it goes nowhere."""

    OWNER = "owner"
    """The owner on the ring takes it."""
    DISPLACED = "displaced"
    """Its owner is back, but the chat stays with the server that has its session (`[failback]`)."""
    PASSED_OVER = "passed_over"
    """The owner cannot; the next available server in ring order takes it."""
    PANIC = "panic"
    """Nobody is available; one that is only said to be sick is tried (`retry.panic`)."""
    OVER_BOUND = "over_bound"
    """The server that shall have it has all the calls it may have: it is refused, and the chat does not move."""
    QUARANTINED = "quarantined"
    """The key failed on two servers in a row: it is refused for a time."""
    NOBODY = "nobody"
    """No server can take it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One server on the walk."""

    endpoint: Endpoint
    chosen: bool
    blocks: tuple[tuple[Cause, str], ...]
    """Why it is not available."""
    why: str
    """Why it was passed over or refused the call, for people; empty for the chosen one and for those after it."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What would happen to a call with this key now."""

    key: bytes
    key_hash: int
    owner: Endpoint
    verdict: Verdict
    chosen: Endpoint | None
    candidates: tuple[Candidate, ...]
    """In ring order, the owner first: all up to the chosen one, and as many more as were asked for."""
    more: int
    """Servers of the walk that are not among the candidates."""
    quarantined_for: float
    """Seconds that the key is still refused; 0: it is not."""
    displaced_to: Endpoint | None
    """The server that has the chat instead of its owner."""
    idle: float
    """Seconds since the last call of a displaced chat."""


class Deciding(Protocol):
    """What a decision goes by: a forwarder, or what is known of several."""

    @property
    def now(self) -> Callable[[], float]:
        """The clock."""

    @property
    def cluster(self) -> Cluster:
        """Whose snapshot holds."""

    @property
    def displaced(self) -> DisplacedChats:
        """Chats that are away from home."""

    @property
    def detector(self) -> OutlierDetector:
        """Who knows which keys are quarantined."""

    @property
    def retry(self) -> RetrySettings:
        """`[retry]`."""


def explain(forwarder: Deciding, key: bytes, limit: int = 16) -> Explanation:
    """What a call with `key` (not empty) would meet now. Changes nothing, nor counts as a use of a displaced chat.

    `limit`: candidates to tell at least, if there are so many; the chosen one is always among them.
    """
    now = forwarder.now()
    snapshot = forwarder.cluster.snapshot
    walk = list(snapshot.candidates(key))
    displaced_to, idle = forwarder.displaced.peek(key, now)
    quarantined_for = forwarder.detector.quarantine_left(key, now)
    wanted, verdict = _wanted(forwarder, walk, displaced_to)
    if quarantined_for:
        verdict = Verdict.QUARANTINED
    elif wanted is not None and wanted.active >= wanted.max_calls:
        verdict = Verdict.OVER_BOUND
    chosen = None if verdict in (Verdict.QUARANTINED, Verdict.OVER_BOUND) else wanted
    told = max(limit, walk.index(wanted) + 1 if wanted is not None else 0)
    candidates = []
    reached = False
    for endpoint in islice(walk, told):
        blocks = tuple(endpoint.blocks.items())
        why = ""
        if endpoint is wanted:
            reached = True
            if verdict is Verdict.OVER_BOUND:
                why = f"over its bound: {endpoint.active} calls under way of {endpoint.max_calls}"
        elif not reached or verdict is Verdict.PANIC:
            why = endpoint.reason
            if not why and verdict is Verdict.DISPLACED and displaced_to is not None:
                why = f"the chat was displaced to {displaced_to.id} and stays there"
        candidates.append(Candidate(endpoint, endpoint is chosen, blocks, why))
    return Explanation(
        key=key,
        key_hash=snapshot.ring.hash_key(key),
        owner=walk[0],
        verdict=verdict,
        chosen=chosen,
        candidates=tuple(candidates),
        more=len(walk) - len(candidates),
        quarantined_for=quarantined_for,
        displaced_to=displaced_to,
        idle=idle,
    )


def _wanted(
    forwarder: Deciding, walk: list[Endpoint], displaced_to: Endpoint | None
) -> tuple[Endpoint | None, Verdict]:
    """The server that is offered the call first, and why that one."""
    if displaced_to is not None:
        return displaced_to, Verdict.DISPLACED
    if walk[0].available:
        return walk[0], Verdict.OWNER
    for endpoint in walk:
        if endpoint.available:
            return endpoint, Verdict.PASSED_OVER
    if forwarder.retry.panic == "try_all":
        for endpoint in walk:
            if endpoint.may_be_tried:
                return endpoint, Verdict.PANIC
    return None, Verdict.NOBODY
