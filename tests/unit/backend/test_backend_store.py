"""One suite for every store (Redis: the real one), then what only SQLite can do or suffer."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from typing import TYPE_CHECKING

import pytest

from backend.errors import StoreError
from backend.session import NEW, Message, Session, Version
from backend.store.base import Appended, Conflict, Duplicate, StoreOptions
from backend.store.memory import MemoryStore
from backend.store.redis import RedisStore
from backend.store.sqlite import SqliteStore
from backend.store.url import open_store
from backend.store.writer import SqliteWriter
from tests.support.polling import eventually
from tests.support.redis_server import redis_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from backend.store.base import SessionStore

    Opener = Callable[..., Awaitable[SessionStore]]

KINDS = {"memory": MemoryStore, "sqlite": SqliteStore, "redis": RedisStore}
WINDOW = 8


class Clock:
    """Unix seconds, set by hand."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=list(KINDS))
async def opener(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Opener]:
    """Opens stores of one kind on the same data, for SQLite and Redis; all are closed at the end."""
    opened: list[SessionStore] = []

    async def open_one(**options: object) -> SessionStore:
        store = await open_store(url, StoreOptions(**{"dedupe_window": WINDOW, **options}))  # type: ignore[arg-type]
        assert isinstance(store, KINDS[request.param])
        opened.append(store)
        return store

    if request.param == "redis":
        async with redis_server(tmp_path) as server:
            url = server.url
            yield open_one
            for store in opened:
                await store.close()
        return
    url = "memory:" if request.param == "memory" else f"sqlite:///{tmp_path}/sessions.db"
    yield open_one
    for store in opened:
        await store.close()


@pytest.fixture
async def store(opener: Opener) -> SessionStore:
    return await opener()


async def fill(store: SessionStore, chat_id: str, *messages: Message) -> Version:
    """Appends messages, one after another. Returns the version after them."""
    version = NEW
    for message in messages:
        result = await store.append(chat_id, message, expected=version)
        assert isinstance(result, Appended)
        assert result.position == version.length + 1
        version = Version(result.epoch, result.position)
    return version


async def messages_of(store: SessionStore, chat_id: str) -> tuple[Message, ...]:
    session = await store.load(chat_id, recent=1_000_000)
    return () if session is None else session.recent


def named(*ids: str) -> list[Message]:
    return [Message(f"text {id_}", message_id=id_) for id_ in ids]


async def test_messages_come_back_as_they_were(store: SessionStore) -> None:
    messages = (
        Message("hi", "ann", 1700000000, "id-1"),
        Message("", "", -1),
        Message("\0 ünï 🦀", "ben", 2**63 - 1, "\0 ü", "a reply 🦀"),
        Message("x" * 3_000_000, reply=""),
    )
    version = await fill(store, "chat", *messages)
    assert await store.load("chat", recent=10) == Session("chat", 4, messages, version.epoch)


async def test_load_takes_the_last_messages_up_to_any_point(store: SessionStore) -> None:
    messages = [Message(str(number)) for number in range(5)]
    epoch = (await fill(store, "chat", *messages)).epoch
    assert await store.load("chat", recent=2) == Session("chat", 5, (messages[3], messages[4]), epoch)
    assert await store.load("chat", recent=2, until=3) == Session("chat", 3, (messages[1], messages[2]), epoch)
    assert await store.load("chat", recent=9, until=1) == Session("chat", 1, (messages[0],), epoch)
    assert await store.load("chat", recent=2, until=6) is None
    assert await store.load("chat", recent=2, until=0) is None
    assert await store.load("other", recent=2) is None


async def test_append_is_refused_when_the_chat_is_in_another_version(store: SessionStore) -> None:
    assert await store.append("chat", Message("x"), expected=Version(7, 1)) == Conflict(NEW)
    version = await fill(store, "chat", Message("x"))
    assert await store.append("chat", Message("y"), expected=NEW) == Conflict(version)
    assert await store.append("chat", Message("y"), expected=Version(version.epoch, 2)) == Conflict(version)
    assert await store.append("chat", Message("y"), expected=Version(version.epoch + 1, 1)) == Conflict(version)
    assert await messages_of(store, "chat") == (Message("x"),)


async def test_a_chat_begun_again_is_another_even_at_the_same_length(store: SessionStore) -> None:
    before = await fill(store, "chat", Message("old"))
    assert await store.end("chat") == 1
    after = await fill(store, "chat", Message("new"))
    assert before.epoch != after.epoch
    assert await store.append("chat", Message("x"), expected=before) == Conflict(after)


async def test_a_known_message_id_is_told_whatever_the_expected_version(store: SessionStore) -> None:
    version = await fill(store, "chat", *named("1", "2"))
    for expected in (version, NEW, Version(5, 5)):
        assert await store.append("chat", *named("1"), expected=expected) == Duplicate(1, version.epoch)
        assert await store.append("chat", *named("2"), expected=expected) == Duplicate(2, version.epoch)
    assert isinstance(await store.append("other", *named("1"), expected=NEW), Appended)


async def test_a_message_id_is_known_within_the_window_and_new_after_it(store: SessionStore) -> None:
    """The oldest of the last eight is known, the one before it may come again."""
    version = await fill(store, "chat", *named(*map(str, range(WINDOW + 1))))
    assert await store.append("chat", *named("1"), expected=version) == Duplicate(2, version.epoch)
    assert await store.append("chat", *named("0"), expected=version) == Appended(WINDOW + 2, version.epoch)
    assert await store.append("chat", *named("0"), expected=version) == Duplicate(WINDOW + 2, version.epoch)
    version = Version(version.epoch, WINDOW + 2)
    assert await store.append("chat", *named("1"), expected=version) == Appended(WINDOW + 3, version.epoch)


async def test_a_message_without_an_id_is_always_new(store: SessionStore) -> None:
    await fill(store, "chat", Message("x"), Message("x"), *[Message("x")] * WINDOW)


async def test_extend_adds_what_the_chat_does_not_have_in_order(store: SessionStore) -> None:
    version = await fill(store, "chat", *named("a", "b"))
    result = await store.extend("chat", named("b", "c", "a", "d", "c"))
    assert (result.before, result.after) == (version, Version(version.epoch, 4))
    assert await messages_of(store, "chat") == tuple(named("a", "b", "c", "d"))
    assert (await store.extend("chat", named("c", "d"))).after == result.after
    assert (await store.extend("chat", [])).after == result.after


async def test_extend_begins_a_chat_and_keeps_replies(store: SessionStore) -> None:
    messages = (Message("x", message_id="1", reply="answer"), Message("y", message_id="2"))
    result = await store.extend("chat", messages)
    assert result.before == NEW
    assert result.after.length == 2
    assert await store.load("chat", recent=9) == Session("chat", 2, messages, result.after.epoch)
    assert (await store.extend("none", [])).after == NEW


async def test_extend_may_look_for_ids_in_all_of_the_chat(store: SessionStore) -> None:
    """A session of another server is united with ours, however long ago they parted."""
    ids = list(map(str, range(3 * WINDOW)))
    await fill(store, "chat", *named(*ids))
    assert (await store.extend("chat", named(*ids, "new"), whole=True)).after.length == 3 * WINDOW + 1
    assert (await store.extend("chat", named("0"))).after.length == 3 * WINDOW + 2


async def test_a_reply_is_kept_once_and_the_first_one_stays(store: SessionStore) -> None:
    version = await fill(store, "chat", *named("1", "2"))
    assert await store.set_reply("chat", version.epoch, 1, "first ü") == "first ü"
    assert await store.set_reply("chat", version.epoch, 1, "second") == "first ü"
    one, two = await messages_of(store, "chat")
    assert (one.reply, two.reply) == ("first ü", None)
    assert await store.set_reply("chat", version.epoch, 2, "") == ""
    assert await store.set_reply("chat", version.epoch, 3, "x") is None
    assert await store.set_reply("chat", version.epoch, 0, "x") is None
    assert await store.set_reply("chat", version.epoch + 1, 2, "x") is None
    assert await store.set_reply("other", version.epoch, 1, "x") is None
    assert await store.load("other", recent=1) is None


async def test_end_frees_the_chat_and_no_other(store: SessionStore) -> None:
    await fill(store, "chat", *named("1", "2"))
    await fill(store, "other", *named("1"))
    assert await store.end("chat") == 2
    assert await store.end("chat") == 0
    assert await store.load("chat", recent=1) is None
    assert len(await messages_of(store, "other")) == 1
    await fill(store, "chat", *named("1"))  # and its message ids are free again
    assert await messages_of(store, "chat") == tuple(named("1"))


CHAT_IDS = ["a\0b", "é", "e\u0301", "É", "🦀" * 1024, " a", "a ", "a' OR 1=1 --", "{a}", "a:b"]


@pytest.mark.parametrize("chat_id", CHAT_IDS)
async def test_a_chat_id_is_any_text_and_stands_for_itself_only(store: SessionStore, chat_id: str) -> None:
    for other in ("a", "e", "é", "e\u0301", "a\0", "🦀"):
        if other != chat_id:
            await fill(store, other, Message("other"))
    assert await store.load(chat_id, recent=1) is None
    epoch = (await fill(store, chat_id, Message("x"))).epoch
    assert await store.load(chat_id, recent=1) == Session(chat_id, 1, (Message("x"),), epoch)


async def test_a_closed_store_says_so_and_may_be_closed_again(store: SessionStore) -> None:
    await store.close()
    await store.close()
    for call in (
        store.load("chat", recent=1),
        store.append("chat", Message("x"), expected=NEW),
        store.extend("chat", [Message("x")]),
        store.set_reply("chat", 1, 1, "x"),
        store.end("chat"),
    ):
        with pytest.raises(StoreError, match="the store is closed"):
            await call


async def test_close_finishes_what_was_called_before(store: SessionStore) -> None:
    async with asyncio.TaskGroup() as tasks:
        calls = [tasks.create_task(store.append(str(number), Message("x"), expected=NEW)) for number in range(100)]
        tasks.create_task(store.close())
    assert all(isinstance(call.result(), Appended) for call in calls)


async def test_a_cancelled_call_disturbs_no_other(store: SessionStore) -> None:
    async with asyncio.TaskGroup() as tasks:
        calls = [tasks.create_task(store.append(str(number), Message("x"), expected=NEW)) for number in range(50)]
        await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
    assert all(isinstance(call.result(), Appended) for call in calls[1::2])
    assert (await store.load("1", recent=1)) is not None


async def test_servers_that_write_to_one_chat_at_once_neither_interleave_nor_overwrite(opener: Opener) -> None:
    """Each goes on from what it read last, as two owners of one chat would. Every append is told its own place."""
    first = await opener()
    stores = [first, first] if isinstance(first, MemoryStore) else [first, await opener()]
    places: dict[int, str] = {}

    async def write(store: SessionStore, name: str) -> None:
        version = NEW
        for number in range(25):
            message = Message(f"{name}{number}", message_id=f"{name}{number}")
            while isinstance(result := await store.append("chat", message, expected=version), Conflict):
                version = result.version
            assert isinstance(result, Appended)
            assert result.position not in places
            places[result.position] = message.text
            version = Version(result.epoch, result.position)

    await asyncio.gather(write(stores[0], "a"), write(stores[1], "b"))
    assert [message.text for message in await messages_of(stores[0], "chat")] == [places[at] for at in range(1, 51)]


async def test_what_one_store_wrote_another_reads(opener: Opener) -> None:
    first = await opener()
    if isinstance(first, MemoryStore):
        return
    version = await fill(first, "chat", *named("1"))
    second = await opener()
    assert await second.append("chat", *named("1"), expected=NEW) == Duplicate(1, version.epoch)
    assert await second.append("chat", *named("2"), expected=version) == Appended(2, version.epoch)
    assert await messages_of(first, "chat") == tuple(named("1", "2"))


async def test_a_session_of_100_000_messages_costs_no_more_than_a_short_one_to_go_on(store: SessionStore) -> None:
    version = NEW
    for start in range(0, 100_000, 5_000):
        messages = [Message("x", message_id=f"m{start + number}") for number in range(5_000)]
        version = (await store.extend("chat", messages)).after
    assert version.length == 100_000
    assert await store.append("chat", *named("m99999"), expected=version) == Duplicate(100_000, version.epoch)
    assert await store.append("chat", *named("last"), expected=version) == Appended(100_001, version.epoch)
    session = await store.load("chat", recent=50)
    assert session is not None
    assert (session.length, len(session.recent)) == (100_001, 50)
    assert [message.message_id for message in session.recent[-2:]] == ["m99999", "last"]
    assert await store.end("chat") == 100_001


# Time to live.


async def test_a_session_ends_when_it_was_idle_for_its_time_to_live(opener: Opener) -> None:
    clock = Clock()
    store = await opener(session_ttl=0.3, clock=clock)
    version = await fill(store, "chat", *named("1"))
    if isinstance(store, RedisStore):  # by Redis's clock
        await eventually_gone(store, "chat")
    else:
        clock.now += 100
    assert await store.load("chat", recent=1) is None
    assert await store.set_reply("chat", version.epoch, 1, "x") is None
    assert await store.append("chat", *named("2"), expected=version) == Conflict(NEW)
    assert (await fill(store, "chat", *named("1"))).epoch != version.epoch


async def eventually_gone(store: SessionStore, chat_id: str) -> None:
    session: Session | None = Session(chat_id)

    async def watch() -> None:
        nonlocal session
        while session is not None:
            session = await store.load(chat_id, recent=1)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(watch())
        await eventually(lambda: session is None, "the session's end")


async def test_a_message_begins_the_idle_time_anew(opener: Opener) -> None:
    clock = Clock()
    store = await opener(session_ttl=100.0, clock=clock)
    version = await fill(store, "chat", *named("1"))
    clock.now += 90
    assert await store.append("chat", *named("2"), expected=version) == Appended(2, version.epoch)
    clock.now += 90
    assert len(await messages_of(store, "chat")) == 2


async def test_a_clock_that_goes_back_ends_no_session_and_changes_no_order(opener: Opener) -> None:
    clock = Clock()
    store = await opener(session_ttl=100.0, clock=clock)
    version = await fill(store, "chat", *named("1", "2"))
    clock.now -= 1_000_000
    assert await store.append("chat", *named("3"), expected=version) == Appended(3, version.epoch)
    assert await store.append("chat", *named("1"), expected=version) == Duplicate(1, version.epoch)
    clock.now -= 1_000_000
    assert await messages_of(store, "chat") == tuple(named("1", "2", "3"))
    assert await store.sweep() == 0


async def test_sweep_frees_what_is_over_and_nothing_else(opener: Opener) -> None:
    clock = Clock()
    store = await opener(session_ttl=100.0, clock=clock)
    for number in range(150):
        await fill(store, f"old {number}", *named("1"))
    clock.now += 90
    await fill(store, "young", *named("1"))
    clock.now += 20
    if not isinstance(store, RedisStore):
        assert await store.sweep() == 150
        assert await store.load("old 1", recent=1) is None
    assert await store.sweep() == 0
    assert await store.load("young", recent=1) is not None


async def test_without_a_time_to_live_again_sessions_stay(opener: Opener) -> None:
    """A chat that goes on after the setting was taken back does not end by the old one."""
    store = await opener(session_ttl=0.2)
    if isinstance(store, MemoryStore):
        return
    version = await fill(store, "chat", *named("1"))
    await store.close()
    store = await opener()
    if isinstance(await store.append("chat", *named("2"), expected=version), Conflict):
        return  # this machine was too slow, the session has ended
    await asyncio.sleep(0.3)  # the only way to see that nothing happens when the time comes
    assert len(await messages_of(store, "chat")) == 2


# SQLite.


async def test_servers_may_make_the_same_file_at_the_same_time(tmp_path: Path) -> None:
    stores = await asyncio.gather(*(SqliteStore.open(tmp_path / "a.db") for _ in range(8)))
    results = await asyncio.gather(*(store.append("chat", Message("x"), expected=NEW) for store in stores))
    (epoch,) = (result.epoch for result in results if isinstance(result, Appended))
    assert results.count(Appended(1, epoch)) == 1
    assert results.count(Conflict(Version(epoch, 1))) == 7
    for store in stores:
        await store.close()


async def test_a_file_locked_by_another_program_is_an_error_and_passes(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    store = await SqliteStore.open(path, busy_timeout=0)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match=r"a\.db: database is locked"):
        await store.append("chat", Message("x"), expected=NEW)
    assert await store.load("chat", recent=1) is None
    other.execute("ROLLBACK")
    other.close()
    assert isinstance(await store.append("chat", Message("x"), expected=NEW), Appended)
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
