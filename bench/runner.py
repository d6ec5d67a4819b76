"""The benchmark: all processes up, warm-up, then rounds in which every peer has its turn with every shape."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench import backends
from bench.cpu import Cores, cpu_ns
from bench.errors import BenchError
from bench.load import Load, Shape
from bench.peers.base import Peer, Setup
from bench.probe import chats_by_server
from bench.process import Process, free_port

if TYPE_CHECKING:
    from collections.abc import Callable

_READY_WITHIN = 15.0


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    peers: tuple[Peer, ...]
    shapes: tuple[Shape, ...]
    rounds: int
    calls: int | None
    """Per run; None: each peer's own number."""
    cores: Cores
    nghttpd: str
    h2load: str


@dataclass(frozen=True)
class Run:
    """One measured run."""

    peer: str
    shape: str
    round: int
    calls: int
    failed: int
    seconds: float
    cpu_seconds: float
    """Of the proxy, during the run."""

    @property
    def cpu_us_per_call(self) -> float:
        """The figure all this is about."""
        return self.cpu_seconds * 1e6 / self.calls

    @property
    def calls_per_second(self) -> float:
        """Of the whole arrangement; the proxy's limit only where `busy` is near 1."""
        return self.calls / self.seconds

    @property
    def busy(self) -> float:
        """Share of its core the proxy used; well under 1 means that load or backends were the bottleneck."""
        return self.cpu_seconds / self.seconds


@dataclass(frozen=True)
class _Subject:
    peer: Peer
    process: Process
    load: Load


def measure(plan: Plan, progress: Callable[[str], None]) -> list[Run]:
    """Carry out the plan; every process it started has ended when it returns or raises.

    Runs with failed calls are part of the result, for the caller to judge. BenchError if a process does not start,
    dies or sticks.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary, contextlib.ExitStack() as stack:
        directory = Path(temporary)
        servers = stack.enter_context(backends.running(plan.nghttpd, directory, plan.cores.rest))
        subjects = [_start(stack, plan, peer, servers, directory / str(n)) for n, peer in enumerate(plan.peers)]
        runs: list[Run] = []
        for subject in subjects:
            for shape in plan.shapes:
                progress(f"warm-up    {shape!s:6} {subject.peer.name}")
                _run(subject, shape, 0, max(500, _calls(plan, subject.peer) // 4))
        for number in range(1, plan.rounds + 1):
            for shape in plan.shapes:
                for subject in subjects:
                    run = _run(subject, shape, number, _calls(plan, subject.peer))
                    failures = f"  {run.failed} of {run.calls} calls FAILED" if run.failed else ""
                    progress(
                        f"round {number}/{plan.rounds}  {shape!s:6} {run.peer:12} {run.cpu_us_per_call:7.1f} us/call"
                        f" {run.calls_per_second:8.0f} calls/s{failures}"
                    )
                    runs.append(run)
            for process in servers.processes:
                process.check_alive()
        return runs


def _calls(plan: Plan, peer: Peer) -> int:
    return plan.calls or peer.calls


def _start(
    stack: contextlib.ExitStack, plan: Plan, peer: Peer, servers: backends.Backends, directory: Path
) -> _Subject:
    directory.mkdir()
    setup = Setup(directory, free_port(), servers.addresses, backends.METHOD)
    process = stack.enter_context(Process(peer.name, peer.command(setup), plan.cores.proxy, directory / "log"))
    process.wait_ready(setup.port, peer.ready, _READY_WITHIN)
    try:
        chats = chats_by_server(setup.port, setup.method, servers.ids, peer.routing_header)
    except BenchError as error:
        raise BenchError(f"{peer.name}: {error}") from error
    load = Load(
        h2load=plan.h2load,
        directory=directory,
        cpus=plan.cores.rest,
        port=setup.port,
        method=setup.method,
        chats=tuple(chats.values()),
        routing_header=peer.routing_header,
        reply_size=servers.reply_size,
    )
    return _Subject(peer, process, load)


def _run(subject: _Subject, shape: Shape, number: int, calls: int) -> Run:
    subject.process.check_alive()
    before = cpu_ns(subject.process.pid)
    result = subject.load.run(shape, calls)
    subject.process.check_alive()
    used = cpu_ns(subject.process.pid) - before
    return Run(
        peer=subject.peer.name,
        shape=str(shape),
        round=number,
        calls=result.calls,
        failed=result.failed,
        seconds=result.seconds,
        cpu_seconds=used / 1e9,
    )
