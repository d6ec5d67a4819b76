"""One suite for every store, then what only SQLite can do or suffer."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from typing import TYPE_CHECKING

import pytest

from backend.errors import StoreError
from backend.session import Message, Session
from backend.store.base import Appended, Conflict, Duplicate
from backend.store.memory import MemoryStore
from backend.store.sqlite import SqliteStore
from backend.store.url import open_store
from backend.store.writer import SqliteWriter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from backend.store.base import SessionStore


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SessionStore]:
    url = "memory:" if request.param == "memory" else f"sqlite:///{tmp_path}/sessions.db"
    store = await open_store(url, busy_timeout=5, synchronous="normal")
    assert isinstance(store, MemoryStore if request.param == "memory" else SqliteStore)
    yield store
    await store.close()


async def test_messages_come_back_as_they_were(store: SessionStore) -> None:
    messages = (Message("hi", "ann", 1700000000, "id-1"), Message("", "", -1), Message("\0 ünï 🦀", "ben", 2**63 - 1))
    for length, message in enumerate(messages):
        assert await store.append("chat", message, expected_length=length) == Appended(length + 1)
    assert await store.load("chat", recent=10) == Session("chat", 3, messages)


async def test_load_takes_the_last_messages_up_to_any_point(store: SessionStore) -> None:
    messages = [Message(str(number)) for number in range(5)]
    for length, message in enumerate(messages):
        await store.append("chat", message, expected_length=length)
    assert await store.load("chat", recent=2) == Session("chat", 5, (messages[3], messages[4]))
    assert await store.load("chat", recent=2, until=3) == Session("chat", 3, (messages[1], messages[2]))
    assert await store.load("chat", recent=2, until=6) is None
    assert await store.load("chat", recent=2, until=0) is None
    assert await store.load("other", recent=2) is None


async def test_append_is_refused_when_the_chat_has_another_length(store: SessionStore) -> None:
    assert await store.append("chat", Message("x"), expected_length=1) == Conflict(0)
    await store.append("chat", Message("x"), expected_length=0)
    assert await store.append("chat", Message("x"), expected_length=0) == Conflict(1)
    session = await store.load("chat", recent=9)
    assert session is not None
    assert session.length == 1


async def test_a_known_message_id_is_told_whatever_the_expected_length(store: SessionStore) -> None:
    await store.append("chat", Message("x", message_id="1"), expected_length=0)
    await store.append("chat", Message("y", message_id="2"), expected_length=1)
    assert await store.append("chat", Message("x", message_id="1"), expected_length=2) == Duplicate(1)
    assert await store.append("chat", Message("x", message_id="2"), expected_length=0) == Duplicate(2)
    assert await store.append("other", Message("x", message_id="1"), expected_length=0) == Appended(1)


@pytest.mark.parametrize("chat_id", ["a\0b", "é", "e\u0301", "É", "🦀" * 1024, " a", "a ", "a' OR 1=1 --"])
async def test_a_chat_id_is_any_text_and_stands_for_itself_only(store: SessionStore, chat_id: str) -> None:
    for other in ("a", "e", "é", "e\u0301", "a\0", "🦀"):
        if other != chat_id:
            await store.append(other, Message("other"), expected_length=0)
    assert await store.load(chat_id, recent=1) is None
    assert await store.append(chat_id, Message("x"), expected_length=0) == Appended(1)
    assert await store.load(chat_id, recent=1) == Session(chat_id, 1, (Message("x"),))


async def test_a_closed_store_says_so_and_may_be_closed_again(store: SessionStore) -> None:
    await store.close()
    await store.close()
    with pytest.raises(StoreError, match="the store is closed"):
        await store.load("chat", recent=1)
    with pytest.raises(StoreError, match="the store is closed"):
        await store.append("chat", Message("x"), expected_length=0)


async def test_close_finishes_what_was_called_before(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "a.db")
    async with asyncio.TaskGroup() as tasks:
        calls = [tasks.create_task(store.append(str(number), Message("x"), expected_length=0)) for number in range(100)]
        tasks.create_task(store.close())
    assert all(call.result() == Appended(1) for call in calls)


async def test_two_stores_on_one_file_see_each_other(tmp_path: Path) -> None:
    first, second = [await SqliteStore.open(tmp_path / "a.db") for _ in range(2)]
    await first.append("chat", Message("x"), expected_length=0)
    assert await second.append("chat", Message("y"), expected_length=0) == Conflict(1)
    assert await second.append("chat", Message("y"), expected_length=1) == Appended(2)
    assert await first.load("chat", recent=2) == Session("chat", 2, (Message("x"), Message("y")))
    await first.close()
    await second.close()


async def test_servers_may_make_the_same_file_at_the_same_time(tmp_path: Path) -> None:
    stores = await asyncio.gather(*(SqliteStore.open(tmp_path / "a.db") for _ in range(8)))
    results = await asyncio.gather(*(store.append("chat", Message("x"), expected_length=0) for store in stores))
    assert sorted(map(str, results)) == sorted(map(str, [Appended(1), *[Conflict(1)] * 7]))
    for store in stores:
        await store.close()


async def test_a_file_locked_by_another_program_is_an_error_and_passes(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    store = await SqliteStore.open(path, busy_timeout=0)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match=r"a\.db: database is locked"):
        await store.append("chat", Message("x"), expected_length=0)
    assert await store.load("chat", recent=1) is None
    other.execute("ROLLBACK")
    other.close()
    assert await store.append("chat", Message("x"), expected_length=0) == Appended(1)
    await store.close()


def _not_a_database(path: Path) -> None:
    path.write_text("not a database, but a text that is long enough to be taken for the head of one" * 10)


def _newer_schema(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_not_a_database, "file is not a database"),
        (_newer_schema, r"made by a newer version of this program \(schema 99\)"),
        (lambda path: path.mkdir(), "unable to open database file"),
    ],
)
async def test_a_file_that_cannot_be_the_store_is_refused(tmp_path: Path, make: object, reason: str) -> None:
    assert callable(make)
    make(tmp_path / "a.db")
    with pytest.raises(StoreError, match=reason):
        await SqliteStore.open(tmp_path / "a.db")


async def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="unable to open database file"):
        await SqliteStore.open(tmp_path / "missing" / "a.db")


@pytest.mark.parametrize(("synchronous", "value"), [("normal", 1), ("full", 2)])
async def test_synchronous_reaches_the_connection(tmp_path: Path, synchronous: str, value: int) -> None:
    store = await SqliteStore.open(tmp_path / "a.db", synchronous=synchronous)  # type: ignore[arg-type]
    assert await store._writer.submit(lambda db: db.execute("PRAGMA synchronous").fetchone(), writes=False) == (value,)
    await store.close()


class Recorder:
    """A writer's connection whose statements are kept, and a gate that holds the writer's thread."""

    def __init__(self, path: Path) -> None:
        self.statements: list[str] = []
        self.gate = threading.Event()
        self.writer = SqliteWriter(self._connect, path)
        self._path = path

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None)
        connection.execute("CREATE TABLE numbers (number)")
        connection.set_trace_callback(self.statements.append)
        return connection

    def hold(self, connection: sqlite3.Connection) -> None:
        assert self.gate.wait(60)

    @staticmethod
    def insert(connection: sqlite3.Connection) -> int | None:
        return connection.execute("INSERT INTO numbers VALUES (1)").lastrowid

    @staticmethod
    def fail(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO nowhere VALUES (1)")


async def test_jobs_that_queue_up_share_one_commit(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.db")
    writer = recorder.writer
    await writer.start()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(writer.submit(recorder.hold, writes=False))
        jobs = [tasks.create_task(writer.submit(recorder.insert, writes=True)) for _ in range(20)]
        last = tasks.create_task(writer.submit(lambda db: recorder.gate.is_set(), writes=False))
        await asyncio.sleep(0)  # every task has submitted
        recorder.gate.set()
    assert last.result()
    assert [job.result() for job in jobs] == list(range(1, 21))
    # The held job's transaction, and one more; or one for all, if they were there when the thread first looked.
    assert recorder.statements.count("COMMIT") <= 2
    await writer.close()


async def test_a_failing_job_takes_its_transaction_with_it_and_not_the_writer(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.db")
    writer = recorder.writer
    recorder.gate.set()
    await writer.start()
    with pytest.raises(StoreError, match="no such table: nowhere"):
        await writer.submit(recorder.fail, writes=True)
    assert recorder.statements[-1] == "ROLLBACK"
    assert await writer.submit(recorder.insert, writes=True) == 1
    await writer.close()
