"""`districhat drain` and `undrain`."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Final

from proxy.commands.operate import text
from proxy.commands.operate.client import MISUSED, WRONG
from proxy.commands.output import console, say
from proxy.errors import CommandError

if TYPE_CHECKING:
    from proxy.admin import schema
    from proxy.commands.operate.client import AdminClient

POLL: Final = 0.5
"""Seconds between two looks at the calls that are left."""


def drain(
    client: AdminClient,
    endpoint_id: str,
    *,
    reason: str = "",
    force: bool = False,
    wait: bool = False,
    timeout: float = 0.0,
    as_json: bool = False,
) -> int:
    """Have new calls walk past a server. `wait`: return only when it has no call left, or after `timeout` seconds (0:
    no limit) with 1; the drain stands all the same.
    """
    drained = client.drain(endpoint_id, reason, force=force).body
    if not wait:
        return _tell(drained, "drains already" if not drained.changed else "drains: new calls walk past it", as_json)
    try:
        left = _wait(client, endpoint_id, timeout)
    except KeyboardInterrupt:
        say(f"{endpoint_id} goes on draining; `districhat undrain` takes that back")
        raise
    end = drained.model_copy(update={"active_calls": left})
    if left:
        _tell(end, f"drains, and still has {text.plural(left, 'call')} after {timeout:g} s", as_json)
        return WRONG
    return _tell(end, "is drained: it has no call left", as_json)


def undrain(client: AdminClient, endpoint_id: str, *, as_json: bool = False) -> int:
    """Give the server back."""
    done = client.undrain(endpoint_id).body
    if not done.changed:
        said = f"was not drained, and is {done.status}"
    elif done.status == "available":
        said = "takes calls again"
    else:
        said = f"is not drained any more, but {done.status}: it takes calls once it is well"
    return _tell(done, said, as_json)


def _tell(done: schema.Drained, said: str, as_json: bool) -> int:  # noqa: FBT001 - passed on
    if as_json:
        print(json.dumps(done.model_dump(mode="json"), indent=2, ensure_ascii=False))
    else:
        console().print(f"{done.id} {said}")
    return 0


def _wait(client: AdminClient, endpoint_id: str, timeout: float) -> int:
    """The calls that are left at the end of it."""
    deadline = time.monotonic() + timeout if timeout else None
    progress = console(stderr=True)
    before = 0
    while left := _left(client, endpoint_id):
        if left != before:
            progress.print(f"{endpoint_id}: {text.plural(left, 'call')} left")
            before = left
        if deadline is not None and time.monotonic() >= deadline:
            return left
        time.sleep(POLL)
    return 0


def _left(client: AdminClient, endpoint_id: str) -> int:
    told = client.endpoints().body
    for each in told.endpoints:
        if each.id == endpoint_id:
            return each.active_calls  # those that wait for a connection are among them
    raise CommandError(
        f"{endpoint_id} has left the configuration meanwhile; its calls are not told of any more", MISUSED
    )
