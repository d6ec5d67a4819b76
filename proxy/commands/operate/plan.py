"""`districhat plan`: what a change of the servers would move."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.commands.operate import text
from proxy.commands.output import console, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.admin import schema
    from proxy.commands.operate.client import AdminClient

SHOWN: Final = 20
"""Moves that are printed, the largest; all of them are in the JSON."""


def plan(client: AdminClient, change: str, ids: Sequence[str], *, as_json: bool) -> int:
    """Print what would move if these servers were added, removed or reweighted (`ID=WEIGHT`). Changes nothing."""
    answer = client.plan([(change, each) for each in ids])
    if as_json:
        answer.print_json()
    else:
        _print(answer.body)
    return 0


def _print(told: schema.Plan) -> None:
    out = console()
    chats = (
        f"{told.moved_chats:,} of {text.plural(told.recent_chats, 'chat')} seen recently" if told.recent_chats else ""
    )
    out.print(f"{text.percent(told.moved_share)} of the key space would move" + (f", and {chats}" if chats else ""))
    rows = [(move.source, move.target, text.percent(move.share), f"{move.chats:,}") for move in told.moves[:SHOWN]]
    print_table(out, ("from", "to", "share", "chats"), rows, numeric=("share", "chats"))
    if len(told.moves) > SHOWN:
        out.print(f"and {text.plural(len(told.moves) - SHOWN, 'smaller move')}")
    largest = max(told.shares, key=lambda id_: told.shares[id_])
    out.print(f"largest share afterwards: {text.percent(told.shares[largest])} ({largest})")
    out.print(f"ring {told.fingerprint} afterwards, {told.snapshot.fingerprint} now")
