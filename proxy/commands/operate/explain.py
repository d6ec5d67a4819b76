"""`districhat explain`: which server, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.commands.operate import text
from proxy.commands.operate.client import MISUSED, WRONG
from proxy.commands.output import console, print_table
from proxy.errors import CommandError
from proxy.grpc_wire.fields import DEFAULT_MAX_KEY

if TYPE_CHECKING:
    from proxy.admin import schema
    from proxy.commands.operate.client import AdminClient


def key_of(argument: str, *, in_hex: bool) -> bytes:
    """The key that is meant. Raises CommandError if it is not hexadecimal, but should be, or if no call can have such a
    key.
    """
    try:
        key = bytes.fromhex(argument) if in_hex else argument.encode("utf-8", "surrogateescape")
    except ValueError as error:
        raise CommandError(f"KEY: not hexadecimal digits: {argument!r}", MISUSED) from error
    if not 1 <= len(key) <= DEFAULT_MAX_KEY:
        raise CommandError(f"KEY: a key has 1 to {DEFAULT_MAX_KEY} bytes, not {len(key)}", MISUSED)
    return key


def explain(client: AdminClient, key: bytes, *, as_json: bool) -> int:
    """Print where a call with `key` would go now, and past whom. Returns 1 if it would be refused."""
    answer = client.explain(key)
    if as_json:
        answer.print_json()
    else:
        _print(answer.body)
    return 0 if answer.body.chosen is not None else WRONG


def _print(told: schema.Explanation) -> None:
    out = console()
    out.print(told.summary)
    ring = f"ring {told.snapshot.fingerprint}, snapshot {told.snapshot.version}"
    out.print(f"hash 0x{told.hash:08x}, at {told.position:.2%} of {ring}")
    rows = [
        (
            str(number),
            each.id,
            each.address,
            text.status_text(each.status),
            f"{each.active_calls:,}",
            "takes the call" if each.chosen else each.passed_over,
        )
        for number, each in enumerate(told.candidates, 1)
    ]
    print_table(out, ("#", "server", "address", "state", "active", "so"), rows, numeric=("#", "active"))
    if told.more_candidates:
        out.print(f"and {text.plural(told.more_candidates, 'server')} after that")
