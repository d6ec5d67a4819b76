"""The faults. Each scenario takes the running servers, does its damage in order, and says what was away, and when.

Calls run before, during and after; a scenario ends when what it broke is back, and the caller lets the load run on for
`SETTLE` seconds more, so that all proxies have had the time their health checks need to see it.
"""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from bench.faults.servers import Server, Servers

SETTLE = 8.0
"""Two good checks 2 s apart with 20 % jitter and 1 s each are 6.8 s."""


@dataclass(frozen=True)
class Fault:
    """One server away from its chats. Times are of CLOCK_MONOTONIC."""

    server: str
    began: float
    """When it was signalled."""
    back: float
    """When it served again."""


@dataclass(frozen=True)
class Scenario:
    """One way for servers to fail."""

    name: str
    """For `--scenarios` and the tables."""
    title: str
    about: str
    inflict: Callable[[Servers, float], Awaitable[list[Fault]]]
    """The second argument: seconds that a killed or stopped server stays away."""


async def _rolling(servers: Servers, _away: float) -> list[Fault]:
    """One after the other, each only when the one before has been back for `SETTLE`, as orchestrators do it."""
    faults: list[Fault] = []
    for server in servers.all:
        if faults:
            await asyncio.sleep(SETTLE)
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        await server.ended()
        faults.append(await _started_again(server, began))
    return faults


async def _kill(servers: Servers, away: float) -> list[Fault]:
    server = servers.all[1]
    began = time.monotonic()
    server.signal(signal.SIGKILL)
    await server.ended()
    await asyncio.sleep(away - (time.monotonic() - began))
    return [await _started_again(server, began)]


async def _hang(servers: Servers, away: float) -> list[Fault]:
    server = servers.all[1]
    began = time.monotonic()
    server.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(away)
    finally:
        server.signal(signal.SIGCONT)
    return [Fault(server.id, began, time.monotonic())]


async def _started_again(server: Server, began: float) -> Fault:
    await server.start()
    return Fault(server.id, began, time.monotonic())


SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "rolling",
            "Rolling graceful restart",
            "every server in turn: SIGTERM, NOT_SERVING, 3 s later GOAWAY, exit, started again",
            _rolling,
        ),
        Scenario("kill", "SIGKILL", "one server of three dies, and is started again a while later", _kill),
        Scenario("hang", "SIGSTOP", "one server of three hangs for a while, with its connections open", _hang),
    )
}
"""By name, in the order in which they are run."""
