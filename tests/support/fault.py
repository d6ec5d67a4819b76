"""What the fault tests share: a proxy whose features all hold still except those that a test is about."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.ledger import ROUTES
from tests.support.ledger_load import Load, Record
from tests.support.polling import eventually
from tests.support.proxy_process import Table, toml

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

EVERY_KIND = ("once", "keyed", "stream", "bidi")
CHATS = [f"chat-{number}" for number in range(37)]

SOON: Table = {"connect_backoff": 0.05, "max_connect_backoff": 0.2}
"""A server that is back is found to be soon."""
GENEROUS: Table = {"budget_percent": 100.0, "tokens": 100_000.0}
"""A retry budget that a test's few calls do not reach."""
AT_ONCE: Table = {"mode": "immediate"}
"""Chats go home as soon as their owner is back."""

_QUIET: dict[str, Table] = {
    "upstream": SOON,
    "retry": GENEROUS,
    "failback": AT_ONCE,
    "health": {"kind": "off"},
    "outlier": {"consecutive_failures": 0, "quarantine_time": 0.0},
}


def config(addresses: Mapping[str, str], *, routes: Sequence[str] = ROUTES, **tables: Table) -> str:
    """A proxy's configuration: no health checks, no ejection, no quarantine, chats go home at once, unless `tables` say
    otherwise.
    """
    return toml(addresses, routes=routes, **{**_QUIET, **tables})


def failed(records: Sequence[Record]) -> list[Record]:
    """Those that did not go well."""
    return [record for record in records if not record.ok]


async def came_home(load: Load, owner: Callable[[str], str], server_id: str, patience: float = 60.0) -> None:
    """Until the load's calls for chats of the server are served by it again."""
    since = len(load.records)

    def served() -> bool:
        return any(
            record.servers and record.servers[0] == server_id == owner(record.chat) for record in load.records[since:]
        )

    await eventually(served, f"{server_id} having its chats back", patience)


async def one_call(address: str, chat: str, kind: str = "once", *, delay_ms: int = 0) -> Record:
    """A call by a client of its own."""
    async with Load(address, [chat], kinds=(kind,), workers=1, channels=1, rate=0.01, delay_ms=delay_ms) as load:
        return await only_call(load)


async def only_call(load: Load) -> Record:
    """The first call of a load, which then ends."""
    await eventually(lambda: load.ended, "the call's end", 70.0)
    return (await load.stop())[0]
