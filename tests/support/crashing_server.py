"""The reference server, which kills itself with SIGKILL at one point of an append: `python -m
tests.support.crashing_server POINT COUNT [flags of districhat-backend]`.

POINT, the COUNT-th time that it is passed (counted in steps of the store, each of which may carry many messages):

    before   a message is about to be given to the store
    inside   SQLite: its transaction is complete but for the COMMIT; Redis: it was sent, the answer is not read
    after    the store has it, and nobody in the server knows
    answer   the server knows, and the client does not
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from typing import Any

import redis.asyncio.connection

import backend.store.sqlite
from backend.cli import main
from backend.service import ChatService
from backend.store.redis import RedisStore
from backend.store.sqlite import SqliteStore
from backend.store.writer import SqliteWriter

POINTS = ("before", "inside", "after", "answer")


class Fuse:
    """Kills the process when it is passed for the `count`-th time."""

    def __init__(self, count: int) -> None:
        self._left = count

    def pass_by(self) -> None:
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str, fuse: Fuse) -> None:
    """Put the fuse into both stores, or into the service."""
    if point == "before":
        for store in (SqliteStore, RedisStore):
            _before(store, "append", fuse)
    elif point == "inside":
        _inside_sqlite(fuse)
        _before(redis.asyncio.connection.AbstractConnection, "read_response", fuse)
    elif point == "after":
        _after_sqlite(fuse)
        _after(RedisStore, "_send", fuse)
    else:
        _after(ChatService, "_apply", fuse)


def _before(owner: type, name: str, fuse: Fuse) -> None:
    original = getattr(owner, name)

    async def replacement(self: object, *arguments: Any, **named: Any) -> Any:
        fuse.pass_by()
        return await original(self, *arguments, **named)

    setattr(owner, name, replacement)


def _after(owner: type, name: str, fuse: Fuse) -> None:
    original = getattr(owner, name)

    async def replacement(self: object, *arguments: Any, **named: Any) -> Any:
        result = await original(self, *arguments, **named)
        fuse.pass_by()
        return result

    setattr(owner, name, replacement)


def _inside_sqlite(fuse: Fuse) -> None:
    connect = backend.store.sqlite._connect

    def replacement(*arguments: Any, **named: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **named)
        # Called when a statement begins.
        connection.set_trace_callback(lambda statement: fuse.pass_by() if statement == "COMMIT" else None)
        return connection

    backend.store.sqlite._connect = replacement


def _after_sqlite(fuse: Fuse) -> None:
    tell = SqliteWriter._tell

    def replacement(self: SqliteWriter, *arguments: Any) -> None:
        fuse.pass_by()
        tell(self, *arguments)

    SqliteWriter._tell = replacement  # type: ignore[method-assign] - only here


if __name__ == "__main__":
    arm(sys.argv[1], Fuse(int(sys.argv[2])))
    sys.exit(main(sys.argv[3:]))
