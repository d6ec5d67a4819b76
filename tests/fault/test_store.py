"""What can become of a store while servers run on it. A message is never acknowledged that the store has not."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from districhat.chat_pb2 import CACHE_DISK, ChatRequest, EndChatRequest, StatsRequest

from backend.errors import ConfigError
from backend.session import NEW, Message
from backend.store.base import Appended, StoreOptions
from backend.store.sqlite import SqliteStore
from backend.store.url import open_store
from tests.support.backend_server import backend_process, chat_stub, serving
from tests.support.polling import eventually, eventually_answers
from tests.support.redis_server import RedisServer, redis_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


async def post(stub: Any, text: str, chat: str = "chat") -> Any:
    return await stub.PostMessage(ChatRequest(chat_id=chat, message=text, message_id=text[:100]))


async def refused(stub: Any, text: str, why: str, chat: str = "chat") -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=why) as caught:
        await post(stub, text, chat)
    assert caught.value.code() == UNAVAILABLE


async def fill_up(stub: Any, why: str) -> list[str]:
    """Posts until there is no more room, for the reason told. Returns the numbers of the messages acknowledged."""
    acknowledged: list[str] = []
    reason = None
    while reason is None and len(acknowledged) < 1000:
        try:
            await post(stub, f"{len(acknowledged)} " + "x" * 10_000)
            acknowledged.append(str(len(acknowledged)))
        except grpc.aio.AioRpcError as error:
            reason = (error.code(), error.details() or "")
    assert acknowledged
    assert reason is not None
    assert reason[0] == UNAVAILABLE
    assert why in reason[1]
    return acknowledged


# The disk.


@contextmanager
def small_disk(directory: Path, size: str) -> Iterator[Path]:
    """A file system of its own, as large as told. Skips the test where it cannot be mounted."""
    target = directory / "disk"
    target.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(target)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs root, to mount a small file system")
    try:
        yield target
    finally:
        subprocess.run(["umount", "--lazy", str(target)], check=True)


async def test_a_full_disk_refuses_messages_and_takes_them_again_when_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path, "1m") as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(b"x" * 400_000)
        async with serving(store={"url": f"sqlite:///{disk}/a.db"}) as server, chat_stub(server.address) as stub:
            acknowledged = await fill_up(stub, "disk")
            await refused(stub, "x" * 50_000, "disk")
            ballast.unlink()
            answer = await post(stub, "last")
            assert answer.message_count == len(acknowledged) + 1
            session = await server._store.load("chat", recent=1000)
            assert session is not None
            assert [message.text.split()[0] for message in session.recent] == [*acknowledged, "last"]


async def test_one_message_too_large_for_the_file_costs_the_others_of_its_commit_nothing(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "a.db")
    await store._writer.submit(lambda db: db.execute("PRAGMA max_page_count = 60").fetchone(), writes=False)
    large = store.append("large", Message("x" * 1_000_000), expected=NEW)
    results = await asyncio.gather(
        *(store.append(f"small {number}", Message("x"), expected=NEW) for number in range(5)),
        large,
        *(store.append(f"small {number}", Message("x"), expected=NEW) for number in range(5, 10)),
        return_exceptions=True,
    )
    assert [isinstance(result, Appended) for result in results] == [True] * 5 + [False] + [True] * 5
    assert "full" in str(results[5])
    await store.close()


async def test_a_file_that_became_corrupt_is_never_a_success(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with serving(store={"url": f"sqlite:///{path}"}) as server, chat_stub(server.address) as stub:
        for number in range(50):
            await post(stub, f"{number} " + "x" * 1000)
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xa5" * (len(data) - 4096))  # all but the first page, which has the schema
    async with serving(store={"url": f"sqlite:///{path}"}) as server, chat_stub(server.address) as stub:
        for chat in ("chat", "new"):
            await refused(stub, "x", "malformed", chat)


def test_a_corrupt_file_is_named_at_the_start(tmp_path: Path) -> None:
    async def start() -> None:
        async with serving(store={"url": f"sqlite:///{tmp_path}/a.db"}):
            pass

    (tmp_path / "a.db").write_bytes(b"SQLite format 3\0" + b"\xa5" * 8192)
    with pytest.raises(ConfigError, match=r"store\.url: .*a\.db: (file is not a database|.*malformed)"):
        asyncio.run(start())


@contextmanager
def read_only(path: Path) -> Iterator[None]:
    """A file that nobody can write, not even root."""
    if os.geteuid() != 0:
        path.chmod(0o400)
        yield
        return
    if subprocess.run(["chattr", "+i", str(path)], capture_output=True, check=False).returncode != 0:
        pytest.skip("root can write any file, and this file system has no immutable ones")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", str(path)], check=True)


async def test_a_file_that_cannot_be_written_is_named_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    await (await SqliteStore.open(path)).close()
    with (
        read_only(path),
        pytest.raises(ConfigError, match=r"store\.url: .*a\.db: (attempt to write a readonly|unable to open)"),
    ):
        async with serving(store={"url": f"sqlite:///{path}"}):
            pass


async def test_a_file_of_the_first_version_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with sqlite3.connect(path) as db:
        db.executescript(
            """
            CREATE TABLE chats (id INTEGER PRIMARY KEY, chat_id TEXT NOT NULL UNIQUE, length INTEGER NOT NULL);
            CREATE TABLE messages (chat INTEGER NOT NULL REFERENCES chats (id), position INTEGER NOT NULL,
                message_id TEXT, sender_id TEXT NOT NULL, timestamp INTEGER NOT NULL, text TEXT NOT NULL,
                PRIMARY KEY (chat, position)) WITHOUT ROWID;
            CREATE UNIQUE INDEX messages_by_id ON messages (chat, message_id) WHERE message_id IS NOT NULL;
            INSERT INTO chats VALUES (1, 'chat', 2);
            INSERT INTO messages VALUES (1, 1, 'a', 'ann', 0, 'one'), (1, 2, NULL, 'ann', 0, 'two');
            PRAGMA user_version = 1;
            """
        )
    db.close()
    settings = {"store": {"url": f"sqlite:///{path}"}, "cache": {"session_ttl": 3600.0}}
    async with serving(**settings) as server, chat_stub(server.address) as stub:
        again = await stub.PostMessage(ChatRequest(chat_id="chat", message="one", message_id="a"))
        assert (again.message_count, again.duplicate) == (1, True)
        answer = await post(stub, "three")
        assert (answer.message_count, answer.cache_location) == (3, 1)
        assert 'Before it came: "two"' in answer.reply


# Redis.


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with redis_server(tmp_path) as server:
        yield server


@asynccontextmanager
async def serving_on(redis: RedisServer, **store: Any) -> AsyncIterator[tuple[Any, Any]]:
    async with serving(store={"url": redis.url, **store}) as server, chat_stub(server.address) as stub:
        yield server, stub


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_redis_that_is_stopped_and_started_again_is_unavailable_in_between(
    redis: RedisServer, number: signal.Signals
) -> None:
    async with serving_on(redis) as (_, stub):
        await post(stub, "1")
        await redis.stop(number)
        for _ in range(3):
            await refused(stub, "2", r"redis 127\.0\.0\.1:\d+/0: .*(refused|closed|reset)")
        await redis.start()
        answer = await post(stub, "2")
        assert (answer.message_count, answer.duplicate) == (2, False)


async def test_a_redis_that_is_restarted_between_two_messages_is_not_noticed(redis: RedisServer) -> None:
    """The broken connection and the forgotten scripts are mended within the call."""
    async with serving_on(redis) as (_, stub):
        await post(stub, "1")
        await redis.stop()
        await redis.start()
        assert (await post(stub, "2")).message_count == 2


async def test_under_load_a_restart_of_redis_loses_and_doubles_nothing(redis: RedisServer) -> None:
    acknowledged: dict[str, list[str]] = {f"chat {number}": [] for number in range(20)}
    stop = asyncio.Event()

    async def write(stub: Any, chat: str) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            text = f"{chat}: {number}"

            async def sent() -> bool:
                try:
                    await post(stub, text, chat)  # noqa: B023 - called at once
                except grpc.aio.AioRpcError as error:
                    if error.code() != UNAVAILABLE:
                        raise
                    return False
                return True

            await eventually_answers(sent, "the message's acknowledgement")
            acknowledged[chat].append(text)

    async with serving_on(redis) as (server, stub), asyncio.TaskGroup() as tasks:
        for chat in acknowledged:
            tasks.create_task(write(stub, chat))
        for number in (signal.SIGTERM, signal.SIGKILL):
            here = sum(map(len, acknowledged.values()))
            await eventually(lambda: sum(map(len, acknowledged.values())) > here + 200, "messages")  # noqa: B023
            await redis.stop(number)
            await asyncio.sleep(0.05)  # away for a moment: calls fail, and are made again
            await redis.start()
        here = sum(map(len, acknowledged.values()))
        await eventually(lambda: sum(map(len, acknowledged.values())) > here + 200, "messages")
        stop.set()
    store = await open_store(redis.url, StoreOptions())
    for chat, texts in acknowledged.items():
        session = await store.load(chat, recent=1_000_000)
        assert session is not None
        assert [message.text for message in session.recent] == texts
    await store.close()
    assert server.lost == 0


async def test_a_redis_that_hangs_is_unavailable_in_time_and_then_goes_on(redis: RedisServer) -> None:
    async with serving_on(redis, timeout=1.0) as (_, stub):
        await post(stub, "1")
        redis.send_signal(signal.SIGSTOP)
        try:
            await refused(stub, "2", "redis .*[Tt]imeout")
        finally:
            redis.send_signal(signal.SIGCONT)

        async def sent() -> bool:
            try:
                return bool((await post(stub, "2")).message_count == 2)
            except grpc.aio.AioRpcError:  # slow machine: Redis still works off what it missed
                return False

        await eventually_answers(sent, "Redis going on")


async def test_a_redis_without_memory_refuses_messages_and_loses_none(tmp_path: Path) -> None:
    async with (
        redis_server(tmp_path, "--maxmemory", "3mb", "--maxmemory-policy", "noeviction") as redis,
        serving_on(redis) as (server, stub),
    ):
        acknowledged = await fill_up(stub, "maxmemory")
        session = await server._store.load("chat", recent=1000)
        assert session is not None
        assert [message.text.split()[0] for message in session.recent] == acknowledged
        # And there is a way out.
        ended = await stub.EndChat(EndChatRequest(chat_id="chat"))
        assert (ended.success, ended.message_count) == (True, len(acknowledged))
        assert (await post(stub, "new")).message_count == 1


async def test_a_redis_that_would_evict_sessions_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with redis_server(tmp_path, "--maxmemory", "30mb", "--maxmemory-policy", "allkeys-lru") as redis:
        store = await open_store(redis.url, StoreOptions())
        await store.close()
    assert "maxmemory-policy allkeys-lru may evict sessions" in caplog.text


async def test_a_server_whose_redis_is_away_does_not_start(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path / "redis")
    with pytest.raises(ConfigError, match=r"store\.url: redis 127\.0\.0\.1:\d+/0: .*refused"):
        async with serving(store={"url": redis.url}):
            pass


# Write-back.


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_what_write_back_acknowledged_is_in_the_store_in_time_and_after_a_drain(
    tmp_path: Path, redis: RedisServer, kind: str
) -> None:
    url = redis.url if kind == "redis" else f"sqlite:///{tmp_path}/a.db"
    back = {"url": url, "durability": "write_back"}
    async with serving(store={**back, "write_interval": 0.05}) as server, chat_stub(server.address) as stub:
        await post(stub, "1")
        await eventually(lambda: server._cache.statistics().unwritten == 0, "the write")
    async with serving(store={**back, "write_interval": 3600.0}) as server, chat_stub(server.address) as stub:
        for number in range(2, 50):
            assert (await post(stub, f"{number}")).message_count == number
        assert (await stub.GetCacheStats(StatsRequest())).unwritten == 48
        assert (await post(stub, "49")).duplicate
    async with serving(store={"url": url}) as server, chat_stub(server.address) as stub:
        answer = await post(stub, "50")
        assert (answer.message_count, answer.cache_location) == (50, CACHE_DISK)
        assert 'Before it came: "49"' in answer.reply


async def test_write_back_writes_a_session_that_leaves_memory(tmp_path: Path) -> None:
    store = {"url": f"sqlite:///{tmp_path}/a.db", "durability": "write_back", "write_interval": 3600.0}
    small = {"l1_capacity": 1, "l2_capacity": 1}
    async with serving(store=store, cache=small) as server, chat_stub(server.address) as stub:
        for chat in ("a", "b", "c"):
            await post(stub, "1", chat)
        await eventually(lambda: server._cache.statistics().unwritten == 2, "the write of the evicted one")
        again = await post(stub, "2", "a")
        assert (again.message_count, again.cache_location) == (2, CACHE_DISK)


async def test_a_crash_of_write_back_loses_what_was_not_written_and_write_through_nothing(tmp_path: Path) -> None:
    for durability, left in (("write_through", 5), ("write_back", 0)):
        config = tmp_path / f"{durability}.toml"
        config.write_text(f'[store]\ndurability = "{durability}"\nwrite_interval = 3600.0\n')
        path = tmp_path / f"{durability}.db"
        async with backend_process("--config", str(config), store=path) as (process, address):
            async with chat_stub(address) as stub:
                for number in range(5):
                    await post(stub, str(number))
            process.kill()
            await process.wait()
        store = await SqliteStore.open(path)
        session = await store.load("chat", recent=10)
        assert (0 if session is None else session.length) == left
        await store.close()


async def test_write_back_with_its_store_away_holds_messages_up_to_its_limit(redis: RedisServer) -> None:
    back = {"durability": "write_back", "write_interval": 0.05, "max_unwritten": 10}
    async with serving_on(redis, **back) as (server, stub):
        await post(stub, "0")
        await eventually(lambda: server._cache.statistics().unwritten == 0, "the write")
        await redis.stop()
        for number in range(1, 11):
            assert (await post(stub, str(number))).message_count == number + 1
        await refused(stub, "11", "refused|closed|reset")
        await redis.start()
        await eventually(lambda: server._cache.statistics().unwritten == 0, "the writes")
        answer = await post(stub, "11")
        assert (answer.message_count, answer.duplicate) == (12, False)


async def test_a_drain_that_cannot_write_says_what_is_lost_and_the_command_exits_with_1(
    tmp_path: Path, redis: RedisServer
) -> None:
    config = tmp_path / "backend.toml"
    config.write_text(
        f'[store]\nurl = "{redis.url}"\ndurability = "write_back"\nwrite_interval = 3600.0\n'
        "[drain]\nnotice = 0.0\ngrace = 0.1\n"
    )
    async with backend_process("--config", str(config)) as (process, address):
        async with chat_stub(address) as stub:
            for number in range(3):
                await post(stub, str(number))
        await redis.stop(signal.SIGKILL)
        process.terminate()
        assert await process.wait() == 1


# The end of sessions.


@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])
async def test_a_session_that_is_ended_is_gone_everywhere_and_begins_anew(
    tmp_path: Path, redis: RedisServer, kind: str
) -> None:
    url = {"memory": "memory:", "sqlite": f"sqlite:///{tmp_path}/a.db", "redis": redis.url}[kind]
    async with serving(store={"url": url}) as server, chat_stub(server.address) as stub:
        for number in range(3):
            await post(stub, str(number))
        for count in (3, 0):
            ended = await stub.EndChat(EndChatRequest(chat_id="chat"))
            assert (ended.success, ended.server_id, ended.message_count) == (True, "Server-A", count)
        statistics = await stub.GetCacheStats(StatsRequest())
        assert (list(statistics.l1_chats), statistics.ended) == ([], 1)
        assert await server._store.load("chat", recent=1) is None
        again = await post(stub, "0")
        assert (again.message_count, again.duplicate) == (1, False)


@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])
async def test_an_idle_session_ends_by_itself_in_memory_and_store(
    tmp_path: Path, redis: RedisServer, kind: str
) -> None:
    url = {"memory": "memory:", "sqlite": f"sqlite:///{tmp_path}/a.db", "redis": redis.url}[kind]
    async with serving(store={"url": url}, cache={"session_ttl": 0.5}) as server, chat_stub(server.address) as stub:
        await post(stub, "1")
        await eventually(lambda: server._cache.statistics().expired, "the end of the session")
        assert list((await stub.GetCacheStats(StatsRequest())).l1_chats) == []
        if kind != "redis":
            row = server._store
            await eventually_answers(lambda: _is_gone(row), "the store's end of it")
        assert (await post(stub, "1")).message_count == 1


async def _is_gone(store: Any) -> bool:
    return await store.load("chat", recent=1) is None
