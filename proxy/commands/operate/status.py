"""`districhat status`: every server at a glance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.commands.operate import text
from proxy.commands.operate.client import WRONG
from proxy.commands.output import console, print_table

if TYPE_CHECKING:
    from rich.text import Text

    from proxy.admin import schema
    from proxy.commands.operate.client import AdminClient


def status(client: AdminClient, *, as_json: bool) -> int:
    """Print the state of the proxy and of each server. Returns 1 if the proxy is not ready, or a server is out for
    another reason than that the operator drains it.
    """
    answer = client.endpoints()
    if as_json:
        answer.print_json()
    else:
        _print(answer.body)
    return WRONG if _something_is_wrong(answer.body) else 0


def _something_is_wrong(told: schema.Endpoints) -> bool:
    return bool(told.not_ready) or any(each.status not in {"available", "draining"} for each in told.endpoints)


def _print(told: schema.Endpoints) -> None:
    out = console()
    out.print(text.headline(told))
    columns = ("server", "address", "state", "weight", "share", "active", "calls", "errors", "cache hits", "why")
    print_table(out, columns, [_row(each) for each in told.endpoints], numeric=columns[3:9])
    out.print(f"ring {told.snapshot.fingerprint}, snapshot {told.snapshot.version}")


def _row(each: schema.Endpoint) -> tuple[str | Text, ...]:
    cache = each.cache
    return (
        each.id,
        each.address,
        text.status_text(each.status),
        f"{each.weight:g}",
        text.percent(each.share),
        f"{each.active_calls:,}",
        f"{each.traffic.calls:,}",
        f"{each.traffic.errors:,}",
        text.percent(cache.hits / cache.requests if cache and cache.requests else None),
        text.reasons(each.blocks),
    )
