"""Recorded and fuzzed byte streams against a proxy in memory.

What must hold for each is in `replay_client` and `replay_server`: no exception, no bug reported, nothing left behind,
the next good call served. Here: that the verdict does not depend on how TCP cuts the bytes, and is sane.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.conformance.memory import replay_client, replay_server
from tests.conformance.replays import CLIENT_STREAMS, SERVER_STREAMS, random_cut, streams
from tests.conformance.table import Row
from tests.conformance.verdicts import PREFACE

if TYPE_CHECKING:
    from collections.abc import Callable

SANE = {
    "none",
    "closed",
    "GOAWAY PROTOCOL_ERROR",
    "GOAWAY FRAME_SIZE_ERROR",
    "GOAWAY COMPRESSION_ERROR",
    "GOAWAY FLOW_CONTROL_ERROR",
    "GOAWAY STREAM_CLOSED",
    "GOAWAY ENHANCE_YOUR_CALM",
    "RST PROTOCOL_ERROR",
    "RST CANCEL",
    "RST REFUSED_STREAM",
    "RST FLOW_CONTROL_ERROR",
    "RST STREAM_CLOSED",
}
"""INTERNAL_ERROR is not: nothing that a peer sends is a bug of ours."""
UNTOLD = {"closed", "GOAWAY PROTOCOL_ERROR"}
"""Before the preface both are said: which, depends on whether enough of an HTTP/1 method has come to see it as such."""

SUITES = {
    "nghttp2/": ("replay of client streams, nghttp2", 133 + 3),
    "grpc/client-streams/": ("replay of client streams, gRPC", 497),
    "grpc/server-streams/": ("replay of server streams, gRPC", 742),
}


@pytest.mark.slow
@pytest.mark.parametrize("prefix", SUITES)
def test_a_recorded_stream_is_survived_and_judged_alike_however_it_is_cut(prefix: str, record: Callable[[Row], None]):
    replay = replay_client if prefix in CLIENT_STREAMS else replay_server
    for name, data in streams(prefix).items():
        try:
            found = replay(data)
            again = replay(data, partial(random_cut, name))
            replay(data, partial(random_cut, name + " paced"), paced=True)
        except Exception as error:
            error.add_note(f"stream {name}")
            raise
        assert found in SANE, name
        assert again == found or ({again, found} == UNTOLD and not data.startswith(PREFACE)), name
    suite, cases = SUITES[prefix]
    assert len(streams(prefix)) == cases
    record(Row(suite, (CLIENT_STREAMS | SERVER_STREAMS)[prefix], cases))
