"""An hour of trouble: `python -m tests.fault.chaos --seconds 3600 --seed 7`.

Ledger servers, a proxy, and grpcio clients with unary and streaming calls, while servers are killed, stopped,
restarted, drained by the operator, cut off and have their connections cut, by a schedule that follows from the seed. At
the end the ledger must show:

1. Each call has exactly one final status, and none was stuck.
2. A call that went well was executed exactly once, and none was executed twice.
3. A chat's calls ran at its owner, unless the owner was absent, and then at the next server on the ring that was not.
   A server is absent while there is trouble with it. One that the proxy took for sick without that (its log says so)
   was too slow for its health checks, as on a machine that has other work; it may explain one call in a thousand.
4. A call failed only if something worse than a drain happened to a server at that time, and never if it has an
   idempotency key.
5. Every server gets its chats back.
6. Nothing is left: no call at the servers, no descriptor of the proxy; and the proxy reports no bug of its own.

As root on Linux it runs in network namespaces of its own, which partitions and cut connections need.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from tests.support import processes
from tests.support.fault import EVERY_KIND, GENEROUS, SOON, came_home, config, failed
from tests.support.ledger_cluster import IDS, LedgerCluster, own_address
from tests.support.ledger_load import Absence, Load, history, outcome, violations
from tests.support.netns import Network, missing
from tests.support.polling import eventually, settled
from tests.support.proxy_process import ProxyProcess, Table, proxy_process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.ledger_load import Record

CHATS = [f"chat-{number}" for number in range(101)]
DRIVERS = 2
"""Troubles at the same time, each at another server: one server is always well."""
HEALTH: Table = {
    "kind": "grpc_watch",
    "interval": 0.4,
    "unhealthy_interval": 0.2,
    "timeout": 0.4,
    "unhealthy_threshold": 2,
    "healthy_threshold": 1,
}
OUTLIER: Table = {"base_ejection_time": 0.5, "max_ejection_time": 1.0, "quarantine_time": 0.0}
"""No quarantine: two troubles at the same time look like a poisonous chat to it."""
SLACK = 2.0
"""Seconds after a server's return, longer than an ejection, in which its absence still explains."""
SAID = re.compile(
    r"^(\S+ \S+) \w+ \S+: (\S+)(?: \(\S+\))? (is unhealthy|is down|is healthy again|is reachable again)", re.MULTILINE
)
FALSE_ALARMS = 1 / 1000
"""Share of the calls that may have gone elsewhere although nothing was done to their server."""
SPARE_DESCRIPTORS = 3
"""More than at the start that the proxy may have at the end: sockets of its health checks come and go."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """One step of the schedule."""

    pause: float
    """Seconds of peace before it."""
    action: str
    server: str
    hold: float
    """Seconds that it lasts."""


def schedule(seed: int, driver: int, *, with_network: bool) -> Iterator[Trouble]:
    """Trouble without end, the same for the same seed."""
    chance = random.Random(f"{seed} {driver}")
    actions = ["kill", "kill", "stop", "restart", "restart", "drain", "client"]
    if with_network:
        actions += ["partition", "cut", "cut"]
    while True:
        yield Trouble(chance.uniform(0.2, 2.0), chance.choice(actions), chance.choice(IDS), chance.uniform(0.1, 3.0))


@dataclass(slots=True)
class Chaos:
    """One run."""

    seed: int
    cluster: LedgerCluster
    net: Network | None
    proxy: ProxyProcess
    load: Load
    began: float = field(default_factory=time.monotonic)
    log: list[str] = field(default_factory=list)
    """What was done, and when."""
    absences: list[Absence] = field(default_factory=list)
    busy: dict[str, asyncio.Lock] = field(default_factory=lambda: {server_id: asyncio.Lock() for server_id in IDS})
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, what: str) -> None:
        """Write down what happens now."""
        self.log.append(f"{time.monotonic():.4f} {what}")

    async def rest(self, seconds: float) -> None:
        """Wait, unless the run is over before."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.over.wait()

    async def drive(self, driver: int) -> None:
        """Make trouble until the run is over."""
        for trouble in schedule(self.seed, driver, with_network=self.net is not None):
            await self.rest(trouble.pause)
            if self.over.is_set():
                return
            if trouble.action == "client":
                self.note("client connection closed")
                await self.load.cut(int(trouble.hold * 1000))
                continue
            async with self.busy[trouble.server]:
                await self.make(trouble)

    async def make(self, trouble: Trouble) -> None:
        """One step, until its server has its chats back."""
        server = self.cluster[trouble.server]
        begin = time.monotonic()
        self.note(f"{trouble.action} {server.id} for {trouble.hold:.1f} s")
        if trouble.action == "kill":
            await server.kill()
            await self.rest(trouble.hold)
            await server.start()
        elif trouble.action == "stop":
            server.signal(signal.SIGSTOP)
            await self.rest(trouble.hold)
            server.signal(signal.SIGCONT)
        elif trouble.action == "restart":
            await server.restart()
        elif trouble.action == "drain":
            await self.operator(server.id, "drain")
            await self.rest(trouble.hold)
            await self.operator(server.id, "undrain")
        elif self.net is not None and trouble.action == "cut":
            self.net.near.kill_connections(self.net.links[server.id].address)
        elif self.net is not None:
            self.net.links[server.id].cut()
            await self.rest(trouble.hold)
            self.net.links[server.id].mend()
        self.note(f"{server.id} is well")
        await came_home(self.load, self.proxy.owner, server.id)
        self.note(f"{server.id} has its chats back")
        self.absences.append(Absence(server.id, trouble.action, begin, time.monotonic() + SLACK))

    async def operator(self, server_id: str, verb: str) -> None:
        """Ask the proxy's admin server to drain the server, or to undrain it."""
        url = f"{await self.proxy.admin_url()}/api/endpoints/{server_id}/{verb}"
        body = {"force": True} if verb == "drain" else {}
        async with aiohttp.ClientSession() as session, session.post(url, json=body) as response:
            assert response.status == HTTPStatus.OK, await response.text()

    def descriptors(self) -> int:
        """Open files of the proxy."""
        return len(processes.descriptors(self.proxy.pid))

    def unexplained(self, records: list[Record]) -> list[Record]:
        """Failures at a time at which nothing happened, or of calls that are always saved."""
        return [
            record
            for record in failed(records)
            if not record.abandoned
            and (
                record.kind == "keyed"
                or not any(each.explains(record) for each in self.absences if each.why != "drain")
            )
        ]


def said_by(log: str) -> list[Absence]:
    """The times during which the proxy took a server for sick, by its own log."""
    ahead = datetime.now().astimezone().timestamp() - time.monotonic()
    begun: dict[str, float] = {}
    absences = []
    for when, server, what in SAID.findall(log):
        at = datetime.strptime(when, "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp() - ahead
        if what in ("is unhealthy", "is down"):
            begun.setdefault(server, at)
        elif server in begun:
            absences.append(Absence(server, what, begun.pop(server), at))
    return absences


async def chaos(directory: Path, seconds: float, seed: int, rate: float, net: Network | None) -> list[str]:
    """Run it. Returns what is wrong, which should be nothing."""
    async with AsyncExitStack() as stack:
        cluster = LedgerCluster(directory)
        stack.push_async_callback(cluster.close)
        for server_id in IDS:
            if net is None:
                cluster.add(server_id, own_address())
            else:
                address = f"{net.links[server_id].address}:50051"
                cluster.add(server_id, address, launcher=net.far[server_id].launcher)
        await cluster.start()
        admin: Table = {"address": "127.0.0.1:0"}
        text = config(cluster.addresses(), upstream=SOON, retry=GENEROUS, health=HEALTH, outlier=OUTLIER, admin=admin)
        proxy = await stack.enter_async_context(proxy_process(directory, text))
        load = await stack.enter_async_context(
            Load(proxy.address, CHATS, kinds=EVERY_KIND, workers=16, channels=4, rate=rate, delay_ms=3)
        )
        return await _run(Chaos(seed, cluster, net, proxy, load), seconds)


async def _run(run: Chaos, seconds: float) -> list[str]:
    load = run.load
    await load.made(100)
    with_load = await settled(run.descriptors, "the proxy's descriptors")
    async with asyncio.TaskGroup() as group:
        for driver in range(DRIVERS):
            group.create_task(run.drive(driver), name=f"driver {driver}")
        await run.rest(seconds)
        run.over.set()
    await load.made(100)
    records = await load.stop()
    wrong: list[str] = []
    wanted = with_load - load.channels + SPARE_DESCRIPTORS
    with suppress(AssertionError):
        await eventually(lambda: run.descriptors() <= wanted, "the proxy's descriptors being closed")
    if run.descriptors() > wanted:
        wrong.append(f"the proxy has {run.descriptors()} open files, where {wanted} were enough")
    alive = {server.pid for server in run.cluster.servers.values()}
    with suppress(AssertionError):
        await eventually(lambda: not _left(run, alive), "the end of all calls at the servers")
    ledger = run.cluster.ledger()
    wrong += [
        f"left at {entry.server}: {entry.call} {entry.method}" for entry in ledger.unfinished() if entry.pid in alive
    ]
    misplaced = violations(records, ledger, run.proxy.walk, run.absences)
    found = violations(records, ledger, run.proxy.walk, [*run.absences, *said_by(run.proxy.log())])
    false_alarms = len(misplaced) - len(found)
    wrong += misplaced if false_alarms > FALSE_ALARMS * len(records) else found
    wrong += [
        f"{record.kind} {record.call} failed, and should not have\n{history(record, ledger)}"
        for record in run.unexplained(records)
    ]
    longest = max(record.ended - record.started for record in records)
    print(f"{len(records)} calls, the longest took {longest:.2f} s; {len(run.absences)} troubles")
    print(f"  {false_alarms:7d} went elsewhere by a false alarm of the health checks")
    for what, count in sorted(outcome(records).items()):
        print(f"  {count:7d} {what}")
    for why, count in Counter(record.details for record in failed(records)).most_common(10):
        print(f"  {count:7d} x {why}")
    print(f"  {sum(record.abandoned for record in records):7d} of them while their client's connection was closed")
    if wrong:
        print(f"seed {run.seed}; schedule:", *run.log, sep="\n  ")
    return wrong


def _left(run: Chaos, alive: set[int]) -> bool:
    return any(entry.pid in alive for entry in run.cluster.ledger().unfinished())


def main() -> int:
    """The command. Exit status 1: something is wrong, and stdout says what."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(2), "big"))
    parser.add_argument("--rate", type=float, default=150.0, help="calls per second at most")
    parser.add_argument(
        "--no-network", action="store_true", help="no namespaces: neither partitions nor cut connections"
    )
    options = parser.parse_args()
    why_not = "not wanted" if options.no_network else missing()
    print(f"seed {options.seed}, {options.seconds:g} s", f"no partitions: {why_not}" if why_not else "", flush=True)
    net = None
    if not why_not:
        net = Network(*IDS, tun=False)
        net.near.enter()  # before there is any other thread, and so any client's connection
    try:
        with tempfile.TemporaryDirectory(prefix="chaos") as directory:
            wrong = asyncio.run(chaos(Path(directory), options.seconds, options.seed, options.rate, net))
    finally:
        if net is not None:
            net.close()
    for each in itertools.islice(wrong, 30):
        print(each)
    print(f"{len(wrong)} violations" if wrong else "no violations")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
