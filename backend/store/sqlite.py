"""Sessions in an SQLite file that several servers on one machine may share.

A row per message: an append writes its message and a length, however long the chat is. The length stands in the chat's
row, where a server's expectation is checked and raised in the same transaction; that is the whole concurrency control.

The file is in WAL mode, so readers and the one writer do not wait for each other. With `synchronous="full"` a commit is
on the disk when it returns, and group commit (see `writer`) makes many messages share one; with `"normal"` it survives
the death of the server at any moment, but not a power failure.
"""

from __future__ import annotations

import sqlite3
import time
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

from backend.session import NEW, Message, Session, Version
from backend.store.base import (
    Appended,
    AppendResult,
    Conflict,
    Duplicate,
    Extended,
    StoreOptions,
    new_epoch,
)
from backend.store.writer import SqliteWriter

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SCHEMA_VERSION = 2
_SCHEMA = (
    """
    CREATE TABLE chats (
        id INTEGER PRIMARY KEY,
        chat_id TEXT NOT NULL UNIQUE,
        length INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        used INTEGER NOT NULL
    )
    """,
    """
    CREATE TABLE messages (
        chat INTEGER NOT NULL REFERENCES chats (id),
        position INTEGER NOT NULL,
        message_id TEXT,
        sender_id TEXT NOT NULL,
        timestamp INTEGER NOT NULL,
        text TEXT NOT NULL,
        reply TEXT,
        PRIMARY KEY (chat, position)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX messages_by_id ON messages (chat, message_id, position) WHERE message_id IS NOT NULL",
)
_FROM_1 = (
    "ALTER TABLE chats ADD COLUMN epoch INTEGER NOT NULL DEFAULT 1",
    "ALTER TABLE chats ADD COLUMN used INTEGER NOT NULL DEFAULT 0",
    "UPDATE chats SET used = CAST(strftime('%s', 'now') AS INTEGER)",  # their idle time begins now
    "ALTER TABLE messages ADD COLUMN reply TEXT",
    "UPDATE messages SET message_id = 'migrated:' || hex(randomblob(12)) WHERE message_id IS NULL",
    "DROP INDEX messages_by_id",  # it was unique: an id older than the dedupe window may come again
    _SCHEMA[2],
)
_SWEEP_LIMIT = 64
"""Chats ended in one transaction, so that messages do not wait for a great cleaning."""


class SqliteStore:
    """See `SessionStore`. Made by `open`."""

    def __init__(self, writer: SqliteWriter, options: StoreOptions) -> None:
        self._writer = writer
        self._options = options

    @classmethod
    async def open(
        cls,
        path: Path,
        options: StoreOptions | None = None,
        *,
        busy_timeout: float = 5.0,
        synchronous: Literal["normal", "full"] = "full",
        group_commit: int = 512,
    ) -> SqliteStore:
        """Opens the file, or makes it if there is none (its directory must be there).

        `busy_timeout`: seconds to wait while another server writes, then the operation fails. `group_commit`: the most
        operations that share a transaction. Raises StoreError if the file cannot be opened, read or written, or is of a
        newer version of this program.
        """
        options = options or StoreOptions()
        connect = partial(_connect, path, busy_timeout, synchronous, ages=options.session_ttl is not None)
        writer = SqliteWriter(connect, path, batch_limit=group_commit)
        await writer.start()
        return cls(writer, options)

    async def append(self, chat_id: str, message: Message, *, expected: Version) -> AppendResult:
        """See `SessionStore.append`."""
        return await self._writer.submit(partial(_append, self._options, chat_id, message, expected), writes=True)

    async def extend(self, chat_id: str, messages: Sequence[Message], *, whole: bool = False) -> Extended:
        """See `SessionStore.extend`."""
        window = None if whole else self._options.dedupe_window
        return await self._writer.submit(partial(_extend, self._options, chat_id, messages, window), writes=True)

    async def load(self, chat_id: str, *, recent: int, until: int | None = None) -> Session | None:
        """See `SessionStore.load`."""
        return await self._writer.submit(partial(_load, self._options, chat_id, recent, until), writes=False)

    async def set_reply(self, chat_id: str, epoch: int, position: int, reply: str) -> str | None:
        """See `SessionStore.set_reply`."""
        return await self._writer.submit(
            partial(_set_reply, self._options, chat_id, epoch, position, reply), writes=True
        )

    async def end(self, chat_id: str) -> int:
        """See `SessionStore.end`."""
        return await self._writer.submit(partial(_end, self._options, chat_id), writes=True)

    async def sweep(self) -> int:
        """See `SessionStore.sweep`."""
        if self._options.session_ttl is None:
            return 0
        swept = 0
        while freed := await self._writer.submit(partial(_sweep, self._options), writes=True):
            swept += freed
        return swept

    async def close(self) -> None:
        """See `SessionStore.close`."""
        await self._writer.close()


def _connect(path: Path, busy_timeout: float, synchronous: str, *, ages: bool) -> sqlite3.Connection:
    if not path.parent.is_dir():
        raise sqlite3.OperationalError(f"unable to open database file: there is no directory {path.parent}")
    # isolation_level=None: transactions begin and end where the writer says so.
    connection = sqlite3.connect(path, timeout=busy_timeout, isolation_level=None)
    try:
        _use_wal(connection, busy_timeout)
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        _make_schema(connection, ages=ages)
    except BaseException:
        connection.close()
        raise
    return connection


def _make_schema(connection: sqlite3.Connection, *, ages: bool) -> None:
    connection.execute("BEGIN IMMEDIATE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise sqlite3.DatabaseError(f"made by a newer version of this program (schema {version})")
    if version < SCHEMA_VERSION:
        for statement in _FROM_1 if version else _SCHEMA:
            connection.execute(statement)
    if ages:  # who never looks for old chats does not pay for the index
        connection.execute("CREATE INDEX IF NOT EXISTS chats_by_use ON chats (used)")
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


class _Chat(NamedTuple):
    id: int
    length: int
    epoch: int
    used: int

    @property
    def version(self) -> Version:
        return Version(self.epoch, self.length)


def _find(chat_id: str, connection: sqlite3.Connection) -> _Chat | None:
    """The chat, dead or alive: see `_expired`."""
    row = connection.execute("SELECT id, length, epoch, used FROM chats WHERE chat_id = ?", (chat_id,)).fetchone()
    return None if row is None else _Chat._make(row)


def _expired(options: StoreOptions, chat: _Chat) -> bool:
    # A clock that went back makes chats live longer, never shorter.
    return options.session_ttl is not None and options.clock() - chat.used > options.session_ttl


def _find_to_write(options: StoreOptions, chat_id: str, connection: sqlite3.Connection) -> _Chat | None:
    """The chat. One whose time is over is removed, to make room for its successor."""
    chat = _find(chat_id, connection)
    if chat is None or not _expired(options, chat):
        return chat
    _remove(chat.id, connection)
    return None


def _remove(chat: int, connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM messages WHERE chat = ?", (chat,))
    connection.execute("DELETE FROM chats WHERE id = ?", (chat,))


def _known(window: int | None, chat: _Chat, message_id: str, connection: sqlite3.Connection) -> int:
    """The number of the message with this id among the last `window` (None: among all), 0 if there is none."""
    if not message_id:
        return 0
    row: tuple[int] | None = connection.execute(
        "SELECT position FROM messages WHERE chat = ? AND message_id = ? AND position > ?"
        " ORDER BY position DESC LIMIT 1",
        (chat.id, message_id, 0 if window is None else chat.length - window),
    ).fetchone()
    return 0 if row is None else row[0]


def _add(
    options: StoreOptions, chat_id: str, chat: _Chat | None, message: Message, connection: sqlite3.Connection
) -> _Chat:
    now = int(options.clock())
    if chat is None:
        epoch = new_epoch()
        row = connection.execute(
            "INSERT INTO chats (chat_id, length, epoch, used) VALUES (?, 1, ?, ?)", (chat_id, epoch, now)
        ).lastrowid
        assert row is not None  # noqa: S101 - an INSERT has one
        chat = _Chat(row, 1, epoch, now)
    else:
        chat = chat._replace(length=chat.length + 1, used=now)
        connection.execute("UPDATE chats SET length = ?, used = ? WHERE id = ?", (chat.length, now, chat.id))
    connection.execute(
        "INSERT INTO messages (chat, position, message_id, sender_id, timestamp, text, reply)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            *(chat.id, chat.length, message.message_id or None),
            *(message.sender_id, message.timestamp, message.text, message.reply),
        ),
    )
    return chat


def _append(
    options: StoreOptions, chat_id: str, message: Message, expected: Version, connection: sqlite3.Connection
) -> AppendResult:
    chat = _find_to_write(options, chat_id, connection)
    if chat is not None and (known := _known(options.dedupe_window, chat, message.message_id, connection)):
        return Duplicate(known, chat.epoch)
    version = NEW if chat is None else chat.version
    if version != expected:
        return Conflict(version)
    chat = _add(options, chat_id, chat, message, connection)
    return Appended(chat.length, chat.epoch)


def _extend(
    options: StoreOptions,
    chat_id: str,
    messages: Sequence[Message],
    window: int | None,
    connection: sqlite3.Connection,
) -> Extended:
    chat = _find_to_write(options, chat_id, connection)
    before = NEW if chat is None else chat.version
    for message in messages:
        if chat is None or not _known(window, chat, message.message_id, connection):
            chat = _add(options, chat_id, chat, message, connection)
    return Extended(before, NEW if chat is None else chat.version)


def _load(
    options: StoreOptions, chat_id: str, recent: int, until: int | None, connection: sqlite3.Connection
) -> Session | None:
    chat = _find(chat_id, connection)
    if chat is None or _expired(options, chat):
        return None
    length = chat.length if until is None else until
    if not 1 <= length <= chat.length:
        return None
    rows: list[tuple[str, str, int, str | None, str | None]] = connection.execute(
        "SELECT text, sender_id, timestamp, message_id, reply FROM messages"
        " WHERE chat = ? AND position BETWEEN ? AND ? ORDER BY position",
        (chat.id, length - recent + 1, length),
    ).fetchall()
    messages = tuple(Message(text, sender, timestamp, key or "", reply) for text, sender, timestamp, key, reply in rows)
    return Session(chat_id, length, messages, chat.epoch)


def _set_reply(
    options: StoreOptions, chat_id: str, epoch: int, position: int, reply: str, connection: sqlite3.Connection
) -> str | None:
    chat = _find(chat_id, connection)
    if chat is None or chat.epoch != epoch or _expired(options, chat):
        return None
    where = (chat.id, position)
    connection.execute(
        "UPDATE messages SET reply = ? WHERE chat = ? AND position = ? AND reply IS NULL", (reply, *where)
    )
    row: tuple[str] | None = connection.execute(
        "SELECT reply FROM messages WHERE chat = ? AND position = ?", where
    ).fetchone()
    return None if row is None else row[0]


def _end(options: StoreOptions, chat_id: str, connection: sqlite3.Connection) -> int:
    chat = _find_to_write(options, chat_id, connection)
    if chat is None:
        return 0
    _remove(chat.id, connection)
    return chat.length


def _sweep(options: StoreOptions, connection: sqlite3.Connection) -> int:
    assert options.session_ttl is not None  # noqa: S101 - else nobody asks
    rows: list[tuple[int]] = connection.execute(
        "SELECT id FROM chats WHERE used < ? LIMIT ?",
        (options.clock() - options.session_ttl, _SWEEP_LIMIT),
    ).fetchall()
    for (chat,) in rows:
        _remove(chat, connection)
    return len(rows)
