"""The benchmark: all processes up, warm-up, then rounds in which every peer has its turn with every scenario."""

from __future__ import annotations

import contextlib
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from bench import backends
from bench.certificate import Certificate
from bench.cpu import Cores, cpu_ns, memory_mib
from bench.errors import BenchError
from bench.load import calls, h2load
from bench.peers.base import Peer, Setup
from bench.probe import chats_by_server
from bench.process import Process, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench.load.result import Latencies, LoadResult
    from bench.scenarios import Arrangement, Scenario

_READY_WITHIN = 15.0
_WARM_UP = 0.25
"""Of a run's calls."""
SATURATION = "64x1"
"""The scenario whose calls per second the rate of the latency scenario is half of."""
_RATE_SECONDS = 2.0
"""How long a run at a fixed rate lasts."""


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    peers: tuple[Peer, ...]
    scenarios: tuple[Scenario, ...]
    rounds: int
    calls: int | None
    """Per run; None: each peer's own number."""
    rate: float | None
    """Calls per second of scenarios at a rate; None: half of what the slowest peer did as `SATURATION`."""
    cores: Cores
    nghttpd: str
    h2load: str


@dataclass(frozen=True)
class Run:
    """One measured run."""

    peer: str
    scenario: str
    round: int
    calls: int
    failed: int
    seconds: float
    cpu_seconds: float
    """Of the proxy, during the run."""
    units: float
    """Calls, or MiB, or messages: what the scenario counts in."""
    memory_mib: float
    """Of the proxy, after the run."""
    latencies: Latencies | None = None

    @property
    def cpu_us(self) -> float:
        """CPU microseconds per unit: the figure all this is about."""
        return self.cpu_seconds * 1e6 / self.units

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
    """A running peer, and how to put load on it."""

    peer: Peer
    process: Process
    directory: Path
    port: int
    chats: tuple[str, ...]
    tls: bool


class _Progress:
    """One line a run, with the time that is left."""

    def __init__(self, report: Callable[[str], None], runs: int) -> None:
        self._report = report
        self._runs = runs
        self._done = 0
        self._start = time.monotonic()

    def step(self, text: str) -> None:
        """A run, or a warm-up, is done."""
        self._done += 1
        left = (time.monotonic() - self._start) / self._done * (self._runs - self._done)
        self._report(f"[{self._done}/{self._runs}, {left / 60:.0f} min left]  {text}")


def measure(plan: Plan, report: Callable[[str], None]) -> tuple[list[Run], list[str]]:
    """Carry out the plan; every process it started has ended when it returns or raises.

    Returns the runs, those with failed calls too, for the caller to judge; and a line for each peer that did not start,
    died or stuck, and so has no runs from there on. BenchError if backends do not start, or die.
    """
    turns = sum(len(_taking_part(plan.peers, scenario)) for scenario in plan.scenarios)
    progress = _Progress(report, turns * (plan.rounds + 1))
    runs: list[Run] = []
    problems: list[str] = []
    for arrangement in dict.fromkeys(scenario.arrangement for scenario in plan.scenarios):
        scenarios = [scenario for scenario in plan.scenarios if scenario.arrangement == arrangement]
        peers = [peer for peer in plan.peers if any(_taking_part([peer], scenario) for scenario in scenarios)]
        with _arranged(plan, arrangement, peers, problems) as (subjects, servers):
            bench = _Bench(plan, subjects, servers, progress, runs, problems)
            bench.measure([scenario for scenario in scenarios if not scenario.at_rate], rate=0.0)
            for scenario in scenarios:
                if scenario.at_rate:
                    bench.measure([scenario], rate=plan.rate or half_of_the_slowest(runs, plan.peers))
    return runs, problems


def _taking_part(peers: Sequence[Peer], scenario: Scenario) -> list[Peer]:
    return [
        peer
        for peer in peers
        if (peer.scenarios is None or scenario.name in peer.scenarios)
        and (peer.tls or scenario.arrangement != "tls")
        and (peer.routes or not scenario.at_rate)
    ]


def half_of_the_slowest(runs: Sequence[Run], peers: Sequence[Peer]) -> float:
    """Half the calls per second that the slowest peer did, of those that take part in everything.

    BenchError without such runs.
    """
    rates: dict[str, list[float]] = {}
    names = {peer.name for peer in peers if peer.routes and peer.scenarios is None}
    for run in runs:
        if run.scenario == SATURATION and run.peer in names:
            rates.setdefault(run.peer, []).append(run.calls_per_second)
    if not rates:
        what = f"half of what the slowest did as {SATURATION}"
        raise BenchError(f"the rate for latencies is {what}: measure that too, or give --rate")
    return min(map(median, rates.values())) / 2


@contextlib.contextmanager
def _arranged(
    plan: Plan, arrangement: Arrangement, peers: Sequence[Peer], problems: list[str]
) -> Iterator[tuple[list[_Subject], backends.Backends]]:
    """All peers of an arrangement and their backends, up and asked for their chats."""
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary, contextlib.ExitStack() as stack:
        directory = Path(temporary)
        if arrangement == "tokens":
            servers = stack.enter_context(backends.running_tokens(directory, plan.cores.rest))
        else:
            servers = stack.enter_context(backends.running(plan.nghttpd, directory, plan.cores.rest))
        certificate = Certificate.make(directory) if arrangement == "tls" else None
        subjects = []
        for number, peer in enumerate(peers):
            try:
                subjects.append(_start(stack, plan, peer, servers, directory / str(number), certificate))
            except BenchError as error:
                problems.append(f"{peer.name} ({arrangement}): {error}")
        yield subjects, servers


def _start(
    stack: contextlib.ExitStack,
    plan: Plan,
    peer: Peer,
    servers: backends.Backends,
    directory: Path,
    certificate: Certificate | None,
) -> _Subject:
    directory.mkdir()
    setup = Setup(directory, free_port(), servers.addresses, backends.METHODS, tls=certificate)
    process = stack.enter_context(Process(peer.name, peer.command(setup), plan.cores.proxy, directory / "log"))
    process.wait_ready(setup.port, peer.ready, _READY_WITHIN)
    method = next(iter(servers.reply_sizes))
    try:
        root = certificate.certificate.read_bytes() if certificate else None
        if peer.routes:
            stream = method == backends.TOKENS_METHOD
            chats = chats_by_server(setup.port, method, servers.ids, peer.routing_header, root, stream=stream)
        else:
            chats = dict.fromkeys(servers.ids, "chat-000")
            chats |= {server_id: f"chat-{number:03}" for number, server_id in enumerate(servers.ids)}
    except BenchError as error:
        raise BenchError(f"{peer.name}: {error}") from error
    return _Subject(peer, process, directory, setup.port, tuple(chats.values()), certificate is not None)


class _Bench:
    """The rounds of one arrangement; appends to `runs`."""

    def __init__(
        self,
        plan: Plan,
        subjects: Sequence[_Subject],
        servers: backends.Backends,
        progress: _Progress,
        runs: list[Run],
        problems: list[str],
    ) -> None:
        self._plan = plan
        self._subjects = list(subjects)
        self._servers = servers
        self._progress = progress
        self._runs = runs
        self._problems = problems

    def measure(self, scenarios: Sequence[Scenario], rate: float) -> None:
        """Warm up, then all rounds. `rate`: calls per second of scenarios at a rate."""
        plan = self._plan
        turns = [
            (scenario, subject)
            for scenario in scenarios
            for subject in self._subjects
            if _taking_part([subject.peer], scenario)
        ]
        for scenario, subject in turns:
            self._try(subject, scenario, 0, _WARM_UP, rate)
            self._progress.step(f"warm-up    {scenario.name:10} {subject.peer.name}")
        for number in range(1, plan.rounds + 1):
            for scenario, subject in turns:
                run = self._try(subject, scenario, number, 1.0, rate)
                if run is None:
                    self._progress.step(f"round {number}/{plan.rounds}  {scenario.name:10} {subject.peer.name:12} gone")
                    continue
                self._runs.append(run)
                failures = f"  {run.failed} of {run.calls} calls FAILED" if run.failed else ""
                self._progress.step(
                    f"round {number}/{plan.rounds}  {scenario.name:10} {run.peer:12} {run.cpu_us:7.1f}"
                    f" us/{scenario.unit} {run.calls_per_second:8.0f} calls/s{failures}"
                )
            for process in self._servers.processes:
                process.check_alive()

    def _try(self, subject: _Subject, scenario: Scenario, number: int, share: float, rate: float) -> Run | None:
        """A run; None, and no further ones, of a peer that died or stuck."""
        if subject not in self._subjects:
            return None
        try:
            return self._run(subject, scenario, number, share, rate)
        except BenchError as error:
            self._subjects.remove(subject)
            self._problems.append(f"{subject.peer.name} ({scenario.name}): {error}")
            return None

    def _run(self, subject: _Subject, scenario: Scenario, number: int, share: float, rate: float) -> Run:
        wanted = self._plan.calls or (rate * _RATE_SECONDS if rate else subject.peer.calls * scenario.calls)
        process = subject.process
        process.check_alive()
        before = cpu_ns(process.pid)
        result = self._load(subject, scenario, max(1, round(wanted * share)), rate)
        process.check_alive()
        used = cpu_ns(process.pid) - before
        return Run(
            peer=subject.peer.name,
            scenario=scenario.name,
            round=number,
            calls=result.calls,
            failed=result.failed,
            seconds=result.seconds,
            cpu_seconds=used / 1e9,
            units=result.calls * scenario.per_call,
            memory_mib=memory_mib(process.pid),
            latencies=result.latencies if scenario.at_rate else None,
        )

    def _load(self, subject: _Subject, scenario: Scenario, count: int, rate: float) -> LoadResult:
        plan = self._plan
        reply_size = self._servers.reply_sizes[scenario.method]
        if not scenario.own_chats:
            load = h2load.Load(
                h2load=plan.h2load,
                directory=subject.directory,
                cpus=plan.cores.rest,
                port=subject.port,
                chats=subject.chats,
                routing_header=subject.peer.routing_header,
                tls=subject.tls,
            )
            orders = h2load.Orders(
                scenario.shape, scenario.method, reply_size, scenario.request_size, scenario.metadata
            )
            return load.run(orders, count)
        own = calls.Orders(
            port=subject.port,
            method=scenario.method,
            shape=str(scenario.shape),
            calls=count,
            chats=scenario.own_chats,
            reply_size=reply_size,
            rate=rate,
            timeouts=scenario.timeouts,
            routing_header=subject.peer.routing_header or "",
        )
        return calls.run(own, plan.cores.rest, subject.directory / "calls.log", h2load.RUN_TIMEOUT)
