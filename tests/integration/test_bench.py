"""`make bench` in small: it runs to its end, against real nghttpd and h2load, and what it writes can be read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support.tools import need


def test_the_benchmark_measures_both_peers_without_a_failed_call(tmp_path: Path) -> None:
    need("nghttpd", "nghttp2-server")
    need("h2load", "nghttp2-client")
    result = tmp_path / "result.json"
    arguments = ["--rounds", "1", "--calls", "300", "--json", str(result)]
    run = subprocess.run(
        [sys.executable, "-m", "bench", *arguments], capture_output=True, text=True, timeout=100, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "districhat / grpc.aio = " in run.stdout
    assert json.loads(result.read_text())
