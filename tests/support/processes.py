"""What the kernel tells of other processes (proc(5))."""

from __future__ import annotations

import os
from pathlib import Path

ESTABLISHED, LISTEN = "01", "0A"
"""States of a TCP socket, as /proc/net/tcp has them."""


def alive(pid: int) -> bool:
    """Whether there is such a process, if only a zombie."""
    return Path(f"/proc/{pid}").exists()


def stopped(pid: int) -> bool:
    """Whether it stands still, because of SIGSTOP."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "T"


def children(pid: int) -> set[int]:
    """The process ids of its children, zombies included; empty where the kernel does not tell."""
    found: set[int] = set()
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found.update(map(int, file.read_text(encoding="ascii").split()))
        except OSError:  # a thread that has ended meanwhile
            continue
    return found


def command(pid: int) -> list[str]:
    """The words of its command line; none of a zombie."""
    return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").rstrip("\0").split("\0")


def page_faults(pid: int) -> int:
    """Pages that the kernel had to give it, or to give back to it, without reading a disk."""
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[7])


def cpu_seconds(pid: int) -> float:
    """What it has used, user and system, in steps of a tick: 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> int:
    """Bytes of resident memory."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int) -> set[int]:
    """The numbers of the files and sockets it has open."""
    return {int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir()}


def tcp_sockets(pid: int, port: int, state: str) -> int:
    """How many sockets with this local port it has, in this state (IPv4)."""
    mine = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        try:
            mine.add(str(each.readlink()))
        except OSError:  # closed meanwhile
            continue
    lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    return sum(
        int(local.rpartition(":")[2], 16) == port and its_state == state and f"socket:[{inode}]" in mine
        for _, local, _, its_state, *_, inode in (line.split()[:10] for line in lines)
    )
