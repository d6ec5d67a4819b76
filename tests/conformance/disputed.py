"""The cases of h2spec and h2specd that we do not pass: their bytes, our answer, why it is right, and that of the peers.

Both programs go by RFC 7540. Here stands what RFC 9113, which replaced it, says, word for word where it matters, and
what others answer to the same bytes: data/disputed.json (`make conformance-peers` asks them).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Final

import hpack

from tests.support.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PRIORITY,
    RST_STREAM,
    WINDOW_UPDATE,
    frame,
    number,
)

ANSWERS: Final = Path(__file__).parent / "data" / "disputed.json"


@dataclass(frozen=True)
class Dispute:
    """A case."""

    says: bytes
    """After preface and SETTINGS."""
    ours: str
    """Our verdict."""
    why: str
    """Why that is right, or does no harm."""
    then: bytes = b""
    """Follows once the request on stream 1 has been answered to the end."""


def request(stream: int = 1, *, end: bool = True) -> bytes:
    """`GET /`, which h2spec asks for."""
    fields = {":method": "GET", ":scheme": "http", ":path": "/", ":authority": "h2spec"}
    block = hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple(*field) for field in fields.items()])
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, block)


_RESET = frame(RST_STREAM, 0, 1, number(8))  # CANCEL
_DATA = frame(DATA, END_STREAM, 1, b"test")
_TOO_MUCH = frame(WINDOW_UPDATE, 0, 1, number(2**31 - 1)) * 2
_ON_ITSELF = frame(PRIORITY, 0, 1, number(1) + b"\x0f")
_ON_NOTHING = frame(PRIORITY, 0, 0, number(0) + b"\x0f")

_CLOSED: Final = (
    'RFC 7540 5.1 demanded STREAM_CLOSED for frames on a closed stream. By RFC 9113 5.1 an endpoint "MAY treat" '
    'them as a connection error, and "can perform this minimal processing for all streams that are in the '
    '"closed" state": what it owes to frames that crossed its own RST_STREAM. The engine performs that: it '
    "decodes header blocks, gives the credit for DATA back, and drops both."
)
_CLOSED_DATA: Final = (
    _CLOSED
    + ' (6.1 has kept "MUST respond with a stream error ... STREAM_CLOSED" for DATA, though 5.1 has "MUST NOT send '
    'frames other than PRIORITY on a closed stream"; to drop it is the reading that breaks no other rule.)'
)
_PRIORITY: Final = (
    "RFC 9113 5.3.2 deprecates the priority signals of RFC 7540, and has no rule about a stream that depends on itself "
    "any more. The engine reads over PRIORITY frames."
)
_PRIORITY_0: Final = (
    'A breach, of no consequence: RFC 9113 6.3 has kept "the recipient MUST respond with a connection error ... of '
    'type PROTOCOL_ERROR". libnghttp2 ignores PRIORITY frames since 1.65 (its issues 2365 and 2840), and ngh2, its '
    "binding, reports none, so that it takes another walk from frame to frame to see one. That was tried: it costs 4 % "
    "of a call at 8x32, 7 % at 64x1 and of large messages. And what it would find has no effect: no stream, no state, "
    "no allocation comes of such a frame; each is a glitch, and a flood of them ends in ENHANCE_YOUR_CALM "
    "(tests/attack: F priority churn). One of another length than 5 is a FRAME_SIZE_ERROR, as 6.3 demands."
)
_LOWER: Final = (
    'By RFC 9113 5.1.1 a stream that was skipped "is immediately closed", and on closed streams HEADERS may be '
    'dropped after "minimal processing" (5.1), as the engine does. The "MUST respond with a connection error" of '
    '5.1.1 for "an unexpected stream identifier" would need a record of the streams that were skipped, to tell '
    "them from those that have ended: HEADERS on these may be trailers that crossed our RST_STREAM, which must be "
    "borne. No request comes of such HEADERS, and the header table stays right; libnghttp2 means it so (its issue "
    "1300)."
)
_OVERFLOW: Final = (
    'RFC 9113 6.9.1: "it MUST terminate either the stream or the connection, as appropriate", and 5.4.1: "an '
    'endpoint MAY choose to treat a stream error as a connection error". The engine ends the connection, with the '
    "code that 6.9.1 names. The tool takes RST_STREAM only, though elsewhere it takes either (its issue 10). A "
    "peer that would have us reset streams (MadeYouReset, CVE-2025-8671) gains nothing by this."
)

SERVER: Final[dict[str, Dispute]] = {
    "http2/5.1/8": Dispute(request(end=False) + _RESET + _DATA, "none", _CLOSED_DATA),
    "http2/5.1/9": Dispute(request(end=False) + _RESET + request(), "none", _CLOSED),
    "http2/5.1/11": Dispute(request(), "none", _CLOSED_DATA, then=_DATA),
    "http2/5.1/12": Dispute(request(), "none", _CLOSED, then=request()),
    "http2/5.1.1/2": Dispute(request(5) + request(3), "none", _LOWER),
    "http2/5.3.1/2": Dispute(_ON_ITSELF, "none", _PRIORITY),
    "http2/6.3/1": Dispute(_ON_NOTHING, "none", _PRIORITY_0),
    "http2/6.9.1/3": Dispute(request(end=False) + _TOO_MUCH, "GOAWAY FLOW_CONTROL_ERROR", _OVERFLOW),
}
"""Of h2spec."""
CLIENT: Final[dict[str, Dispute]] = {
    "client/6.3/1": Dispute(_ON_NOTHING, "none", "As h2spec's `http2/6.3/1`."),
    "client/6.9.1/2": Dispute(_TOO_MUCH, "GOAWAY FLOW_CONTROL_ERROR", "As h2spec's `http2/6.9.1/3`."),
}
"""Of h2specd, after our request."""


def digest() -> str:
    """Of everything that the peers were asked."""
    disputes = {**SERVER, **CLIENT}
    return sha256(b"".join(disputes[name].says + disputes[name].then for name in sorted(disputes))).hexdigest()[:16]


@cache
def answers() -> dict[str, dict[str, str]]:
    """Name of a case -> program and version -> its verdict. The empty name has `digest` of the time."""
    found: dict[str, dict[str, str]] = json.loads(ANSWERS.read_text(encoding="utf-8"))
    return found


def differences(disputes: dict[str, Dispute]) -> dict[str, str]:
    """Name of a case -> what docs/conformance.md says about it."""
    return {
        name: f"{dispute.why} Ours: {dispute.ours}; "
        + "; ".join(f"{who}: {said}" for who, said in answers()[name].items())
        for name, dispute in disputes.items()
    }
