"""CPU time and memory of other processes, and which CPU does what."""

from __future__ import annotations

import ctypes
import os
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cores:
    """The split of the machine: the proxy under test alone on one core, everything else beside it."""

    proxy: frozenset[int]
    rest: frozenset[int]

    @classmethod
    def split(cls, allowed: set[int]) -> Cores:
        """The highest allowed CPU for the proxy (interrupts tend to be on the lowest). One CPU: both share it."""
        *rest, proxy = sorted(allowed)
        return cls(frozenset({proxy}), frozenset(rest or [proxy]))

    @property
    def shared(self) -> bool:
        """Whether the proxy has no core of its own, which makes calls/s (not CPU per call) meaningless."""
        return self.proxy == self.rest


def cpu_ns(pid: int) -> int:
    """CPU nanoseconds, user and system, that a process and its living descendants have used.

    Read from the kernel's process clock (clock_getcpuclockid(3)): the same account as utime + stime of
    /proc/PID/stat, which has ticks of 10 ms, and unlike the sum over task/*/schedstat it keeps the time of threads
    that have ended. Descendants count because nginx or HAProxy do their work in children.
    """
    clock = ctypes.c_int()
    error = _libc.clock_getcpuclockid(pid, ctypes.byref(clock))
    if error:
        raise ProcessLookupError(error, f"no CPU clock of process {pid}: {os.strerror(error)}")
    return time.clock_gettime_ns(clock.value) + sum(cpu_ns(child) for child in _children(pid))


def memory_mib(pid: int) -> float:
    """MiB of memory of a process and its living descendants, what they share counted once (PSS, proc(5))."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    (kib,) = (line.split()[1] for line in rollup.splitlines() if line.startswith("Pss:"))
    return int(kib) / 1024 + sum(memory_mib(child) for child in _children(pid))


_libc = ctypes.CDLL(None)


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]
