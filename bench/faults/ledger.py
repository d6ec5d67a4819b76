"""The ledger: what the servers did, from their own hands, whatever any proxy or client believes.

One file for all servers of a run. Each line is appended by one write to a file opened with O_APPEND, so lines of
several processes do not mix, and what was written before a SIGKILL stays. Times are of CLOCK_MONOTONIC, which all
processes of a machine share.

    S 1234.567890 bench-1 u-17 chat-042      bench-1 began to run call u-17 of chat-042
    F 1234.587890 bench-1 u-17 chat-042      ... and finished it: the response was handed to gRPC
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

START = "S"
FINISH = "F"


def line(event: str, time: float, server: str, call: str, chat: str) -> bytes:
    """One entry. No part may contain white space."""
    return f"{event} {time:.6f} {server} {call} {chat}\n".encode()


@dataclass(frozen=True)
class Execution:
    """One time that a server ran a call."""

    server: str
    started: float
    finished: float | None
    """None: it was killed or cancelled before."""


def read(lines: Iterable[str]) -> dict[str, list[Execution]]:
    """All executions by call id, in the order of their starts.

    A finish belongs to the latest unfinished start of the call on that server. Ends quietly at a torn last line
    (the machine lost a write); ValueError for any other line that is none.
    """
    found: dict[str, list[Execution]] = {}
    for text in lines:
        if not text.endswith("\n"):
            break
        event, time, server, call, _ = text.split()
        executions = found.setdefault(call, [])
        if event == START:
            executions.append(Execution(server, float(time), None))
        elif event == FINISH:
            _finish(executions, server, float(time))
        else:
            raise ValueError(f"no ledger entry: {text!r}")
    return found


def _finish(executions: list[Execution], server: str, time: float) -> None:
    for index in reversed(range(len(executions))):
        execution = executions[index]
        if execution.server == server and execution.finished is None:
            executions[index] = Execution(server, execution.started, time)
            return
    raise ValueError(f"{server} finished what it never started, at {time}")
