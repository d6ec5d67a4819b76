"""HTTP/2 without I/O. The only package that knows the engine (ngh2, which is libnghttp2).

engine      roles, limits, windows
limits      buckets, the backlog of bytes, the error that ends a connection
connection  bytes in, handler calls out, one write per event-loop pass
outbox      which connections have something to say
pass_clock  when a pass of the event loop began, how long passes take
"""

from ngh2 import (
    ConnectionClosed,
    ConnectionClosingError,
    DataReceived,
    ErrorCode,
    Event,
    GoAwayReceived,
    Header,
    NeverIndexedHeader,
    NoAvailableStreamIDError,
    PingAcknowledged,
    RequestReceived,
    ResponseReceived,
    Setting,
    SettingsAcknowledged,
    SettingsReceived,
    StreamClosed,
    StreamUnavailableError,
    TrailersReceived,
)
from ngh2 import NGH2Error as EngineError

from proxy.http2.connection import Http2Connection, Wire
from proxy.http2.engine import (
    EMPTY_SETTINGS,
    MAX_STREAM_ID,
    NO_LIMIT,
    Engine,
    Limits,
    client_engine,
    code_of,
    goaway_frame,
    server_engine,
)
from proxy.http2.limits import Backlog, LimitExceeded, TokenBucket
from proxy.http2.outbox import Outbox
from proxy.http2.pass_clock import PASS_BOUNDS, PassClock
from proxy.http2.turns import Turns

__all__ = [
    "EMPTY_SETTINGS",
    "MAX_STREAM_ID",
    "NO_LIMIT",
    "PASS_BOUNDS",
    "Backlog",
    "ConnectionClosed",
    "ConnectionClosingError",
    "DataReceived",
    "Engine",
    "EngineError",
    "ErrorCode",
    "Event",
    "GoAwayReceived",
    "Header",
    "Http2Connection",
    "LimitExceeded",
    "Limits",
    "NeverIndexedHeader",
    "NoAvailableStreamIDError",
    "Outbox",
    "PassClock",
    "PingAcknowledged",
    "RequestReceived",
    "ResponseReceived",
    "Setting",
    "SettingsAcknowledged",
    "SettingsReceived",
    "StreamClosed",
    "StreamUnavailableError",
    "TokenBucket",
    "TrailersReceived",
    "Turns",
    "Wire",
    "client_engine",
    "code_of",
    "goaway_frame",
    "server_engine",
]
