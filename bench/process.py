"""Starting, pinning and ending the processes of a benchmark, by process id.

Each child is the leader of a session of its own: a Ctrl-C at the terminal reaches only us, we end the children in
order, and a child's own workers end with it. Output goes to a file, never to a pipe that somebody would have to drain.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from bench.errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

ROOT = Path(__file__).resolve().parent.parent
"""Children run here, so that `-m bench.peers...` is found without being installed."""

_POLL = 0.02
_STOP_GRACE = 3.0
_LOG_TAIL = 1500


def free_port() -> int:
    """A loopback port nobody listens on right now. Somebody may take it before it is used; the start then fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def pinned(cpus: frozenset[int]) -> Iterator[None]:
    """Processes started inside inherit these CPUs, with all their threads from the first instruction on."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Process:
    """A child process on given CPUs. As a context manager it is ended on the way out, whatever happened inside."""

    def __init__(self, name: str, command: Sequence[str], cpus: frozenset[int], log: Path) -> None:
        self.name = name
        self.log = log
        with log.open("wb") as output, pinned(cpus):
            try:
                self._popen = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=ROOT,
                    start_new_session=True,
                )
            except OSError as error:
                raise BenchError(f"{name} did not start: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Also the id of its session and process group; not reused before `stop` has reaped it."""
        return self._popen.pid

    def output(self) -> str:
        """Everything it has printed so far, stdout and stderr."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait(self, timeout: float) -> int:
        """Its exit code. BenchError if it still runs after `timeout` seconds (it is left running: stop it)."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise BenchError(f"{self.name} still ran after {timeout:.0f} s") from None

    def wait_ready(self, port: int, line: str | None, timeout: float) -> None:
        """Return once it printed `line` (None: skip this) and accepts on `port`; BenchError if it ends or is late."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self._popen.poll() is not None:
                raise BenchError(f"{self.name} ended with {self._popen.returncode} at start: {self._last_words()}")
            if (line is None or line in self.output()) and _accepts(port):
                return
            time.sleep(_POLL)
        raise BenchError(f"{self.name} was not ready on port {port} after {timeout:.0f} s: {self._last_words()}")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal. Does nothing for one that has ended."""
        self._popen.send_signal(number)

    def check_alive(self) -> None:
        """BenchError with its last output if it has ended."""
        if self._popen.poll() is not None:
            raise BenchError(f"{self.name} ended with {self._popen.returncode}: {self._last_words()}")

    def stop(self) -> None:
        """End it: SIGTERM, then SIGKILL for it and what it started. Does nothing for one that has ended."""
        if self._popen.poll() is None:
            self._popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(_STOP_GRACE)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # its session, ours to end; also workers that outlived it
        self._popen.wait()

    def _last_words(self) -> str:
        return self.output().strip()[-_LOG_TAIL:] or "(no output)"


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False
