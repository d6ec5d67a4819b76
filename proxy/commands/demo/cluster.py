"""Starts what the demo consists of: three reference servers that share a store of sessions, and a proxy before them."""

from __future__ import annotations

import contextlib
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.commands.demo.processes import START_TIMEOUT, Child, Children, signals_as_exit
from proxy.commands.demo.scenario import HOST, L1_SESSIONS, L2_SESSIONS, SERVERS, proxy_config
from proxy.commands.demo.stores import start_store
from proxy.commands.ring import ring_of
from proxy.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.balancing.ring import RingSnapshot

FREE_PORTS = 0


@dataclass(frozen=True, slots=True)
class DemoCluster:
    """What runs."""

    children: Children
    servers: dict[str, Child]
    """By id."""
    addresses: dict[str, str]
    """Of the servers, by id."""
    address: str
    """Of the proxy."""
    ring: RingSnapshot
    """The ring the proxy routes by, for telling beforehand where a chat lives."""
    store: str
    """What the servers share, for people."""


@contextlib.contextmanager
def running(port: int, store: str, *, keep_logs: bool) -> Iterator[DemoCluster]:
    """Servers and proxy, all ready; ended when the context is left, however it is left.

    The proxy listens on `port` and the servers on the three after it; `FREE_PORTS` lets each take a free one. `store`:
    see `start_store`. With `keep_logs` what the processes have to say stays aside until one of them fails; otherwise it
    goes to our stderr. Raises ChildError when one does not start.
    """
    with (
        signals_as_exit(),
        tempfile.TemporaryDirectory(prefix="districhat-demo-") as name,
        Children() as children,
    ):
        yield _start(children, Path(name), port, store, keep_logs=keep_logs)


def _start(children: Children, directory: Path, port: int, store: str, *, keep_logs: bool) -> DemoCluster:
    deadline = time.monotonic() + START_TIMEOUT

    def log(name: str) -> Path | None:
        return directory / f"{name}.log" if keep_logs else None

    shared = start_store(store, children, directory, log("store"), deadline)
    servers = {}
    for offset, server in enumerate(SERVERS, start=1):
        arguments = [
            *("--id", server.id),
            *("--address", f"{HOST}:{port + offset if port else FREE_PORTS}"),
            *("--store", shared.url),
            *("--l1", str(L1_SESSIONS)),
            *("--l2", str(L2_SESSIONS)),
        ]
        servers[server.id] = children.start(server.id, "backend", arguments, log(server.id))
    addresses = {id_: child.wait_ready(deadline) for id_, child in servers.items()}
    config = directory / "demo.toml"
    config.write_text(proxy_config(f"{HOST}:{port}", addresses), encoding="utf-8")
    proxy = children.start("the proxy", "proxy", ["serve", "--config", str(config)], log("proxy"))
    address = proxy.wait_ready(deadline)
    return DemoCluster(children, servers, addresses, address, ring_of(load_settings(config, {})), shared.name)
