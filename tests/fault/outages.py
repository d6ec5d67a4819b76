"""One of three servers killed, or hung, again and again under load: `python -m tests.fault.outages kill --times 6`.

kill  SIGKILL. Only calls that were in flight at that server may fail, and only of a kind that may not run twice; the
      first call to one of its chats must succeed elsewhere at once. How long it took is measured by a client that is
      connected already, from the moment the process was gone.
hang  SIGSTOP. No repeatable call may fail; the hang is found out within the configured time; after SIGCONT the chats
      come home.

The ledger of the servers shows that nothing ran twice. Exit status 1: any of this did not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import grpc.aio

from tests.support.fault import CHATS, GENEROUS, came_home, config, failed
from tests.support.grpc_server import channel
from tests.support.ledger import METHODS, ROUTES, Request
from tests.support.ledger_cluster import LedgerCluster, LedgerServer, ledger_cluster
from tests.support.ledger_load import DEADLINE, Absence, Load, Record, violations
from tests.support.polling import eventually
from tests.support.proxy_process import ProxyProcess, Table, proxy_process

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

HEALTH: Table = {
    "kind": "grpc_watch",
    "interval": 0.5,
    "unhealthy_interval": 0.2,
    "timeout": 0.5,
    "unhealthy_threshold": 2,
    "healthy_threshold": 1,
}
IMPATIENT = (f"{ROUTES[0]}\nper_try_timeout = 1.0", *ROUTES[1:])
"""Calls that may be repeated are, elsewhere, when a server does not begin to answer."""
DETECTED = 2 * (0.5 + 0.5)
"""Seconds in which a hang is found out by these settings: `unhealthy_threshold` x (`interval` + `timeout`)."""
SLACK = 2.0
"""Seconds after a server's return in which its absence still explains where a call went."""


@dataclass
class Outages:
    """What is done, and what came of it."""

    how: str
    cluster: LedgerCluster
    proxy: ProxyProcess
    load: Load
    client: grpc.aio.Channel
    absences: list[Absence] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    """Seconds from each kill to the answer of the first call; or from each hang to its being found out."""
    home: list[float] = field(default_factory=list)
    """Seconds from each return until the chats were home."""
    wrong: list[str] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)

    async def once(self, server: LedgerServer, turn: int) -> None:
        """One outage."""
        await self.load.made(50)
        begin = time.monotonic()
        back = await (self._kill(server, turn) if self.how == "kill" else self._hang(server, turn))
        gone_until = time.monotonic()
        await back()
        await came_home(self.load, self.proxy.owner, server.id)
        self.home.append(time.monotonic() - gone_until)
        self.absences.append(Absence(server.id, self.how, begin, time.monotonic() + SLACK))

    async def _kill(self, server: LedgerServer, turn: int) -> Callable[[], Awaitable[None]]:
        await server.kill()
        began = time.monotonic()
        await self._is_elsewhere(server, turn)
        self.took.append(time.monotonic() - began)
        await self.load.made(100)
        return server.start

    async def _is_elsewhere(self, server: LedgerServer, turn: int) -> None:
        """A call for one of its chats is served by the next on the ring. It is one that may be repeated: just after a
        kill it may still be sent to where nobody is, before the kernel has told of that.
        """
        chat = self.proxy.key_of(server.id, f"first-{turn}")
        request = Request(chat, f"first-call-{turn}").encode()
        answer = await self.client.unary_unary(METHODS["keyed"])(request, timeout=DEADLINE)
        if answer.decode() != self.proxy.walk(chat)[1]:
            self.wrong.append(f"the first call to {chat} was served by {answer.decode()}")

    async def _hang(self, server: LedgerServer, turn: int) -> Callable[[], Awaitable[None]]:
        known = self.proxy.log().count("is unhealthy")
        server.signal(signal.SIGSTOP)
        began = time.monotonic()
        await eventually(lambda: self.proxy.log().count("is unhealthy") > known, "the hang's being found out")
        self.took.append(time.monotonic() - began)
        # Not so many calls of the load: its workers wait for what the server has, and may not have again.
        await self._is_elsewhere(server, turn)

        async def go_on() -> None:
            server.signal(signal.SIGCONT)

        return go_on

    def judge(self) -> None:
        """Look at what the clients and the ledger have."""
        self.wrong += violations(self.records, self.cluster.ledger(), self.proxy.walk, self.absences)
        for record in failed(self.records):
            reason = f"{record.kind} {record.call} failed: {record.details}"
            if record.kind == "keyed":
                self.wrong.append(f"{reason}: such a call is always saved")
            elif not any(each.begin <= record.ended and record.started <= each.end for each in self.absences):
                self.wrong.append(f"{reason}: nothing had happened")

    def __str__(self) -> str:
        of = Counter(record.kind for record in self.records)
        lost = Counter(record.kind for record in failed(self.records))
        what = "first call" if self.how == "kill" else "found out"
        promised = "" if self.how == "kill" else f" (promised {DETECTED:g} s)"
        return "\n".join(
            [
                f"{self.how}s       {len(self.took)}",
                *(f"{kind:<11} {count} calls, {lost[kind]} failed" for kind, count in sorted(of.items())),
                f"{what}  {_spread(self.took)}{promised}",
                f"home        {_spread(self.home)} after the return",
                *self.wrong[:20],
                f"{len(self.wrong)} violations" if self.wrong else "no violations",
            ]
        )


def _spread(seconds: list[float]) -> str:
    """Least, median and most."""
    return " / ".join(f"{each * 1000:.1f} ms" for each in (min(seconds), median(seconds), max(seconds)))


async def outages(directory: Path, how: str, times: int, *, rate: float | None = None) -> Outages:
    """Have them under `rate` calls per second at most, of all kinds of unary call."""
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(ledger_cluster(directory))
        text = config(cluster.addresses(), routes=IMPATIENT, health=HEALTH, retry=GENEROUS)
        proxy = await stack.enter_async_context(proxy_process(directory, text))
        client = await stack.enter_async_context(channel(proxy.address))
        await client.channel_ready()
        load = await stack.enter_async_context(Load(proxy.address, CHATS, workers=32, rate=rate))
        run = Outages(how, cluster, proxy, load, client)
        servers = list(cluster.servers.values())
        for turn in range(times):
            await run.once(servers[turn % len(servers)], turn)
        run.records = await load.stop()
        run.judge()
        return run


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("how", choices=["kill", "hang"])
    parser.add_argument("--times", type=int, default=9)
    parser.add_argument("--rate", type=float, default=1000.0, help="calls per second at most")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="outages") as directory:
        run = asyncio.run(outages(Path(directory), options.how, options.times, rate=options.rate))
    print(run)
    return 1 if run.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
