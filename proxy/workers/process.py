"""One worker process, as the parent sees it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.forwarding.stats import StatsSnapshot
from proxy.workers.channel import Channel
from proxy.workers.messages import Load

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

IDLE = Load({}, 0, {}, {}, {})


def _safe_path() -> list[str]:
    """`-m` looks into the working directory first, where a `proxy` or `logging.py` of somebody else may be. A worker
    does so only if we do.
    """
    try:
        looked_into = {"", str(Path.cwd())}
    except OSError:  # it is gone
        looked_into = {""}
    return [] if looked_into & set(sys.path) else ["-P"]


class WorkerProcess:
    """A fresh interpreter: a fork would copy the threads' locks of libraries in the middle of whatever they do."""

    def __init__(self, number: int, process: subprocess.Popen[bytes], channel: Channel) -> None:
        self.number = number
        self.pid = process.pid
        self.channel = channel
        self.load = IDLE
        self.numbers = StatsSnapshot()
        """What it told last."""
        self.elsewhere: object = None
        """What it was told last about the load of the others."""
        self.generation = 0
        """Of the settings that it carries calls by; 0: not yet."""
        self.informed = False
        """It has been told what holds, and hears of every change from then on: in order, whether it is ready or not."""
        self.admitted = False
        """It was told to serve."""
        self.serving = False
        self.stopped = False
        """It accepts nobody any more."""
        self.seen_at = 0.0
        """When it was last heard, or else started."""
        self._process = process

    @classmethod
    async def start(
        cls, number: int, sockets: Sequence[socket.socket], on_caught_up: Callable[[WorkerProcess], None]
    ) -> WorkerProcess:
        """Start one that listens on these, which it inherits. `on_caught_up`: see `Channel`. Raises OSError."""
        ours, theirs = socket.socketpair()
        descriptors = [theirs.fileno(), *(each.fileno() for each in sockets)]
        command = [sys.executable, *(f"-W{each}" for each in sys.warnoptions), *_safe_path(), "-m", "proxy.workers"]
        try:
            process = subprocess.Popen(  # noqa: ASYNC220, S603 - ourselves; vfork and exec take milliseconds
                [*command, f"worker-{number}", *map(str, descriptors)],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # whoever reads ours waits for our end, not for theirs
                start_new_session=True,  # what a terminal sends to all, it shall not get
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)  # noqa: FBT003 - the standard library's
        holder: list[WorkerProcess] = []
        channel = await Channel.open(ours, lambda: on_caught_up(holder[0]))
        holder.append(cls(number, process, channel))
        return holder[0]

    async def ended(self) -> int:
        """Its exit status, negative for a signal, once it has ended. Raises OSError: no file descriptor is left to see
        its end by.
        """
        if (status := self._process.poll()) is not None:
            return status
        loop = asyncio.get_running_loop()
        over = asyncio.Event()
        descriptor = os.pidfd_open(self.pid)
        try:
            loop.add_reader(descriptor, over.set)
            await over.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        return self._process.wait()

    def kill(self) -> None:
        """End it at once; `ended` tells when it has. Nothing happens if it has ended. A signal handler may call it.

        That is not waited for here: the kernel first takes back all that the process had, which takes a good part of a
        second for gigabytes of memory, and the event loop would stand still.
        """
        self._process.kill()

    async def killed(self) -> None:
        """As `kill`, and returns when it has ended, which needs a thread, but no file descriptor."""
        self.kill()
        await asyncio.to_thread(self._process.wait)

    def __str__(self) -> str:
        return f"worker {self.number} (process {self.pid})"


def why_ended(status: int) -> str:
    """What an exit status says, for people."""
    if status < 0:
        try:
            return f"was ended by {signal.Signals(-status).name}"
        except ValueError:
            return f"was ended by signal {-status}"
    return f"ended with status {status}"
