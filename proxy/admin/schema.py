"""The JSON of the admin API, as models: what every response and every request body holds.

`VERSION` is in every body. It grows when a field is removed or changes its meaning; new fields and new values of open
enumerations (event types, causes) may come at any time, so clients ignore what they do not know. `json_schema` exports
all of it; the server gives it at `/api/schema`.

Times are UTC (RFC 3339), durations seconds, positions on the ring integers from 0 up to, not including, `ring_size`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

VERSION: Final = 1

EndpointStatus = Literal["available", "draining", "ejected", "unhealthy", "unreachable"]
"""One word for a server: the gravest of what speaks against it (draining, unreachable, unhealthy, ejected)."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Body(_Model):
    schema_version: Literal[1] = VERSION


class Problem(_Model):
    """An error (RFC 9457), sent as `application/problem+json`."""

    type: str = "about:blank"
    title: str
    """The HTTP status in words."""
    status: int
    detail: str
    """What was wrong with this request, and what to do."""
    problems: tuple[str, ...] = ()
    """Each mistake of a configuration or a body by itself, with its key."""


class Health(_Body):
    """`GET /livez`, `GET /readyz`."""

    status: Literal["ok", "unavailable"]
    reason: str = ""
    """Why it is not ready."""


class Snapshot(_Model):
    """Which state of the cluster a body speaks of."""

    version: int
    """Counts the changes of members and weights since the process started."""
    fingerprint: str
    """Proxies with the same one agree on every owner."""


class Block(_Model):
    """Something that speaks against giving a server calls."""

    cause: str
    """`connect`, `health`, `ejected`, `operator`."""
    reason: str
    """For people."""
    since: datetime | None = None


class Traffic(_Model):
    """What a server has done for us since it is known."""

    calls: int = 0
    """Calls that it answered, well or not, and calls that ended while it had them."""
    errors: int = 0
    """Those of them with another status than OK."""
    latency_sum: float = 0.0
    """Seconds of all of them together, from their first byte here to their last."""
    latency_counts: tuple[int, ...] = ()
    """Calls in each bucket of `latency_bounds`, and in one more for all longer ones."""


class CacheStats(_Model):
    """The session cache of a reference server, as it says itself."""

    l1_size: int
    l1_capacity: int
    l2_size: int
    l2_capacity: int
    requests: int
    hits: int
    misses: int


class Endpoint(_Model):
    """One server."""

    id: str
    address: str
    weight: float
    virtual_nodes: int
    share: float
    """Of the key space, 0 to 1."""
    status: EndpointStatus
    available: bool
    blocks: tuple[Block, ...] = ()
    active_calls: int = 0
    connections: int = 0
    waiting_calls: int = 0
    """Calls that wait for a connection or a free stream."""
    traffic: Traffic = Traffic()
    cache: CacheStats | None = None
    """None: it is not a reference server, or was not asked yet."""


class Endpoints(_Body):
    """`GET /api/endpoints`."""

    snapshot: Snapshot
    at: datetime
    not_ready: str = ""
    """Why no client should be sent here now, as `/readyz` says; empty: all is well."""
    active_calls: int
    latency_bounds: tuple[float, ...] = ()
    """Upper bounds, in seconds, of the buckets of `latency_counts`."""
    endpoints: tuple[Endpoint, ...]
    unserved: Traffic = Traffic()
    """Calls that no server had in the end: refused here, or given up before one took them."""


class RingMember(_Model):
    """What one server owns."""

    id: str
    virtual_nodes: int
    share: float
    arcs: tuple[tuple[int, int], ...]
    """Each (start, end): the positions after start up to and with end, clockwise, neighbouring ones joined. Where start
    is not less than end, the arc passes through zero; a server alone has one arc with start equal to end."""


class Ring(_Body):
    """`GET /api/ring`."""

    snapshot: Snapshot
    hash: str
    ring_size: int
    members: tuple[RingMember, ...]


class Candidate(_Model):
    """A server on the way of a key along the ring."""

    id: str
    address: str
    status: EndpointStatus
    available: bool
    chosen: bool
    passed_over: str = ""
    """Why it is not the chosen one, if it comes before that, or what it would refuse the call for."""
    blocks: tuple[Block, ...] = ()
    active_calls: int = 0


class Displaced(_Model):
    """A chat that another server than its owner has."""

    endpoint: str
    idle: float
    """Seconds since its last call."""


class Explanation(_Body):
    """`GET /api/explain?key=KEY`: what would happen to a call with this key now."""

    snapshot: Snapshot
    key: str
    hash: int
    """Also its position on the ring."""
    position: float
    """The same as a share of the circle, 0 to 1."""
    owner: str
    chosen: str | None
    """The server that would be offered the call; None: it would be refused."""
    verdict: Literal["owner", "displaced", "passed_over", "panic", "over_bound", "quarantined", "nobody"]
    summary: str
    """The whole answer in a sentence."""
    candidates: tuple[Candidate, ...]
    """In ring order from the owner, up to the chosen one and some more."""
    more_candidates: int
    displaced: Displaced | None = None
    quarantined_for: float = 0.0
    """Seconds that calls with this key are still refused."""


class Attempt(_Model):
    """One server that was given a call."""

    endpoint: str
    outcome: str
    """`answered`, or why it did not."""
    seconds: float
    """From when the call began."""


class Decision(_Model):
    """Where one call went."""

    at: datetime
    method: str
    route: str
    chat: str
    """The key, or a hash of it (see `decisions.chat_ids`); empty: the call had none."""
    owner: str | None
    endpoint: str | None
    """Who answered; None: nobody."""
    status: str
    """The name of the gRPC status; `CANCELLED` also if the client went away."""
    seconds: float
    attempts: tuple[Attempt, ...]
    reasons: str = ""
    """Whom it walked past and why, for people."""


class Decisions(_Body):
    """`GET /api/decisions`: a sample of the latest calls, newest first."""

    sample: int
    """One call in so many is told."""
    chat_ids: Literal["hashed", "plain"]
    decisions: tuple[Decision, ...]


class Move(_Model):
    """Keys that would go from one server to another."""

    source: str
    target: str
    share: float
    """Of the key space."""
    chats: int
    """Of those recently seen."""


class Plan(_Body):
    """`GET /api/plan?add=ID=WEIGHT&remove=ID&reweight=ID=WEIGHT`, each as often as wanted: what a change of the members
    would move, before it is made. `remove` also tells what a drain moves.
    """

    snapshot: Snapshot
    fingerprint: str
    """Of the ring that the change would make."""
    moved_share: float
    """Of the key space, 0 to 1."""
    recent_chats: int
    """Chats seen recently, as far as they are remembered."""
    moved_chats: int
    """Those of them that would move."""
    moves: tuple[Move, ...]
    """Largest first."""
    shares: dict[str, float]
    """Share of each server afterwards."""


def _in_one_line(text: str) -> str:
    """What others see in their terminals and logs: no line breaks, no control characters."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


class DrainRequest(_Model):
    """Body of `POST /api/endpoints/{id}/drain`. All of it may be left out."""

    reason: Annotated[str, Field(max_length=200), AfterValidator(_in_one_line)] = ""
    """For people; told with the server's state."""
    force: bool = False
    """Also if that leaves no server available."""


class Empty(_Model):
    """Body of a POST that takes no more than `{}`."""


class Drained(_Body):
    """Answer to `drain` and `undrain`."""

    id: str
    changed: bool
    """False: it was so already."""
    status: EndpointStatus
    active_calls: int
    """Calls that the server has now; they finish."""


class Reloaded(_Body):
    """Answer to `POST /api/reload`."""

    changed: tuple[str, ...]
    """What is different now, a line each, with its key."""
    restart_needed: tuple[str, ...]
    """Keys whose new value holds only after a restart."""


class Config(_Body):
    """`GET /api/config`: the settings that hold, defaults included, secrets masked."""

    settings: dict[str, Any]


class Event(_Model):
    """Something that happened; the data of a message of `GET /api/events` (`event: ` is its type, `id: ` its id)."""

    id: int
    """Counts up by one within a process; a gap means that this client was too slow."""
    at: datetime
    type: str
    """A cause speaks against a server, or no more: `unreachable`, `reachable`; `unhealthy`, `healthy`; `ejected`,
    `recovered`; `drained`, `undrained`. It has left the configuration: `removed`. Of the proxy: `reloaded`,
    `worker_replaced`."""
    endpoint: str = ""
    cause: str = ""
    detail: str = ""
    """For people."""


BODIES: Final = (
    Problem,
    Health,
    Endpoints,
    Ring,
    Explanation,
    Decisions,
    Plan,
    Config,
    DrainRequest,
    Drained,
    Reloaded,
    Event,
)
"""Everything that is a body, or the data of an event, by itself."""


def json_schema() -> dict[str, Any]:
    """All bodies as one JSON schema (draft 2020-12), under `$defs`."""
    _, schema = models_json_schema(
        [(body, "serialization") for body in BODIES], title=f"DistriChat admin API, version {VERSION}"
    )
    return schema
