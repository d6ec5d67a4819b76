"""The store that the demo's servers share: an SQLite file, a Redis of the demo's own, or one that is there already."""

from __future__ import annotations

import re
import shutil
import socket
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.commands.demo.processes import ChildError
from proxy.commands.demo.scenario import HOST

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.commands.demo.processes import Children

SQLITE: Final = "sqlite"
REDIS: Final = "redis"
REDIS_URL: Final = "redis://"
_REDIS_READY = re.compile(r"(Ready to accept connections)")
_PROGRAMS: Final = ("redis-server", "valkey-server")


class SharedStore(NamedTuple):
    """What the servers are started with."""

    url: str
    name: str
    """For people: "the three servers share ..."."""


def start_store(kind: str, children: Children, directory: Path, log: Path | None, deadline: float) -> SharedStore:
    """The store that `kind` names, ready: `sqlite`, `redis`, or the URL of a Redis that is there already. What the demo
    makes for it is in `directory`, or a child. Raises ChildError if a Redis is wanted and there is none to start.
    """
    if kind == SQLITE:
        return SharedStore(f"sqlite:///{directory}/sessions.db", "one SQLite file of sessions")
    if kind.startswith(REDIS_URL):
        return SharedStore(kind, f"the Redis at {kind.rpartition('@')[2].removeprefix(REDIS_URL)}")
    program = next((found for name in _PROGRAMS if (found := shutil.which(name))), None)
    if program is None:
        raise ChildError("--store redis needs redis-server or valkey-server: apt-get install redis-server")
    port = _free_port()  # Redis takes port 0 for none
    command = [
        *(program, "--bind", HOST, "--port", str(port), "--dir", str(directory)),
        *("--save", "", "--appendonly", "yes", "--appendfsync", "always"),
    ]
    children.start_program("Redis", command, log, ready=_REDIS_READY).wait_ready(deadline)
    return SharedStore(f"redis://{HOST}:{port}/0", "one Redis")


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
