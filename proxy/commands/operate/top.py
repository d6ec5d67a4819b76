"""`districhat top`: rates and latencies of every server, again and again."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from proxy.admin.schema import Traffic
from proxy.commands.operate import text
from proxy.commands.operate.traffic import Rates, rates, total
from proxy.commands.output import PlainConsole
from proxy.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console, RenderableType

    from proxy.admin import schema
    from proxy.commands.operate.client import AdminClient

_LINES_AROUND = 6
"""Of the terminal, that are not servers."""
_GAP = 2
_LEAST_WANTED_FIRST = ("share", "p50", "active", "errors", "p99", "state")
_LEAST_OF_A_REASON = 12
"""Columns; in fewer, reasons are not shown."""


class Sampler:
    """Asks the proxy and knows what has happened since it asked before."""

    def __init__(self, client: AdminClient) -> None:
        self._client = client
        self.told = self._client.endpoints().body
        self.all = Rates()
        self.by_id: dict[str, Rates] = {}

    def ask(self) -> None:
        """Once more. Raises CommandError; then what was known stays."""
        now = self._client.endpoints().body
        before, self.told = self.told, now
        seconds = (now.at - before.at).total_seconds()
        earlier = {each.id: each.traffic for each in before.endpoints}
        self.by_id = {
            each.id: rates(earlier.get(each.id), each.traffic, seconds, now.latency_bounds) for each in now.endpoints
        }
        self.all = rates(_all(before), _all(now), seconds, now.latency_bounds)

    def as_json(self) -> str:
        """The latest in a line."""
        endpoints = [
            {"id": each.id, "status": each.status, "active_calls": each.active_calls, **_fields(self.by_id[each.id])}
            for each in self.told.endpoints
        ]
        facts = {"at": self.told.at.isoformat(), "not_ready": self.told.not_ready}
        active = self.told.active_calls
        return json.dumps({**facts, "active_calls": active, **_fields(self.all), "endpoints": endpoints})


def _all(told: schema.Endpoints) -> Traffic:
    return total([told.unserved, *(each.traffic for each in told.endpoints)])


def _fields(measured: Rates) -> dict[str, float | None]:
    return {
        "calls_per_second": measured.calls,
        "error_rate": measured.errors,
        "p50_seconds": measured.p50,
        "p99_seconds": measured.p99,
    }


def top(client: AdminClient, *, interval: float, count: int, as_json: bool) -> int:
    """Show the servers every `interval` seconds, `count` times (0: until Ctrl-C, which is no failure).

    A proxy that cannot be reached at the start is a CommandError; one that goes away later is waited for, unless
    it is for programs.
    """
    sampler = Sampler(client)
    try:
        if as_json:
            for _ in _times(count, interval):
                sampler.ask()
                print(sampler.as_json(), flush=True)
        else:
            _show(sampler, interval, count)
    except KeyboardInterrupt:
        pass
    return 0


def _times(count: int, interval: float) -> Iterator[None]:
    done = 0
    while not count or done < count:
        time.sleep(interval)
        yield
        done += 1


def _show(sampler: Sampler, interval: float, count: int) -> None:
    out = PlainConsole()
    if not out.is_terminal or out.is_dumb_terminal:  # where nothing can be drawn over: one table after the other
        for _ in _times(count, interval):
            out.print(_screen(sampler, out, None, _problem(sampler)))
        return
    with Live(_screen(sampler, out, _room(out)), console=out, screen=True, auto_refresh=False) as live:
        for _ in _times(count, interval):
            problem = _problem(sampler)
            live.update(_screen(sampler, out, _room(out), problem), refresh=True)


def _room(out: Console) -> int:
    """Servers that the terminal has lines for; it may be resized."""
    return max(out.height - _LINES_AROUND, 1)


def _problem(sampler: Sampler) -> str:
    """Ask once more; why that failed, if it did."""
    try:
        sampler.ask()
    except CommandError as error:
        return str(error)
    return ""


def _screen(sampler: Sampler, out: Console, most: int | None, problem: str = "") -> RenderableType:
    """What is known now, of the `most` busiest servers (None: of all)."""
    ranked = sorted(sampler.told.endpoints, key=lambda each: -(sampler.by_id.get(each.id, Rates()).calls or 0.0))
    shown = ranked[:most]
    rest = len(ranked) - len(shown)
    head = Text(problem, "red") if problem else _summary(sampler)
    rows = [_row(each, sampler.by_id.get(each.id, Rates())) for each in shown]
    return Group(head, _table(rows, out.width), Text(f"and {rest:,} more" if rest else "", "dim"))


def _row(endpoint: schema.Endpoint, measured: Rates) -> dict[str, Text]:
    calls, errors, p50, p99 = map(Text, _numbers(measured))
    return {
        "server": Text(endpoint.id),
        "state": text.status_text(endpoint.status),
        "share": Text(text.percent(endpoint.share)),
        "active": Text(f"{endpoint.active_calls:,}"),
        "calls/s": calls,
        "errors": errors,
        "p50": p50,
        "p99": p99,
        "why": Text(text.reasons(endpoint.blocks)),
    }


def _table(rows: Sequence[dict[str, Text]], width: int) -> Table:
    """As many columns as a terminal of this width has room for; the reasons get what is left."""
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) + _GAP for name in rows[0]}
    del widths["why"]
    for name in _LEAST_WANTED_FIRST:
        if sum(widths.values()) > width:
            del widths[name]
    left = width - sum(widths.values())
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold underline")
    for name in widths:
        table.add_column(name, justify="left" if name in {"server", "state"} else "right", no_wrap=True)
    if left >= _LEAST_OF_A_REASON:
        widths["why"] = left
        table.add_column("why", no_wrap=True, max_width=left)  # or a long reason would take from all columns
    for row in rows:
        table.add_row(*(row[name] for name in widths))
    return table


def _numbers(measured: Rates) -> tuple[str, str, str, str]:
    return (
        text.rate(measured.calls),
        text.percent(measured.errors),
        text.duration(measured.p50),
        text.duration(measured.p99),
    )


def _summary(sampler: Sampler) -> Text:
    calls, errors, p50, p99 = _numbers(sampler.all)
    return text.headline(sampler.told).append(f"\n{calls} calls/s, {errors} of them errors, p50 {p50}, p99 {p99}")
