"""ghz, a load generator on grpc-go, against the proxy and three reference servers: `make ghz`.

What h2load does not have: a gRPC library's own HTTP/2, a deadline on every call, messages from a template
(`ghz.json`). The report is ghz's own, and its latencies are mostly the reference servers', which are Python too. For
figures of the proxy alone, see the benchmark.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cpu import Cores, cpu_ns
from bench.errors import BenchError, UsageError
from bench.options import carry_out, number, progress
from bench.process import ROOT, Process, free_port, pinned

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CONFIG = Path(__file__).parent / "ghz.json"
_SERVERS = ("Server-A", "Server-B", "Server-C")
_READY_WITHIN = 20.0


def program() -> str:
    """ghz: beside our Python, where `make ghz` puts it, or on the path. UsageError with what to do."""
    path = shutil.which("ghz", path=str(Path(sys.executable).parent)) or shutil.which("ghz")
    if path is None:
        raise UsageError("ghz not found; with Go: go install github.com/bojand/ghz/cmd/ghz@v0.120.0")
    return path


@contextlib.contextmanager
def served(directory: Path, cores: Cores) -> Iterator[tuple[int, Process]]:
    """Three reference servers and the proxy, up: its port and process."""
    with contextlib.ExitStack() as stack:
        endpoints = ""
        for name in _SERVERS:
            port = free_port()
            command = [sys.executable, "-m", "backend", "--id", name, "--address", f"127.0.0.1:{port}"]
            server = stack.enter_context(Process(name, command, cores.rest, directory / f"{name}.log"))
            server.wait_ready(port, None, _READY_WITHIN)
            endpoints += f'\n[[endpoints]]\nid = "{name}"\naddress = "127.0.0.1:{port}"\n'
        port = free_port()
        config = directory / "proxy.toml"
        config.write_text(f'[listener]\naddress = "127.0.0.1:{port}"\n{endpoints}', encoding="utf-8")
        command = [sys.executable, "-m", "proxy", "serve", "--config", str(config)]
        proxy = stack.enter_context(Process("districhat", command, cores.proxy, directory / "proxy.log"))
        proxy.wait_ready(port, " ready on ", _READY_WITHIN)
        yield port, proxy


def failed(report: str, total: int) -> int:
    """How many of `total` calls did not end with OK, by ghz's report in text."""
    match = re.search(r"^\s*\[OK\]\s+(\d+) responses", report, re.MULTILINE)
    return total - int(match[1]) if match else total


def main(arguments: Sequence[str] | None = None) -> int:
    """The program: 0 if every call ended with OK, 1 if not, 2 without ghz."""
    parser = argparse.ArgumentParser(prog="python -m bench.load.ghz", description=__doc__.partition("\n")[0])
    parser.add_argument("--total", type=number(int, 1, 1e8), default=20_000, metavar="N", help="calls (default: 20000)")
    options = parser.parse_args(arguments)
    return carry_out("bench.load.ghz", lambda: _run(program(), options.total))


def _run(ghz: str, total: int) -> int:
    cores = Cores.split(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="bench-ghz-") as temporary, served(Path(temporary), cores) as (port, proxy):
        progress(f"{total} calls of ghz through the proxy to {len(_SERVERS)} reference servers ...")
        before = cpu_ns(proxy.pid)
        command = [ghz, "--config", str(CONFIG), "--total", str(total), f"127.0.0.1:{port}"]
        with pinned(cores.rest):
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
        used = cpu_ns(proxy.pid) - before
    print(done.stdout, end="")
    if done.returncode:
        raise BenchError(f"ghz ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    print(f"Proxy: {used / 1000 / total:.1f} us of CPU per call")
    if wrong := failed(done.stdout, total):
        raise BenchError(f"{wrong} of {total} calls did not end with OK")
    return 0


if __name__ == "__main__":
    sys.exit(main())
