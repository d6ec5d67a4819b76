"""May a call move to another server after its attempt failed?

The question behind it: can the call have run? Where it cannot (class T of the table below), moving is always allowed;
where it may have, running it again needs leave, which no route can give yet, so it fails.

| outcome | basis | class |
|---|---|---|
| CONNECT_FAILED | never left the proxy (gRFC A6, "transparent retries") | T |
| NOT_SENT | not one byte of the stream was written | T |
| REFUSED | RST_STREAM(REFUSED_STREAM): not processed (RFC 9113, 8.7) | T |
| UNPROCESSED | GOAWAY with a lower last stream id: not processed (RFC 9113, 6.8) | T |
| OVERLOADED | too many calls wait for the server; its chats stay with it | never moves |
| LOST | connection lost after the request was written | may have run |
| RESET | any other RST_STREAM before the response | may have run |
"""

from __future__ import annotations

from enum import Enum, auto


class Outcome(Enum):
    """How an attempt ended without a response."""

    CONNECT_FAILED = auto()
    NOT_SENT = auto()
    REFUSED = auto()
    UNPROCESSED = auto()
    OVERLOADED = auto()
    LOST = auto()
    RESET = auto()


TRANSPARENT = frozenset({Outcome.CONNECT_FAILED, Outcome.NOT_SENT, Outcome.REFUSED, Outcome.UNPROCESSED})


def may_move(outcome: Outcome, *, replayable: bool) -> bool:
    """Whether the call may be offered to another server.

    `replayable`: nothing of a response was passed on, and every byte of the request received so far is still here.
    """
    return replayable and outcome in TRANSPARENT
