"""The child processes of the demo. Each is ended by its own id, whatever happens to the demo itself.

Children are in process groups of their own, so that a Ctrl-C in the terminal reaches only the demo, which then ends
them in order. A thread each reads their standard output, so that readiness is a line waited for, never a sleep, and a
child that says more than expected does not block.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

from proxy.errors import DistriChatError
from proxy.settings import ENV_PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import FrameType, TracebackType
    from typing import IO, Self

START_TIMEOUT = 30.0  # seconds to be ready; Python starts in one, a machine that compiles beside it may need many
STOP_TIMEOUT = 15.0  # seconds to end after SIGTERM, all together, before SIGKILL; the servers drain for up to 10
_KILL_TIMEOUT = 5.0  # seconds the kernel may take to end a killed process
_READY = re.compile(r" ready on (\S+)$")
_TAIL = 20  # lines of a child's stderr that are shown


class ChildError(DistriChatError):
    """A child did not start, or died although nobody ended it.

    `headline` says which and how in one line; the whole text adds the end of its stderr, where that was kept.
    """

    def __init__(self, headline: str, last_words: Sequence[str] = ()) -> None:
        super().__init__("\n".join([headline, *(f"  {line}" for line in last_words)]))
        self.headline = headline


class Child:
    """One process. Made by `Children`."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path | None, ended: _Ended, ready: re.Pattern[str]
    ) -> None:
        self.name = name
        self.dismissed = False
        """Whether its end is wanted."""
        self._log = log
        self._ended = ended
        self._ready = ready
        self._announced: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        # The demo configures its children itself; settings meant for a real proxy would only disturb.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
        with contextlib.ExitStack() as stack:
            stderr = stack.enter_context(log.open("wb")) if log is not None else None
            self._process = subprocess.Popen(  # noqa: S603 - our own modules, or a store's server
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
                process_group=0,
                encoding="utf-8",
                errors="replace",
            )
        assert self._process.stdout is not None  # noqa: S101 - for mypy: it is a pipe
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), name=f"read {name}")
        self._reader.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def wait_ready(self, deadline: float) -> str:
        """The address it announces. Raises ChildError when it ends first or `time.monotonic()` reaches `deadline`."""
        try:
            address = self._announced.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise ChildError(f"{self.name} was not ready after {START_TIMEOUT:g} s", self._last_words()) from None
        if address is None:
            raise self.obituary()
        return address

    def kill(self) -> None:
        """End it by SIGKILL. When this returns, the kernel has closed its sockets."""
        self.dismissed = True
        self._process.kill()
        self._process.wait(_KILL_TIMEOUT)

    def terminate(self) -> None:
        """Ask it to end. Nothing happens if it has ended."""
        self.dismissed = True
        self._process.terminate()

    def ended_within(self, seconds: float) -> bool:
        """Whether it has ended, waiting for it so long."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def died(self) -> bool:
        """Whether it ended although nobody wanted it to."""
        return not self.dismissed and self._process.poll() is not None

    def obituary(self) -> ChildError:
        """How it ended. Only after it has, or is about to."""
        status = self._process.wait(_KILL_TIMEOUT)
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return ChildError(f"{self.name} {how}", self._last_words())

    def close(self) -> None:
        """Free what is left of it. Only after it has ended."""
        self._reader.join(_KILL_TIMEOUT)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _read(self, stdout: IO[str]) -> None:
        for line in stdout:
            if match := self._ready.search(line.rstrip()):
                self._announced.put(match[1])
        self._announced.put(None)
        self._ended.put(self)

    def _last_words(self) -> list[str]:
        if self._log is None:
            return []  # they went to our own stderr
        return self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:]


_Ended = queue.SimpleQueue[Child]


class Children:
    """All processes of a demo. A context manager: on the way out, each that still runs is ended."""

    def __init__(self) -> None:
        self._children: list[Child] = []
        self._ended: _Ended = queue.SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in self.stop():
            print(f"{name} did not end within {STOP_TIMEOUT:g} s and was killed", file=sys.stderr)

    def start(self, name: str, module: str, arguments: Sequence[str], log: Path | None) -> Child:
        """Start `python -m module`. Its stderr goes to `log`, or where ours goes when that is None."""
        # -P: a `backend` or `proxy` directory where the user stands must not be taken for ours.
        return self.start_program(name, [sys.executable, "-P", "-m", module, *arguments], log, ready=_READY)

    def start_program(self, name: str, command: Sequence[str], log: Path | None, *, ready: re.Pattern[str]) -> Child:
        """Start another program. It is ready when a line of its standard output matches `ready`, whose group 1 is what
        `wait_ready` returns.
        """
        child = Child(name, command, log, self._ended, ready)
        self._children.append(child)
        return child

    def check(self) -> None:
        """Raises ChildError if one died by itself."""
        for child in self._children:
            if child.died():
                raise child.obituary()

    def wait_for_death(self) -> None:
        """Return never; raises ChildError as soon as one dies by itself. For a caller that a signal interrupts."""
        while True:
            child = self._ended.get()
            if not child.dismissed:
                raise child.obituary()

    def stop(self) -> list[str]:
        """End all, the last started first, and return the names of those that had to be killed."""
        killed = []
        deadline = time.monotonic() + STOP_TIMEOUT
        try:
            for child in reversed(self._children):
                child.terminate()
            for child in reversed(self._children):
                child.ended_within(max(0.0, deadline - time.monotonic()))
        finally:  # also when the user is impatient: a second Ctrl-C ends the waiting
            for child in self._children:
                if not child.ended_within(0):
                    child.kill()
                    killed.append(child.name)
                child.close()
            self._children.clear()
        return killed


@contextlib.contextmanager
def signals_as_exit() -> Iterator[None]:
    """SIGTERM and SIGHUP (a closed terminal) as SystemExit, so that children are ended as on Ctrl-C."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return
    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
