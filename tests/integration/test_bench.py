"""`make bench` in small: it runs to its end, against real nghttpd and h2load, and what it writes can be read."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from bench.cpu import Cores
from bench.peers.districhat import PEER as OURS
from bench.peers.programs import installed
from bench.runner import Plan, measure
from bench.scenarios import SCENARIOS
from tests.support.tools import need


def test_the_benchmark_measures_every_kind_of_load_without_a_failed_call(tmp_path: Path) -> None:
    need("nghttpd", "nghttp2-server")
    need("h2load", "nghttp2-client")
    result = tmp_path / "result.json"
    scenarios = "8x32,64x1,deadlines,chats,responses,requests,tokens,latency"
    run = subprocess.run(
        [
            *(sys.executable, "-m", "bench", "--peers", "districhat,grpc.aio", "--scenarios", scenarios),
            *("--rounds", "1", "--calls", "200", "--rate", "200", "--json", str(result)),
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    document = json.loads(result.read_text())
    ours = {each["scenario"]: each for each in document["summaries"] if each["peer"] == "districhat"}
    assert list(ours) == [*scenarios.removesuffix(",latency").replace(",tokens", "").split(","), "latency", "tokens"]
    assert all(each["failed"] == 0 and each["cpu_us"] > 0 and each["memory_mib"] > 0 for each in ours.values())
    assert ours["latency"]["latencies"]["p99"] > 0
    assert {(each["scenario"], each["peer"]) for each in document["ratios"]} == {
        ("8x32", "grpc.aio"),
        ("64x1", "grpc.aio"),
    }


def test_the_scale_benchmark_tells_what_each_thing_costs() -> None:
    need("nghttpd", "nghttp2-server")
    run = subprocess.run(
        [sys.executable, "-m", "bench.scale", "connections", "streams", "--scale", "0.02"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"^200 idle connections: [0-9,]+ bytes each", run.stdout, re.MULTILINE)
    assert re.search(r"^100 streams: -?[0-9,]+ bytes each", run.stdout, re.MULTILINE)


def test_a_peer_that_does_not_start_or_dies_costs_the_others_nothing() -> None:
    need("nghttpd", "nghttp2-server")
    need("h2load", "nghttp2-client")
    absent = replace(OURS, name="absent", command=lambda _: ["false"])
    short = replace(OURS, name="short-lived", command=lambda setup: ["timeout", "3", *OURS.command(setup)])
    plan = Plan(
        peers=(absent, short, OURS),
        scenarios=(SCENARIOS["8x32"],),
        rounds=30,
        calls=2_000,
        rate=None,
        cores=Cores.split(os.sched_getaffinity(0)),
        nghttpd=installed("nghttpd", "nghttp2-server"),
        h2load=installed("h2load", "nghttp2-client"),
    )
    runs, problems = measure(plan, lambda _: None)
    assert len([run for run in runs if run.peer == OURS.name]) == 30
    assert [problem.partition(" ")[0] for problem in problems] == ["absent", "short-lived"]
