"""`districhat demo --serve`: the demo's processes, kept up for other clients."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.text import Text

from proxy.admin.settings import AdminSettings
from proxy.commands.demo.cluster import running
from proxy.commands.demo.processes import ChildError
from proxy.commands.output import console

if TYPE_CHECKING:
    from rich.console import Console

    from proxy.commands.demo.cluster import DemoCluster


def serve_until_stopped(*, port: int, store: str) -> int:
    """Start servers and proxy, say how to reach them, and end them all on Ctrl-C or SIGTERM, which returns 0.

    `port`, `store`: see `cluster.running`. Returns 1 when a process does not start or dies; its log is on stderr.
    """
    out = console()
    out.print("starting three reference servers and the proxy ...")
    try:
        with running(port, store, keep_logs=False) as cluster:
            _say_ready(out, cluster)
            cluster.children.wait_for_death()
    except ChildError as error:
        print(error, file=sys.stderr)
        if port:
            print(f"if one of the ports {port} to {port + 3} is taken: --port BASE takes others", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, SystemExit):  # the wanted end, from the terminal or by a signal
        out.print("stopped")
    return 0


def _say_ready(out: Console, cluster: DemoCluster) -> None:
    for id_, address in cluster.addresses.items():
        out.print(f"  {id_:<8}  {address}  ready")
    out.print(Text.assemble(f"  {'proxy':<8}  ", (cluster.address, "bold"), "  ready"))
    out.print(
        "\nTry it (grpcurl needs no .proto: the servers have reflection):\n"
        f"  grpcurl -plaintext {cluster.address} list\n"
        f"""  grpcurl -plaintext -d '{{"chat_id": "chat-007", "message": "hello"}}' """
        f"{cluster.address} chat.ChatService/PostMessage\n"
        f"""  grpcurl -plaintext -d '{{"server_id": "Server-A"}}' {cluster.address} chat.ChatService/GetCacheStats\n"""
        f"Look at it: http://{AdminSettings().address} (unless the log above says that this port is taken), "
        "or districhat status\n"
        f"The servers share {cluster.store}; what the demo made for it is removed at the end. Ctrl-C ends all.",
    )
