"""Network namespaces for tests: a proxy in one, each server in its own, and links between them that can fail.

Needs root, Linux, iproute2 and /dev/net/tun; the test is skipped elsewhere. Two kinds of link:

- veth, the real thing: cut by taking its far end down, so that packets vanish without a word to either side, and slowed
  by `tc netem` where the kernel has it.
- tun: every packet passes through the test, which may delay and drop it by a seeded chance. It needs nothing of the
  kernel, and the loss is the same in every run.

Nothing is added to the namespace of the machine; `gateway` is the door for the test's own clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import itertools
import os
import random
import re
import socket
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from tests.support.tools import need

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

_T = TypeVar("_T")

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TUN_NO_PI = 0x0001 | 0x1000
PATIENCE = 30.0

_numbers = itertools.count(1)


def missing() -> str:
    """Why there are no namespaces here; empty: there are."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    probe = f"dc{os.getpid()}xprobe"
    made = subprocess.run(("ip", "netns", "add", probe), capture_output=True, check=False, timeout=PATIENCE)
    if made.returncode:
        return f"ip netns add: {made.stderr.decode().strip()}"
    subprocess.run(("ip", "netns", "delete", probe), check=True, timeout=PATIENCE)
    return ""


def _sweep() -> None:
    """Remove what test processes left that were killed."""
    for name in Path("/run/netns").glob("dc*x*"):
        if (found := re.match(r"dc(\d+)x", name.name)) and not Path(f"/proc/{found[1]}").exists():
            run("ip", "netns", "delete", name.name)


def need_namespaces(*, tun: bool = False) -> None:
    """Skips the test where there are none; under CI a missing `ip` fails it."""
    need("ip", "iproute2")
    _sweep()
    if reason := missing():
        pytest.skip(reason)
    if tun and not Path("/dev/net/tun").exists():
        pytest.skip("needs /dev/net/tun")


def run(*command: str) -> str:
    """Run a command; returns its output. Raises with what it said if it fails."""
    done = subprocess.run(command, capture_output=True, check=False, timeout=PATIENCE)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.decode().strip()}")
    return done.stdout.decode()


class Namespace:
    """One network namespace, with loopback."""

    def __init__(self, name: str) -> None:
        self.name = f"dc{os.getpid()}x{next(_numbers)}{name}"
        run("ip", "netns", "add", self.name)
        self._ip("link", "set", "lo", "up")

    @property
    def launcher(self) -> tuple[str, ...]:
        """In front of a command: run it in here. The process is the command's own, with its pid."""
        return ("ip", "netns", "exec", self.name)

    def _ip(self, *arguments: str) -> str:
        return run("ip", "-n", self.name, *arguments)

    def enter(self) -> None:
        """Move this thread into it, and so all threads and processes that it starts from now on."""
        libc = ctypes.CDLL(None, use_errno=True)
        with Path(f"/run/netns/{self.name}").open("rb") as handle:
            if libc.setns(handle.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns {self.name}")

    def inside(self, action: Callable[[], _T]) -> _T:
        """The result of an action in here: what it opens belongs to this namespace for good."""
        with ThreadPoolExecutor(1, initializer=self.enter) as thread:  # a thread has a namespace of its own
            return thread.submit(action).result(PATIENCE)

    def kill_connections(self, address: str) -> None:
        """Break all TCP connections with that host at both ends, which get ECONNABORTED and a RST."""
        run(*self.launcher, "ss", "-K", "dst", address)

    def delete(self) -> None:
        """It and all interfaces in it; what waits for packets waits on."""
        with contextlib.suppress(OSError):
            run("ip", "netns", "delete", self.name)


class VethLink:
    """A wire from the proxy's namespace to a server's."""

    def __init__(self, near: Namespace, far: Namespace, number: int) -> None:
        self._near, self._far, self._name = near, far, f"v{number}"
        self.near_address, self.address = f"10.99.{number}.1", f"10.99.{number}.2"
        near._ip("link", "add", self._name, "type", "veth", "peer", "name", self._name, "netns", far.name)
        near._ip("addr", "add", f"{self.near_address}/30", "dev", self._name)
        far._ip("addr", "add", f"{self.address}/30", "dev", self._name)
        near._ip("link", "set", self._name, "up")
        far._ip("link", "set", self._name, "up")

    def cut(self) -> None:
        """From now on all packets vanish."""
        self._far._ip("link", "set", self._name, "down")

    def mend(self) -> None:
        """They pass again."""
        self._far._ip("link", "set", self._name, "up")

    def netem(self, *effects: str) -> None:
        """`tc netem` on both ends. Skips the test if the kernel has none."""
        need("tc", "iproute2")
        for end in (self._near, self._far):
            try:
                run(*end.launcher, "tc", "qdisc", "replace", "dev", self._name, "root", "netem", *effects)
            except OSError as error:
                if "qdisc kind is unknown" in str(error):
                    pytest.skip("this kernel has no netem (CONFIG_NET_SCH_NETEM)")
                raise

    def close(self) -> None:
        """It goes with its namespaces."""


class TunLink:
    """A wire whose packets pass through this process."""

    def __init__(self, near: Namespace, far: Namespace, number: int) -> None:
        name = f"t{number}"
        self.near_address, self.address = f"10.98.{number}.1", f"10.98.{number}.2"
        self.loss = 0.0
        """Share of the packets that vanish, each way."""
        self.delay = 0.0
        """Seconds that each takes, each way."""
        self._chance = random.Random(number)
        self._loop = asyncio.get_running_loop()
        self._ends = (near.inside(lambda: _tun(name)), far.inside(lambda: _tun(name)))
        near._ip("addr", "add", f"{self.near_address}/30", "dev", name)
        far._ip("addr", "add", f"{self.address}/30", "dev", name)
        near._ip("link", "set", name, "up")
        far._ip("link", "set", name, "up")
        for source, target in (self._ends, self._ends[::-1]):
            self._loop.add_reader(source, self._pass_on, source, target)

    def cut(self) -> None:
        """From now on all packets vanish."""
        self.loss = 1.0

    def mend(self) -> None:
        """They pass again, all of them."""
        self.loss = 0.0

    def _pass_on(self, source: int, target: int) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(64):
                packet = os.read(source, 65_536)
                if self._chance.random() >= self.loss:
                    if self.delay:
                        self._loop.call_later(self.delay, self._write, target, packet)
                    else:
                        self._write(target, packet)

    def _write(self, target: int, packet: bytes) -> None:
        with contextlib.suppress(OSError):  # an end that is down, or closed meanwhile
            os.write(target, packet)

    def close(self) -> None:
        """Its interfaces vanish."""
        for end in self._ends:
            self._loop.remove_reader(end)
            os.close(end)
        self._ends = (-1, -1)


def _tun(name: str) -> int:
    handle = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(handle, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN_NO_PI))
    return handle


class Network:
    """A namespace for the proxy and one for each server, joined by a link each."""

    def __init__(self, *ids: str, tun: bool) -> None:
        self.far: dict[str, Namespace] = {}
        self.links: dict[str, VethLink | TunLink] = {}
        self.near = Namespace("p")
        for number, server_id in enumerate(ids, 1):
            self.far[server_id] = Namespace(f"s{number}")
            link = TunLink if tun else VethLink
            self.links[server_id] = link(self.near, self.far[server_id], number)

    def close(self) -> None:
        """Remove everything."""
        for link in self.links.values():
            link.close()
        for namespace in (self.near, *self.far.values()):
            namespace.delete()


@asynccontextmanager
async def network(*ids: str, tun: bool = False) -> AsyncIterator[Network]:
    """Namespaces, for the test. Skips it where there are none."""
    need_namespaces(tun=tun)
    made = Network(*ids, tun=tun)
    try:
        yield made
    finally:
        made.close()


@asynccontextmanager
async def gateway(namespace: Namespace, address: str) -> AsyncIterator[str]:
    """A port on the machine's loopback whose connections come out in the namespace, to `address` there."""
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    copies: set[asyncio.Task[None]] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner = namespace.inside(socket.socket)
        inner.setblocking(False)
        try:
            await loop.sock_connect(inner, (host, int(port)))
        except OSError:
            inner.close()
            writer.close()
            return
        far_reader, far_writer = await asyncio.open_connection(sock=inner)
        for pair in ((reader, far_writer), (far_reader, writer)):
            task = loop.create_task(copy(*pair), name="gateway")
            copies.add(task)
            task.add_done_callback(copies.discard)

    server = await asyncio.start_server(join, "127.0.0.1", 0)
    try:
        yield "{}:{}".format(*server.sockets[0].getsockname()[:2])
    finally:
        server.close()
        for task in copies:
            task.cancel()
        await asyncio.gather(*copies, return_exceptions=True)
