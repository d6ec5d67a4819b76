"""Sessions in an SQLite file that several servers on one machine may share.

A row per message: an append writes its message and a length, however long the chat is. The length stands in the chat's
row, where a server's expectation is checked and raised in the same transaction; that is the whole concurrency control.

The file is in WAL mode, so readers and the one writer do not wait for each other. Durable against the death of a server
at any moment; against a power failure only with `synchronous="full"`, which syncs the disk on every commit.
"""

from __future__ import annotations

import sqlite3
import time
from functools import partial
from typing import TYPE_CHECKING, Literal

from backend.session import Message, Session
from backend.store.base import Appended, AppendResult, Conflict, Duplicate
from backend.store.writer import SqliteWriter

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA_VERSION = 1
_SCHEMA = (
    "CREATE TABLE chats (id INTEGER PRIMARY KEY, chat_id TEXT NOT NULL UNIQUE, length INTEGER NOT NULL)",
    """
    CREATE TABLE messages (
        chat INTEGER NOT NULL REFERENCES chats (id),
        position INTEGER NOT NULL,
        message_id TEXT,
        sender_id TEXT NOT NULL,
        timestamp INTEGER NOT NULL,
        text TEXT NOT NULL,
        PRIMARY KEY (chat, position)
    ) WITHOUT ROWID
    """,
    "CREATE UNIQUE INDEX messages_by_id ON messages (chat, message_id) WHERE message_id IS NOT NULL",
)


class SqliteStore:
    """See `SessionStore`. Made by `open`."""

    def __init__(self, writer: SqliteWriter) -> None:
        self._writer = writer

    @classmethod
    async def open(
        cls, path: Path, *, busy_timeout: float = 5.0, synchronous: Literal["normal", "full"] = "normal"
    ) -> SqliteStore:
        """Opens the file, or makes it if there is none (its directory must be there).

        `busy_timeout`: seconds to wait while another server writes, then the operation fails. Raises StoreError if the
        file cannot be opened, read or written, or is of a newer version of this program.
        """
        writer = SqliteWriter(partial(_connect, path, busy_timeout, synchronous), path)
        await writer.start()
        return cls(writer)

    async def append(self, chat_id: str, message: Message, *, expected_length: int) -> AppendResult:
        """See `SessionStore.append`."""
        return await self._writer.submit(partial(_append, chat_id, message, expected_length), writes=True)

    async def load(self, chat_id: str, *, recent: int, until: int | None = None) -> Session | None:
        """See `SessionStore.load`."""
        return await self._writer.submit(partial(_load, chat_id, recent, until), writes=False)

    async def close(self) -> None:
        """See `SessionStore.close`."""
        await self._writer.close()


def _connect(path: Path, busy_timeout: float, synchronous: str) -> sqlite3.Connection:
    # isolation_level=None: transactions begin and end where the writer says so.
    connection = sqlite3.connect(path, timeout=busy_timeout, isolation_level=None)
    try:
        _use_wal(connection, busy_timeout)
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        _make_schema(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _make_schema(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise sqlite3.DatabaseError(f"made by a newer version of this program (schema {version})")
    if version < SCHEMA_VERSION:
        for statement in _SCHEMA:
            connection.execute(statement)
    # Written even if unchanged: a file that cannot be written is found out now, not by the first message.
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")


def _use_wal(connection: sqlite3.Connection, busy_timeout: float) -> None:
    """Changing the mode does not wait for other connections as everything else does, so it is tried again here."""
    deadline = time.monotonic() + busy_timeout
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
            time.sleep(0.01)  # in the writer's thread
        else:
            return


def _append(chat_id: str, message: Message, expected_length: int, connection: sqlite3.Connection) -> AppendResult:
    row: tuple[int, int] | None = connection.execute(
        "SELECT id, length FROM chats WHERE chat_id = ?", (chat_id,)
    ).fetchone()
    chat, length = row or (None, 0)
    if chat is not None and message.message_id:
        known: tuple[int] | None = connection.execute(
            "SELECT position FROM messages WHERE chat = ? AND message_id = ?", (chat, message.message_id)
        ).fetchone()
        if known is not None:
            return Duplicate(known[0])
    if length != expected_length:
        return Conflict(length)
    if chat is None:
        chat = connection.execute("INSERT INTO chats (chat_id, length) VALUES (?, 1)", (chat_id,)).lastrowid
    else:
        connection.execute("UPDATE chats SET length = ? WHERE id = ?", (length + 1, chat))
    connection.execute(
        "INSERT INTO messages (chat, position, message_id, sender_id, timestamp, text) VALUES (?, ?, ?, ?, ?, ?)",
        (chat, length + 1, message.message_id or None, message.sender_id, message.timestamp, message.text),
    )
    return Appended(length + 1)


def _load(chat_id: str, recent: int, until: int | None, connection: sqlite3.Connection) -> Session | None:
    row: tuple[int, int] | None = connection.execute(
        "SELECT id, length FROM chats WHERE chat_id = ?", (chat_id,)
    ).fetchone()
    if row is None:
        return None
    chat, length = row
    if until is not None:
        if not 1 <= until <= length:
            return None
        length = until
    rows: list[tuple[str, str, int, str | None]] = connection.execute(
        "SELECT text, sender_id, timestamp, message_id FROM messages WHERE chat = ? AND position BETWEEN ? AND ?"
        " ORDER BY position",
        (chat, length - recent + 1, length),
    ).fetchall()
    messages = tuple(Message(text, sender, timestamp, key or "") for text, sender, timestamp, key in rows)
    return Session(chat_id, length, messages)
