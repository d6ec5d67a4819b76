"""SIGHUP before there is anybody to act on it.

By default it ends a process, and a service manager may send one as soon as a process is there: it asks for a reload of
the configuration, so the proxy notes it from its first moment, and does it when it can.
"""

from __future__ import annotations

import signal

_noted: list[int] = []


def note_from_now_on() -> None:
    """Only note SIGHUP, until another handler is set."""
    signal.signal(signal.SIGHUP, lambda number, _frame: _noted.append(number))


def noted() -> bool:
    """Whether there was one."""
    return bool(_noted)
