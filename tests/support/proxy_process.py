"""`districhat serve` as a process of its own, configured, watched and ended."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.balancing.hash_ring import HashRing
from proxy.balancing.hashing import vnodes_for_weight
from proxy.settings import load_settings
from tests.support import processes
from tests.support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from tests.support.grpc_server import EchoServer

Table = dict[str, str | int | float | list[str]]
"""A TOML table of plain values."""

PATIENCE = 30.0
"""Seconds the process gets to start, and to end."""

_BUG = re.compile(r" (ERROR|CRITICAL) |Traceback|(Resource|Runtime)Warning|\b[1-9]\d* calls did not finish")
"""What a proxy in good order never writes to stderr, whatever its peers do."""


def toml(
    endpoints: Mapping[str, str],
    *,
    weights: Mapping[str, float] | None = None,
    routes: Sequence[str] = (),
    endpoint_keys: Mapping[str, Table] | None = None,
    **tables: Table,
) -> str:
    """A configuration. `endpoints`: id to address. `endpoint_keys`: more keys of each. `routes`: the lines of each.
    `tables`: listener, ring, upstream, ...

    Unless told otherwise, the listener takes a free port, displaced chats go home at once, and servers are not checked,
    as tests count their connections and calls, and there is no admin server.
    """
    tables = {"failback": {"mode": "immediate"}, "health": {"kind": "off"}, "admin": {"address": ""}, **tables}
    listener: Table = {"address": "127.0.0.1:0", "drain_grace": 5.0}
    tables = {**tables, "listener": {**listener, **tables.get("listener", {})}}
    lines = []
    for name, table in tables.items():
        # JSON's strings and numbers are TOML's.
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    for id_, address in endpoints.items():
        weight = (weights or {}).get(id_, 1.0)
        lines += ["[[endpoints]]", f"id = {json.dumps(id_)}", f'address = "{address}"', f"weight = {weight}"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in (endpoint_keys or {}).get(id_, {}).items()]
    for route in routes:
        lines += ["[[routes]]", route]
    return "\n".join(lines) + "\n"


def addresses(*servers: EchoServer) -> dict[str, str]:
    """What `toml` wants to know of servers in this process."""
    return {server.id: server.address for server in servers}


def environment() -> dict[str, str]:
    """The environment without settings that somebody left in it."""
    return {name: value for name, value in os.environ.items() if not name.startswith("DISTRICHAT_")}


class ProxyProcess:
    """A running proxy."""

    def __init__(self, process: asyncio.subprocess.Process, address: str, config: Path, log: Path) -> None:
        self._process = process
        self._log = log
        self._config = config
        self.address = address
        self.pid = process.pid
        self._expected: tuple[str, ...] = ()
        self.signalled = False
        """It was told to end."""
        self.exit_status = 0
        """What it must be, at the end; -9 after SIGKILL."""
        self.cuts_off = False
        """The test means calls to be cut off at the end of the drain."""
        settings = load_settings(config, {})
        self.ring = HashRing(settings.ring.virtual_nodes, settings.ring.hash)
        for endpoint in settings.endpoints:
            capacity = vnodes_for_weight(endpoint.weight, settings.ring.virtual_nodes)
            self.ring.add_node(endpoint.id, capacity, endpoint.address)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.address.rpartition(":")[2])

    def owner(self, key: str | bytes) -> str:
        """The id of the server that owns `key`, by the ring alone."""
        return self.ring.get_node(key)[0]

    def walk(self, key: str | bytes) -> list[str]:
        """The ids of all servers in the order in which `key` goes to them."""
        return [id_ for id_, _ in self.ring.get_nodes(key, len(self.ring))]

    def key_of(self, server_id: str, prefix: str = "chat") -> str:
        """Some key that the server owns."""
        return next(key for index in range(10_000) if self.owner(key := f"{prefix}-{index}") == server_id)

    def memory(self) -> int:
        """Bytes of resident memory."""
        return processes.memory(self.pid)

    def descriptors(self) -> int:
        """Files and sockets it has open."""
        return len(processes.descriptors(self.pid))

    def log(self) -> str:
        """Everything it wrote to stderr."""
        return self._log.read_text(encoding="utf-8")

    async def admin_url(self) -> str:
        """Where its admin server listens, once it does: `http://host:port`."""
        started = re.compile(r"admin server on (http://\S+)")
        found = await eventually(lambda: started.search(self.log()), "the admin server", PATIENCE)
        assert found is not None
        return found[1]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.signalled = True
        self._process.send_signal(number)

    def write(self, config: str) -> None:
        """Change its file, and nothing else."""
        self._config.write_text(config, encoding="utf-8")

    async def reload(self, config: str) -> str:
        """Change its file and send SIGHUP. Returns what it has logged since, once it is done with it."""
        before = len(self.log())
        self.write(config)
        self._process.send_signal(signal.SIGHUP)
        done = re.compile(r": reloaded: |nothing is changed|a bug ended the reload")
        await eventually(lambda: done.search(self.log(), before) is not None, "the end of the reload", PATIENCE)
        return self.log()[before:]

    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.returncode is None

    async def ended(self) -> int:
        """Its exit status, once it has ended."""
        async with asyncio.timeout(PATIENCE):
            return await self._process.wait()

    async def kill(self) -> None:
        """End it at once, if it still runs."""
        if self.running():
            self._process.kill()
        await self._process.wait()

    def expects(self, *texts: str) -> None:
        """Lines with these are no bugs, though they are errors."""
        self._expected = texts

    def check(self) -> None:
        """Fails the test if the proxy reported a bug of its own."""
        log = "\n".join(line for line in self.log().splitlines() if not any(text in line for text in self._expected))
        for found in _BUG.finditer(log):
            if not (self.cuts_off and found[0].endswith("did not finish")):
                raise AssertionError(f"the proxy's stderr has {found[0]!r}:\n{log[-6000:]}")


@asynccontextmanager
async def proxy_process(
    directory: Path, config: str, *, launcher: Sequence[str] = (), arguments: Sequence[str] = ()
) -> AsyncIterator[ProxyProcess]:
    """A proxy that listens. At the end it gets SIGTERM, unless the test has sent a signal, must exit as it should, and
    must not have reported a bug.

    `launcher`: a command to start it by, which must become it (`ip netns exec`). `arguments`: more for `serve`.
    """
    file = directory / "proxy.toml"
    file.write_text(config, encoding="utf-8")
    log = directory / "proxy.stderr"
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *(*launcher, sys.executable, "-W", "default", "-m", "proxy", "serve", "--config", str(file), *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            env=environment(),
        )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE):
            line = (await process.stdout.readline()).decode()
        start = "districhat ready on "
        assert line.startswith(start), f"{line!r}, stderr: {log.read_text(encoding='utf-8')}"
        proxy = ProxyProcess(process, line.removeprefix(start).strip(), file, log)
        yield proxy
        if not proxy.signalled:  # a second signal would end the drain
            proxy.signal(signal.SIGTERM)
        assert await proxy.ended() == proxy.exit_status, proxy.log()
        proxy.check()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
