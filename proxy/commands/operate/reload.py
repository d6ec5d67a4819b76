"""`districhat reload`: the same as SIGHUP, with the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.commands.output import console

if TYPE_CHECKING:
    from proxy.commands.operate.client import AdminClient


def reload(client: AdminClient, *, as_json: bool) -> int:
    """Have the proxy read its configuration again, and print what is different. Mistakes in it are a CommandError with
    a line for each; then nothing has changed.
    """
    answer = client.reload()
    if as_json:
        answer.print_json()
        return 0
    out = console()
    if not answer.body.changed and not answer.body.restart_needed:
        out.print("nothing is different")
    for line in answer.body.changed:
        out.print(line)
    for key in answer.body.restart_needed:
        out.print(f"{key}: holds only after a restart", style="yellow")
    return 0
