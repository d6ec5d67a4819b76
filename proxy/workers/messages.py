"""What the parent and its workers say to one another.

Values only, pickled, over a socket pair that no other process can reach. `VERSION` grows with each change: a worker
that is started from a program that was upgraded meanwhile must not be misunderstood.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from proxy.cluster.endpoint import Cause

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.admin.call_records import Kept
    from proxy.settings import Settings

VERSION: Final = 2

LOCAL_CAUSES: Final = frozenset({Cause.CONNECT, Cause.REMOVED})
"""What every worker finds out by itself; the rest it is told."""

EXCHANGE: Final = 0.1
"""Seconds between two exchanges of load figures, either way; a worker tells its own only if they have changed."""
Blocks: TypeAlias = "Mapping[str, str]"
"""Cause (by value) -> reason, for one server; without `LOCAL_CAUSES`."""


# From the parent.


@dataclass(frozen=True, slots=True)
class Configure:
    """The first message, and whenever settings change or a worker has missed something: what holds now."""

    generation: int
    """Counts these messages; answered by `Applied`."""
    settings: Settings
    snapshot: int
    """The number of the cluster's snapshot."""
    workers: int
    """How many there are."""
    said: Mapping[str, Blocks]
    """By the server's id. Those that are not mentioned have nothing against them."""
    quarantined: Mapping[bytes, float]
    moved: tuple[Moved, ...]
    """Besides those that it knows already."""
    attentive: bool
    """See `Attentive`."""


@dataclass(frozen=True, slots=True)
class Serve:
    """Accept clients."""


@dataclass(frozen=True, slots=True)
class Said:
    """What is said against a server now."""

    endpoint: str
    blocks: Blocks


@dataclass(frozen=True, slots=True)
class Answers:
    """The server has been seen to answer: do not wait with connecting to it."""

    endpoint: str


@dataclass(frozen=True, slots=True)
class Quarantined:
    """The key is quarantined until then."""

    key: bytes
    until: float


@dataclass(frozen=True, slots=True)
class Attentive:
    """Whether also calls that went well are to be reported: some have failed, here or elsewhere."""

    on: bool


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Calls under way in all the other workers."""

    calls: Mapping[str, int]
    """By the server's id; 0 is not mentioned."""
    total: int


@dataclass(frozen=True, slots=True)
class Ask:
    """Answer with an `Answer` of the same number."""

    number: int
    what: Literal["numbers", "recent_keys", "decisions"]
    """Methods of `DataPlane`."""
    limit: int = 0
    """Of decisions."""
    key: bytes | None = None
    """Of the chat that they shall be about; None: any."""


@dataclass(frozen=True, slots=True)
class StopAccepting:
    """Take no more clients; answered by `Stopped`. Only when none does may any worker `Drain`: a client that is sent
    away by one must not come to the next, and be sent away again.
    """


@dataclass(frozen=True, slots=True)
class Drain:
    """Finish the running calls, take no new ones, and end."""


# From a worker.


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message."""

    version: int
    program: str
    """The version of the program, for people."""


@dataclass(frozen=True, slots=True)
class Applied:
    """Calls are carried by what `Configure` said."""

    generation: int


@dataclass(frozen=True, slots=True)
class Serving:
    """Clients are accepted. `problem`: or they cannot be, for this reason."""

    problem: str = ""


@dataclass(frozen=True, slots=True)
class Stopped:
    """No more clients are accepted."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a worker has to do, as often as that changes; and every second, as a sign of life."""

    active: Mapping[str, int]
    """Calls under way, by the server's id; 0 is not mentioned, neither here nor below."""
    total: int
    connections: Mapping[str, int]
    waiting: Mapping[str, int]
    unreachable: Mapping[str, str]
    """Servers that cannot be connected to, and why."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How calls ended, in order."""

    calls: tuple[tuple[str, str, bytes, float], ...]
    """(method of `OutlierDetector`, or failed_again; server's id; key; time)"""


@dataclass(frozen=True, slots=True)
class Numbers:
    """See `StatsSnapshot`, which it is."""

    values: dict[str, dict[tuple[str, ...], float]]
    histograms: dict[str, dict[tuple[str, ...], list[float]]]


@dataclass(frozen=True, slots=True)
class Answer:
    """To an `Ask`."""

    number: int
    value: Numbers | tuple[bytes, ...] | tuple[Kept, ...]


@dataclass(frozen=True, slots=True)
class Drained:
    """The last message. Calls that did not finish in time."""

    cut_off: int


# From both.


@dataclass(frozen=True, slots=True)
class Moved:
    """Where a chat's calls go instead of to its owner."""

    key: bytes
    endpoint: str | None
    """None: home."""
    at: float
    """When its last call was seen."""


@dataclass(frozen=True, slots=True)
class ManyMoved:
    """Several at a time."""

    chats: tuple[Moved, ...]


Message: TypeAlias = (
    Configure
    | Serve
    | Said
    | Answers
    | Quarantined
    | Attentive
    | Elsewhere
    | Ask
    | Answer
    | StopAccepting
    | Drain
    | Hello
    | Applied
    | Serving
    | Stopped
    | Load
    | Ended
    | Drained
    | ManyMoved
)
