"""How many messages a store makes safe per second: `python -m bench.micro.store` (`make bench-store`).

Everything on one core: the event loop that appends, and the store's writer. Each of so many writers appends to a chat
of its own, one message after another, and goes on when the message is safe. `full` syncs the disk on every commit; with
group commit many messages share one, and beside it stands what a sync for each message gives. What a sync costs differs
by a factor of a hundred between disks, so it is measured first, and said.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Literal

from backend.session import NEW, Message, Version
from backend.store.base import Appended
from backend.store.redis import RedisStore
from backend.store.sqlite import SqliteStore
from backend.store.url import RedisAddress
from bench.machine import cpu_model, revision
from bench.process import free_port
from bench.report import aligned

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from backend.store.base import SessionStore

GOAL = 10_000
"""Appends per second of SQLite with group commit and a sync per commit, at the best concurrency."""
_TEXT = "A message of ordinary length, as a person would type it into a chat. " + "x" * 32
_SYNCS = 200
_READY_TRIES = 500


@dataclass(frozen=True)
class Setup:
    """One row."""

    name: str
    writers: int
    messages: int
    synchronous: Literal["normal", "full"] | None = None
    """None: Redis."""
    group_commit: int = 512
    goal: bool = False


SETUPS = (
    Setup("SQLite full, a sync per message", 256, 3_000, "full", group_commit=1),
    Setup("SQLite full, group commit", 1, 1_000, "full"),
    Setup("SQLite full, group commit", 16, 10_000, "full"),
    Setup("SQLite full, group commit", 256, 30_000, "full", goal=True),
    Setup("SQLite normal, group commit", 256, 30_000, "normal"),
    Setup("Redis, appendfsync always", 1, 1_000),
    Setup("Redis, appendfsync always", 256, 20_000),
)


@dataclass(frozen=True)
class Result:
    """Of one setup, medians of its rounds."""

    name: str
    writers: int
    per_second: float
    cpu_us: float
    """CPU time of the process per message, in microseconds (of Redis: without Redis's own)."""
    slowest: float
    """Messages per second in the worst round."""


async def appended_per_second(store: SessionStore, setup: Setup, round_: int) -> tuple[float, float]:
    """Messages per second, and CPU seconds per message."""
    each = setup.messages // setup.writers

    async def write(chat: str) -> None:
        version = NEW
        for number in range(each):
            result = await store.append(chat, Message(_TEXT, "ann", 0, f"{chat}-{number}"), expected=version)
            if not isinstance(result, Appended):
                raise TypeError(f"{chat}: {result}")
            version = Version(result.epoch, result.position)

    wall, cpu = perf_counter(), process_time()
    await asyncio.gather(*(write(f"chat-{round_}-{number}") for number in range(setup.writers)))
    count = each * setup.writers
    return count / (perf_counter() - wall), (process_time() - cpu) / count


def sync_time(directory: Path) -> float:
    """Seconds of one fdatasync after a page was written: the median of many."""
    times = []
    with (directory / "sync").open("wb", buffering=0) as file:
        for _ in range(_SYNCS):
            file.write(b"x" * 4096)
            start = perf_counter()
            os.fdatasync(file.fileno())
            times.append(perf_counter() - start)
    return statistics.median(times)


@asynccontextmanager
async def redis_on_the_other_cores(directory: Path, cores: Sequence[int]) -> AsyncIterator[RedisAddress | None]:
    """A redis-server that syncs every write; None if there is none on this machine."""
    program = shutil.which("redis-server")
    if program is None:
        yield None
        return
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory)),
        *("--save", "", "--appendonly", "yes", "--appendfsync", "always"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        os.sched_setaffinity(process.pid, cores)
        for _ in range(_READY_TRIES):
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.01)
            else:
                writer.close()
                break
        yield RedisAddress("127.0.0.1", port)
    finally:
        process.terminate()
        await process.wait()


async def measure(directory: Path, rounds: int) -> list[Result]:
    """All setups, in turns: a slow minute of the machine meets all of them."""
    cores = sorted(os.sched_getaffinity(0))
    found: dict[Setup, list[tuple[float, float]]] = {}
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(redis_on_the_other_cores(directory, cores[:-1] or cores))
        os.sched_setaffinity(0, cores[-1:])
        for round_ in range(rounds):
            for index, setup in enumerate(SETUPS):
                if setup.synchronous is not None:
                    store: SessionStore = await SqliteStore.open(
                        directory / f"{index}.db", synchronous=setup.synchronous, group_commit=setup.group_commit
                    )
                elif redis is not None:
                    store = await RedisStore.open(redis)
                else:
                    continue
                found.setdefault(setup, []).append(await appended_per_second(store, setup, round_ * 100 + index))
                await store.close()
    return [
        Result(
            setup.name,
            setup.writers,
            statistics.median(rate for rate, _ in runs),
            statistics.median(cpu for _, cpu in runs) * 1e6,
            min(rate for rate, _ in runs),
        )
        for setup, runs in found.items()
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print. 0 if the goal was met, 1 if not."""
    parser = argparse.ArgumentParser(prog="python -m bench.micro.store", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="medians of so many rounds (5)")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="on the disk to measure (default: here)")
    parser.add_argument("--json", action="store_true", help="for programs: one JSON object on stdout")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="bench-store-", dir=arguments.directory or Path.cwd()) as name:
        sync = sync_time(Path(name))
        results = asyncio.run(measure(Path(name), max(1, arguments.rounds)))
    goal_setup = next(setup for setup in SETUPS if setup.goal)
    best = next(each for each in results if (each.name, each.writers) == (goal_setup.name, goal_setup.writers))
    met = best.per_second >= GOAL
    if arguments.json:
        json.dump({"sync_us": sync * 1e6, "goal": GOAL, "met": met, "results": list(map(asdict, results))}, sys.stdout)
        print()
        return 0 if met else 1
    cpu = cpu_model(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    print(f"{cpu}, one core; load average {os.getloadavg()[0]:.2f}; revision {revision()}")
    print(f"one fdatasync of a 4 KiB write on this disk: {sync * 1e6:.0f} us (median of {_SYNCS})\n")
    rows = [
        (each.name, str(each.writers), f"{each.per_second:,.0f}", f"{each.slowest:,.0f}", f"{each.cpu_us:.1f}")
        for each in results
    ]
    print("\n".join(aligned(("store", "writers", "appends/s", "worst round", "CPU us each"), rows)))
    print(f"\nGoal of {GOAL:,} appends/s with group commit: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
