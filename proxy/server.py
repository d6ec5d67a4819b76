"""The composition root: builds the proxy from its settings, runs it, ends it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import signal
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import uvloop

from proxy import hangup, memory
from proxy.admin import schema
from proxy.admin.local import Carrying, LocalProxy, Pool
from proxy.admin.logs import logging_as
from proxy.admin.ports import ReloadRefusedError
from proxy.admin.ring_view import RingViews
from proxy.admin.server import AdminServer
from proxy.allocator import keep_freed_memory
from proxy.cluster.address import Address
from proxy.cluster.cluster import Cluster
from proxy.control_plane import ControlPlane
from proxy.data_plane import DataPlane
from proxy.errors import ConfigError
from proxy.reload import Reloader
from proxy.settings import Settings
from proxy.transport.reactor import AsyncioReactor, Reactor, reason
from proxy.transport.socket_file import SocketFile
from proxy.transport.takeover import Handover, Takeover
from proxy.workers.overview import Overview
from proxy.workers.supervisor import Supervisor, core_count

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping
    from pathlib import Path

    from proxy.cluster.endpoint import Endpoint

log = logging.getLogger(__name__)

_ENDING: Final = (signal.SIGTERM, signal.SIGINT)


class Proxy:
    """Control plane, admin server, and what carries the calls: a data plane on the same event loop that shares the
    endpoints, or workers. `start`, then `stop`.
    """

    def __init__(self, settings: Settings, reactor: Reactor, config_file: Path | None = None) -> None:
        """`config_file`: where the settings came from, to be read again by `reloader`; None: the environment alone."""
        cluster = Cluster(settings.endpoints, settings.ring)
        self.control = ControlPlane(settings, cluster, reactor)
        self.data: DataPlane | Supervisor
        workers = core_count() if settings.listener.workers == "auto" else settings.listener.workers
        forwarder: Carrying
        pools: Mapping[Endpoint, Pool]
        if workers == 1:
            self.data = data = DataPlane(settings, cluster, self.control.detector, reactor)
            forwarder, pools = data.forwarder, data.pools
            self.control.speak_to(data)
        else:
            self.data = parent = Supervisor(settings, cluster, self.control.detector, workers, self.control.tell)
            forwarder = pools = Overview(parent.knowledge, reactor.now)
            self.control.speak_to(parent.knowledge)
        self._takeover: Takeover | None = None
        """From the proxy before us; kept as long as we live, see there."""
        path = Address.parse(settings.listener.address).path
        self.socket_file = SocketFile(path) if path else None
        self.reloader = Reloader(config_file, settings, self.control.apply)
        views = RingViews()
        self.admin_port = LocalProxy(
            cluster,
            forwarder,
            pools,
            self.control.events,
            self.control.journal,
            self._config,
            self._not_ready,
            views,
            self._reload,
            self.data.numbers,
            self.data.recent_keys,
            self.control.check_results,
            self.control.cache_stats,
            self.data.decisions,
            settings.decisions,
        )
        self.admin = AdminServer(self.admin_port, settings.admin, views)

    def _config(self) -> dict[str, Any]:
        return self.reloader.settings.model_dump(mode="json")

    def _not_ready(self) -> str:
        return self.data.not_ready

    async def _reload(self) -> schema.Reloaded:
        try:
            done = await self.reloader.reload()
        except ConfigError as error:
            raise ReloadRefusedError(error.problems) from error
        return schema.Reloaded(
            changed=tuple(map(str, done.applied)), restart_needed=tuple(each.key for each in done.needs_restart)
        )

    async def start(self, *, take_over: bool = False) -> Address:
        """Listen and connect to the endpoints. Returns the address listened on. Raises ConfigError if it is taken.

        `take_over`: the port is asked of the proxy that has it, if there is one, which then ends. A start that fails or
        is cancelled ends as by `stop`, with the grace for calls that have come in already.
        """
        address = Address.parse(self.reloader.settings.listener.address)
        takeover = self._takeover = await Takeover.begin(address) if take_over else None
        try:
            opened = await self._open(address, takeover)
            if takeover is not None:
                await takeover.confirm()
                log.info("took over %s", opened)
            await self._start_admin(patient=take_over)
        except BaseException:
            # Until it has heard that we are ready, the proxy before us has the port, and a socket's file.
            await self.stop(replaced=takeover is not None and not takeover.confirmed)
            raise
        return opened

    async def _open(self, address: Address, takeover: Takeover | None) -> Address:
        """Accept clients."""
        try:
            sockets = takeover.sockets if takeover is not None else []
            if self.socket_file is not None:
                sockets = self._take_socket_file(self.socket_file, sockets)
            opened = await self.data.open(address, sockets)
            # Only then, so that a port in use is said at once; and before the first client, so that none meets a server
            # that nobody has looked at.
            self.data.start()
            await self.control.start()
            await self.data.serve()
        except OSError as error:
            raise _cannot_listen("listener.address", address, error) from error
        return opened

    def _take_socket_file(self, file: SocketFile, inherited: list[socket.socket]) -> list[socket.socket]:
        if inherited:
            file.adopt()
            return inherited
        return [file.bind(int(self.reloader.settings.listener.socket_mode, 8))]

    async def _start_admin(self, *, patient: bool) -> None:
        # Calls matter more than who watches them: only an address that was asked for, and cannot be had, is a mistake.
        given = "address" in self.reloader.settings.admin.model_fields_set
        try:
            await self.admin.start(patient=patient or not given)
        except OSError as error:
            raise _cannot_listen("admin.address", self.reloader.settings.admin.address, error) from error

    async def stop(self, *, replaced: bool = False) -> int:
        """Finish the running calls within the grace and close everything. Returns how many calls were cut off.

        `replaced`: by a successor, who shall have the admin server's port now, and has the listener's or is about to.
        """
        if replaced:
            await self.admin.stop()
        elif self.socket_file is not None:
            self.socket_file.remove()
        cut_off = await self.data.drain()
        await self.admin.stop()
        await self.control.stop()
        self.data.close()
        await self.data.closed()
        if self._takeover is not None:
            self._takeover.close()
        if cut_off:
            log.warning("%d calls did not finish in time and were cut off", cut_off)
        return cut_off


async def _run(settings: Settings, config_file: Path | None, *, take_over: bool) -> int:
    keep_freed_memory()
    loop = asyncio.get_running_loop()
    proxy = Proxy(settings, AsyncioReactor(loop), config_file)
    loop.add_signal_handler(signal.SIGHUP, proxy.reloader.want)
    if hangup.noted():
        proxy.reloader.want()
    starting = loop.create_task(proxy.start(take_over=take_over), name="start")
    stop = asyncio.Event()
    replaced = False

    def end() -> None:
        _expect_a_second_signal(loop, proxy)
        log.info("draining: running calls have %g s to finish", proxy.reloader.settings.listener.drain_grace)
        stop.set()
        starting.cancel()  # nothing happens once it is over

    def taken() -> None:
        nonlocal replaced
        replaced = True
        end()

    # Until here SIGTERM ends the process by its default action: there is nothing yet that would have to be ended well.
    for signum in _ENDING:
        loop.add_signal_handler(signum, end)
    try:
        address = await starting
    except asyncio.CancelledError:
        if stop.is_set():
            return 0
        raise
    configured = Address.parse(settings.listener.address)
    handover = Handover(configured if configured.port else address, proxy.data.sockets, taken)
    handover.open()
    memory.settle()
    reloading = loop.create_task(proxy.reloader.follow(), name="reload")
    try:
        print(f"districhat ready on {address}", flush=True)
    except OSError as error:  # a full disk, a reader that has left: nothing that calls would mind
        log.warning("ready on %s; stdout does not take that: %s", address, str(error.strerror).lower())
    await stop.wait()
    await handover.close()
    reloading.cancel()
    await asyncio.gather(reloading, return_exceptions=True)
    await proxy.stop(replaced=replaced or handover.under_way)
    return 0


def _expect_a_second_signal(loop: asyncio.AbstractEventLoop, proxy: Proxy) -> None:
    """The next SIGTERM or SIGINT ends the drain at once, by the system's default action, which asks nothing of an event
    loop that hangs; Python's for SIGINT, an exception, may be lost in a callback. Workers, which would go on by
    themselves, are killed first.
    """
    for signum in _ENDING:
        loop.remove_signal_handler(signum)
        workers = proxy.data if isinstance(proxy.data, Supervisor) else None
        signal.signal(signum, signal.SIG_DFL if workers is None else partial(_end_at_once, workers))


def _end_at_once(workers: Supervisor, signum: int, _frame: object) -> None:
    workers.kill()
    signal.signal(signum, signal.SIG_DFL)
    signal.raise_signal(signum)


_ADVICE: Final = {
    ("listener.address", errno.EADDRINUSE): "; --takeover replaces the proxy that listens there, if one does",
    ("listener.address", errno.EEXIST): " and is no socket; give another path",
    ("listener.address", errno.EACCES): "; ports below 1024 need CAP_NET_BIND_SERVICE, sockets a writable directory",
    ("admin.address", errno.EADDRINUSE): '; give another port, or "" for no admin server',
}
"""What helps, where that is known."""


def _cannot_listen(key: str, address: Address | str, error: OSError) -> ConfigError:
    advice = _ADVICE.get((key, error.errno or 0), "")
    return ConfigError([f"{key}: cannot listen on {address}: {reason(error)}{advice}"])


LEAST_FILES: Final = 48
"""File descriptors of a proxy without a server or a client; with two servers it took 28. With too few, a library in it
aborts the process: gRPC's, when it cannot open /dev/urandom."""


def _raise_file_limit(servers: int) -> None:
    """A connection is a file, and the soft limit is often 1,024 for the sake of programs that use select(2). Raises
    ConfigError if the process may not even have one for each of so many servers.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # systems with a hard limit that they do not mean
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < LEAST_FILES + servers:
        needed = f"{LEAST_FILES}, and one for each of {servers} (ulimit -n, LimitNOFILE)"
        raise ConfigError([f"endpoints: the process may have {limit} file descriptors, and needs at least {needed}"])


def serve(settings: Settings, config_file: Path | None = None, *, take_over: bool = False) -> int:
    """Run the proxy until SIGTERM, SIGINT or a successor that takes its port, then drain it. Prints one line on stdout
    when it listens. `config_file`: where `settings` came from, to be read again on SIGHUP (None: the environment
    alone). `take_over`: take the port from the proxy that has it, if there is one.

    Returns 0, also if calls had to be cut off at the end of the grace. Raises ConfigError if the port is taken, or if
    there are too few file descriptors.
    """
    _raise_file_limit(len(settings.endpoints))
    with logging_as(settings.log), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(settings, config_file, take_over=take_over))
