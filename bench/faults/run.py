"""One peer through one scenario, with processes of its own, and all of them in turn."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import grpc.aio
from districhat import chat_pb2

from bench.errors import BenchError
from bench.faults import ledger
from bench.faults.analysis import Numbers, analyse, longest_run
from bench.faults.backend import APPEND, APPEND_ONCE, WORK
from bench.faults.load import Load
from bench.faults.outcome import OK
from bench.faults.scenarios import SETTLE, Fault, Scenario
from bench.faults.servers import Servers
from bench.peers.base import Peer, Resilience, Setup
from bench.process import Process, free_port

if TYPE_CHECKING:
    from collections.abc import Callable

METHODS = "/bench.Ledger/*"
WARM_UP = 3.0
"""Seconds of load before anything counts: connections are made, checks have had their first round."""
BEFORE = 4.0
_HEALTHY = 0.8
"""Share of the rate that must be answered while nothing is wrong; else the run would say nothing about faults."""
STANDSTILL = 0.5
"""Seconds for which a client or a well server may have had no CPU: a run in which it was longer is repeated."""
TRIES = 3
_READY_WITHIN = 20.0
_RUN_WITHIN = 180.0
"""Seconds a run may take beyond what its faults are meant to last."""


@dataclass(frozen=True)
class Plan:
    """What to compare."""

    peers: tuple[Peer, ...]
    scenarios: tuple[Scenario, ...]
    away: float
    """Seconds that a killed or stopped server stays away."""
    rate: int
    """Unary calls per second."""
    streams: int
    chats: int


@dataclass(frozen=True)
class Run:
    """The result of one peer and scenario."""

    peer: str
    scenario: str
    seconds: float
    """Of load that counts."""
    away: tuple[float, ...]
    """How long each fault lasted, from the signal until the server served again."""
    standstill: float
    """Seconds for which a client or a well server had no CPU at most: not the proxy's doing, but it looks like it."""
    numbers: Numbers
    failures: tuple[str, ...]
    """Some failed calls, as their clients saw them."""


def compare(plan: Plan, progress: Callable[[str], None]) -> tuple[list[Run], list[str]]:
    """All scenarios, in each all peers; and why some have no result, each in a line: they do not stop the others.

    Every process it started has ended when it returns or raises.
    """
    runs: list[Run] = []
    problems: list[str] = []
    for scenario in plan.scenarios:
        for peer in plan.peers:
            try:
                runs.append(_undisturbed(plan, scenario, peer, progress))
            except BenchError as error:
                problems.append(f"{scenario.name}: {error}")
                progress(f"{scenario.name:8} {peer.name:12} NO RESULT: {error}")
            else:
                progress(f"{scenario.name:8} {peer.name:12} {summary(runs[-1].numbers)}")
    return runs, problems


def _undisturbed(plan: Plan, scenario: Scenario, peer: Peer, progress: Callable[[str], None]) -> Run:
    """The first run in which the machine did not stand still; else the least disturbed of `TRIES`."""
    tries: list[Run] = []
    while len(tries) < TRIES:
        tries.append(asyncio.run(_bounded(plan, scenario, peer)))
        if tries[-1].standstill <= STANDSTILL:
            break
        progress(f"{scenario.name:8} {peer.name:12} disturbed: no CPU for {tries[-1].standstill:.1f} s")
    return min(tries, key=lambda run: run.standstill)


def summary(numbers: Numbers) -> str:
    """The most important numbers in a line."""
    kinds = numbers.kinds.values()
    return (
        f"{sum(kind.calls for kind in kinds)} calls, {sum(kind.failed for kind in kinds)} failed,"
        f" {sum(numbers.kinds[kind].ran_twice for kind in ('plain', 'stream'))} ran twice,"
        f" {numbers.chats.moved_needlessly} chats moved needlessly, {numbers.rates.before:.0f} calls/s before,"
        f" {numbers.rates.after:.0f} after"
    )


async def _bounded(plan: Plan, scenario: Scenario, peer: Peer) -> Run:
    try:
        async with asyncio.timeout(plan.away + _RUN_WITHIN):
            return await _run(plan, scenario, peer)
    except TimeoutError:
        raise BenchError(f"{scenario.name} with {peer.name} did not end") from None


async def _run(plan: Plan, scenario: Scenario, peer: Peer) -> Run:
    with tempfile.TemporaryDirectory(prefix="bench-faults-") as temporary:
        directory = Path(temporary)
        file = directory / "ledger"
        async with Servers(directory, file) as servers:
            own = directory / "proxy"
            own.mkdir()
            setup = Setup(own, free_port(), servers.addresses, METHODS, Resilience(repeatable=APPEND_ONCE))
            cpus = frozenset(os.sched_getaffinity(0))
            with Process(peer.name, peer.command(setup), cpus, directory / "proxy.log") as proxy:
                await asyncio.to_thread(proxy.wait_ready, setup.port, peer.ready, _READY_WITHIN)
                await _answers(peer, setup.port)
                load, faults, span = await _under_load(plan, scenario, servers, setup.port)
                proxy.check_alive()
        with file.open(encoding="ascii") as lines:
            executions = ledger.read(lines)
    outcomes = [outcome for outcome in load.outcomes if outcome.started >= span[0]]
    numbers = analyse(outcomes, executions, faults, span, load.skipped)
    if numbers.rates.before < _HEALTHY * plan.rate:
        raise BenchError(
            f"{peer.name} answered {numbers.rates.before:.0f} calls/s of {plan.rate} before anything failed: the"
            f" machine is too slow (try a lower --rate), or the proxy is not set up right: {_examples(load)}"
        )
    return Run(
        peer=peer.name,
        scenario=scenario.name,
        seconds=span[1] - span[0],
        away=tuple(fault.back - fault.began for fault in faults),
        standstill=max(load.standstill, longest_run(executions, faults, span[0]) - WORK),
        numbers=numbers,
        failures=_examples(load),
    )


async def _under_load(
    plan: Plan, scenario: Scenario, servers: Servers, port: int
) -> tuple[Load, list[Fault], tuple[float, float]]:
    chats = tuple(f"chat-{number:04}" for number in range(plan.chats))
    async with Load(port, plan.rate, plan.streams, chats) as load:
        await asyncio.sleep(WARM_UP)
        began = time.monotonic()
        await asyncio.sleep(BEFORE)
        faults = await scenario.inflict(servers, plan.away)
        await asyncio.sleep(SETTLE)
        ended = time.monotonic()
    return load, faults, (began, ended)


async def _answers(peer: Peer, port: int) -> None:
    """Return once a call through the proxy has been answered: its health checks may first have to find the servers."""
    deadline = time.monotonic() + _READY_WITHIN
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[chat_pb2.ChatRequest, bytes] = channel.unary_unary(
            APPEND, chat_pb2.ChatRequest.SerializeToString
        )
        request = chat_pb2.ChatRequest(chat_id="probe", message_id="probe")
        while True:
            try:
                await call(request, timeout=2.0, wait_for_ready=True, metadata=(("x-chat-id", "probe"),))
            except grpc.aio.AioRpcError as error:
                if time.monotonic() > deadline:
                    raise BenchError(f"{peer.name} passes no call on: {error.code()}: {error.details()}") from error
                await asyncio.sleep(0.2)
            else:
                return


def _examples(load: Load) -> tuple[str, ...]:
    """One failed call of each kind, status and text, a dozen at most."""
    found = dict.fromkeys(
        f"{outcome.kind}: {outcome.status}: {outcome.details[:200]}"
        for outcome in load.outcomes
        if outcome.status != OK
    )
    return tuple(found)[:12]
