"""A rolling restart of every server under load, over and over: `python -m tests.fault.rolling --calls 100000`.

Each server in turn gets SIGTERM, says NOT_SERVING, finishes what it has, ends and is started again. No call may fail,
and none may run twice.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.support.fault import CHATS, GENEROUS, came_home, config, failed
from tests.support.ledger_cluster import ledger_cluster
from tests.support.ledger_load import Absence, Load, violations
from tests.support.proxy_process import Table, proxy_process

HEALTH: Table = {"kind": "grpc_watch", "interval": 0.5, "unhealthy_interval": 0.2, "healthy_threshold": 1}


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it."""

    calls: int
    restarts: int
    seconds: float
    failures: Counter[str]
    duplicates: int
    violations: list[str]

    def __str__(self) -> str:
        lines = [
            f"calls       {self.calls}",
            f"failed      {self.failures.total()}",
            f"duplicates  {self.duplicates}",
            f"restarts    {self.restarts}",
            f"time        {self.seconds:.1f} s ({self.calls / self.seconds:.0f} calls/s)",
            *(f"  {count} x {why}" for why, count in self.failures.most_common(20)),
            *self.violations[:20],
        ]
        return "\n".join(lines)


async def rolling(directory: Path, calls: int, *, least_restarts: int = 3, workers: int = 16) -> Result:
    """Restart the servers one by one until that many unary calls are done, and each server was restarted."""
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(ledger_cluster(directory))
        text = config(cluster.addresses(), health=HEALTH, retry=GENEROUS)
        proxy = await stack.enter_async_context(proxy_process(directory, text))
        load = await stack.enter_async_context(Load(proxy.address, CHATS, workers=workers))
        began = time.monotonic()
        restarts = 0
        absences = []
        while len(load.records) < calls or restarts < least_restarts:
            server = list(cluster.servers.values())[restarts % len(cluster.servers)]
            begin = time.monotonic()
            await load.made(100)
            await server.restart()
            await came_home(load, proxy.owner, server.id)
            absences.append(Absence(server.id, "restart", begin, time.monotonic() + 1.0))
            restarts += 1
        records = await load.stop()
        seconds = time.monotonic() - began
        ledger = cluster.ledger()
        return Result(
            len(records),
            restarts,
            seconds,
            Counter(f"{record.kind}: {record.details}" for record in failed(records)),
            sum(len(ledger.executions(record.call, record.kind)) > 1 for record in records),
            violations(records, ledger, proxy.walk, absences),
        )


def main() -> int:
    """The command. Exit status 1: a call failed or ran twice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rolling") as directory:
        result = asyncio.run(rolling(Path(directory), options.calls, workers=options.workers))
    print(result)
    return 1 if result.failures or result.violations else 0


if __name__ == "__main__":
    sys.exit(main())
