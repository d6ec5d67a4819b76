"""Servers without a store in common: sessions follow their chats."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from districhat import chat_pb2
from districhat.chat_pb2 import CACHE_DISK, CACHE_L1, CACHE_MISS, ChatRequest

from backend.errors import StoreError
from tests.support.backend_server import chat_stub, serving
from tests.support.polling import eventually, eventually_answers
from tests.support.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from backend.server import ChatServer

IDS = ("Server-A", "Server-B", "Server-C")


class Cluster:
    """Servers that know each other, each with an SQLite file of its own."""

    def __init__(self, directory: Path, stack: AsyncExitStack, **moves: Any) -> None:
        self._directory = directory
        self._stack = stack
        self._moves = moves
        self.addresses = {id_: f"127.0.0.1:{port}" for id_, port in zip(IDS, free_ports(len(IDS)), strict=True)}
        self._running: dict[str, AsyncExitStack] = {}
        self.servers: dict[str, ChatServer] = {}
        self.stubs: dict[str, Any] = {}

    async def start(self, *ids: str, **settings: Any) -> None:
        for id_ in ids:
            stack = self._running[id_] = await self._stack.enter_async_context(AsyncExitStack())
            values = {
                "id": id_,
                "address": self.addresses[id_],
                "store": {"url": f"sqlite:///{self._directory}/{id_}.db"},
                "moves": {"peers": self.addresses, "timeout": 30.0, "retry_after": 0.0, **self._moves},
                "drain": {"grace": 0.0, "notice": 0.0},
                **settings,
            }
            self.servers[id_] = await stack.enter_async_context(serving(**values))
            self.stubs[id_] = await stack.enter_async_context(chat_stub(self.addresses[id_]))

    async def stop(self, id_: str) -> None:
        await self._running.pop(id_).aclose()

    async def post(self, id_: str, text: str, *, before: str = "", chat: str = "chat") -> chat_pb2.ChatResponse:
        """One message with its text as its id. `before`: what the proxy says of the previous owner."""
        metadata = (("x-districhat-previous-owner", before),) if before else ()
        request = ChatRequest(chat_id=chat, message=text, message_id=text)
        response = await self.stubs[id_].PostMessage(request, metadata=metadata)
        assert isinstance(response, chat_pb2.ChatResponse)
        return response

    async def texts(self, id_: str, chat: str = "chat") -> list[str]:
        """What the server's own store has."""
        session = await self.servers[id_]._store.load(chat, recent=1_000_000)
        return [] if session is None else [message.text for message in session.recent]


@asynccontextmanager
async def cluster_of(directory: Path, *ids: str, **moves: Any) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        cluster = Cluster(directory, stack, **moves)
        await cluster.start(*ids)
        yield cluster


async def test_a_session_follows_its_chat_and_comes_back(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, "Server-A", "Server-B") as cluster:
        for text in ("1", "2"):
            await cluster.post("Server-A", text)
        third = await cluster.post("Server-B", "3", before="Server-A")
        assert (third.message_count, third.cache_location) == (3, CACHE_DISK)
        assert 'Before it came: "2"' in third.reply
        assert (await cluster.post("Server-B", "4")).cache_location == CACHE_L1
        fifth = await cluster.post("Server-A", "5", before="Server-B")
        assert (fifth.message_count, fifth.cache_location) == (5, CACHE_DISK)
        assert await cluster.texts("Server-A") == ["1", "2", "3", "4", "5"]
        statistics = await cluster.stubs["Server-B"].GetCacheStats(chat_pb2.StatsRequest())
        assert (statistics.fetched, statistics.fetch_failures) == (1, 0)


async def test_a_peer_that_has_nothing_new_changes_nothing(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, "Server-A", "Server-B") as cluster:
        await cluster.post("Server-A", "1")
        await cluster.post("Server-B", "2", before="Server-A")
        again = await cluster.post("Server-B", "3", before="Server-A")
        assert (again.message_count, again.cache_location) == (3, CACHE_L1)
        assert cluster.servers["Server-B"]._peers.fetched == 1
        new = await cluster.post("Server-B", "x", before="Server-A", chat="new")
        assert (new.message_count, new.cache_location) == (1, CACHE_MISS)


async def test_only_the_rest_of_a_session_is_sent_when_both_agree_up_to_there(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, "Server-A", "Server-B") as cluster:
        for number in range(100):
            await cluster.post("Server-A", str(number))
        await cluster.post("Server-B", "100", before="Server-A")
        metadata = (("x-districhat-peer", "Server-A"),)
        request = chat_pb2.FetchSessionRequest(chat_id="chat", have_length=100, have_message_id="99")
        parts = [part async for part in cluster.stubs["Server-B"].FetchSession(request, metadata=metadata)]
        assert [(part.after, [each.text for each in part.messages]) for part in parts] == [(100, ["100"])]
        request.have_message_id = "other"
        parts = [part async for part in cluster.stubs["Server-B"].FetchSession(request, metadata=metadata)]
        assert parts[0].after == 0
        assert sum(len(part.messages) for part in parts) == 101


async def test_a_message_that_was_applied_before_the_move_is_not_applied_after_it(tmp_path: Path) -> None:
    """The first attempt's answer was lost; the proxy sends it to the next server."""
    async with cluster_of(tmp_path, "Server-A", "Server-B") as cluster:
        first = await cluster.post("Server-A", "1")
        again = await cluster.post("Server-B", "1", before="Server-A")
        assert again.duplicate
        assert (again.message_count, again.reply) == (first.message_count, first.reply)


async def test_a_long_session_with_large_messages_comes_whole_and_in_order(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, "Server-A", "Server-B") as cluster:
        texts = [f"{number} " + "x" * (3_000_000 if number in (7, 8, 400) else 200) for number in range(5000)]
        store = cluster.servers["Server-A"]._store
        from backend.session import Message

        await store.extend("chat", [Message(text, message_id=str(index)) for index, text in enumerate(texts)])
        answer = await cluster.post("Server-B", "last", before="Server-A")
        assert answer.message_count == 5001
        assert await cluster.texts("Server-B") == [*texts, "last"]


async def test_write_back_hands_over_what_it_has_not_written(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        store = {"url": f"sqlite:///{tmp_path}/back.db", "durability": "write_back", "write_interval": 3600.0}
        await cluster.start("Server-A", store=store)
        await cluster.start("Server-B")
        await cluster.post("Server-A", "1")
        assert await cluster.texts("Server-A") == []
        assert (await cluster.post("Server-B", "2", before="Server-A")).message_count == 2


# Peers that cannot, or must not, be asked.


async def test_a_dead_peer_costs_nothing_but_its_messages_and_these_come_when_it_is_back(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, "Server-A", "Server-B") as cluster:
        await cluster.post("Server-A", "1")
        await cluster.stop("Server-A")
        alone = await cluster.post("Server-B", "2", before="Server-A")
        assert (alone.message_count, alone.cache_location) == (1, CACHE_MISS)
        await cluster.start("Server-A")
        number = 2

        async def complete() -> bool:
            nonlocal number
            number += 1
            return (await cluster.post("Server-B", str(number))).message_count == number

        await eventually_answers(complete, "Server-A's message")  # gRPC has a back-off of its own
        texts = await cluster.texts("Server-B")
        assert sorted(texts) == sorted(map(str, range(1, number + 1)))
        assert [text for text in texts if text != "1"] == list(map(str, range(2, number + 1)))
        home = await cluster.post("Server-A", "home", before="Server-B")
        assert home.message_count == number + 1


async def test_what_one_peer_owes_is_not_forgotten_for_another_that_answers(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, "Server-A", "Server-B", "Server-C") as cluster:
        await cluster.post("Server-A", "a")
        await cluster.post("Server-C", "c")
        await cluster.stop("Server-A")
        assert (await cluster.post("Server-B", "1", before="Server-A")).message_count == 1
        assert (await cluster.post("Server-B", "2", before="Server-C")).message_count == 3
        assert dict(cluster.servers["Server-B"]._peers._owed) == {"chat": ("Server-A",)}
        await cluster.start("Server-A")
        number = 2

        async def complete() -> bool:
            nonlocal number
            number += 1
            return (await cluster.post("Server-B", str(number))).message_count == number + 2

        await eventually_answers(complete, "Server-A's message")
        assert not cluster.servers["Server-B"]._peers._owed


async def test_a_session_too_large_to_fetch_is_not_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.peers._MAX_SESSION", 1000)
    async with cluster_of(tmp_path, "Server-A", "Server-B", retry_after=3600.0) as cluster:
        await cluster.post("Server-A", "x" * 2000)
        await cluster.post("Server-A", "1", chat="small")
        assert (await cluster.post("Server-B", "2", before="Server-A")).message_count == 1
        peers = cluster.servers["Server-B"]._peers
        assert (peers.failures, len(peers._owed)) == (1, 0)
        assert (await cluster.post("Server-B", "2", before="Server-A", chat="small")).message_count == 2


async def test_a_peer_that_hangs_is_waited_for_once_and_not_for_every_chat(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, timeout=0.2, retry_after=3600.0) as cluster:
        with hanging(cluster.addresses["Server-A"]):
            await cluster.start("Server-B")
            peers = cluster.servers["Server-B"]._peers
            for number in range(20):
                answer = await cluster.post("Server-B", "1", before="Server-A", chat=f"chat {number}")
                assert answer.message_count == 1
            assert peers.failures == 1
            assert len(peers._owed) == 20


async def test_a_session_that_keeps_coming_is_waited_for_however_long_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [str(number) for number in range(5)]
    async with cluster_of(tmp_path, "Server-A", "Server-B", timeout=1.0, retry_after=3600.0) as cluster:
        for text in texts:
            await cluster.post("Server-A", text)
        monkeypatch.setattr("backend.peers._PART_BYTES", 1)  # a part for each message
        peers = cluster.servers["Server-A"]._peers
        hand_over = peers.hand_over

        async def slowly(request: Any, context: Any) -> AsyncIterator[chat_pb2.SessionPart]:
            async for part in hand_over(request, context):
                await asyncio.sleep(0.3)  # the time its line takes for a part: 1.5 s in all
                yield part

        monkeypatch.setattr(peers, "hand_over", slowly)
        assert (await cluster.post("Server-B", "last", before="Server-A")).message_count == 6
        assert await cluster.texts("Server-B") == [*texts, "last"]


async def test_messages_of_one_moved_chat_keep_their_order_while_its_session_is_fetched(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, timeout=2.0, retry_after=3600.0) as cluster:
        with hanging(cluster.addresses["Server-A"]):
            await cluster.start("Server-B")
            waiting = cluster.servers["Server-B"]._peers._locks._users
            calls = []
            for text in ("1", "2", "3"):
                before = "" if text == "3" else "Server-A"
                calls.append(asyncio.ensure_future(cluster.post("Server-B", text, before=before)))
                await eventually(lambda: waiting.get("chat") == len(calls), "the message's arrival")
            assert [(await call).message_count for call in calls] == [1, 2, 3]


@pytest.mark.parametrize("before", ["Server-X", "Server-B", "127.0.0.1:1", "", "é"])
async def test_only_configured_peers_are_asked(tmp_path: Path, before: str) -> None:
    """What the metadata names is looked up, never called."""
    async with cluster_of(tmp_path, "Server-B") as cluster:
        if before == "é":
            before = "%C3%A9"  # how gRPC has non-ASCII text in metadata
        assert (await cluster.post("Server-B", "1", before=before)).message_count == 1
        peers = cluster.servers["Server-B"]._peers
        assert (peers.failures, dict(peers._channels), dict(peers._owed)) == (0, {}, {})


async def test_nobody_is_asked_when_fetching_is_off(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, "Server-A", "Server-B", fetch=False) as cluster:
        await cluster.post("Server-A", "1")
        assert (await cluster.post("Server-B", "2", before="Server-A")).message_count == 1
        assert not cluster.servers["Server-B"]._peers._channels


async def test_an_old_server_that_knows_no_fetching_is_not_asked_again_for_the_chat(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, "Server-B") as cluster:
        old = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        old.add_insecure_port(cluster.addresses["Server-A"])
        await old.start()
        for count in (1, 2):
            before = "Server-A" if count == 1 else ""
            assert (await cluster.post("Server-B", str(count), before=before)).message_count == count
        await old.stop(None)
        peers = cluster.servers["Server-B"]._peers
        assert (peers.failures, len(peers._owed)) == (1, 0)


@pytest.mark.parametrize(
    ("metadata", "why"),
    [
        ((), "only for configured peers"),
        ((("x-districhat-peer", "Server-X"),), "only for configured peers"),
        ((("x-districhat-peer", "Server-A"),), "only for configured peers"),  # itself
        ((("x-districhat-peer", "Server-C"),), "127.0.0.1 is not Server-C"),
    ],
)
async def test_a_session_is_handed_to_no_stranger(tmp_path: Path, metadata: Any, why: str) -> None:
    async with cluster_of(tmp_path) as cluster:
        cluster.addresses["Server-C"] = "127.0.0.2:1"
        await cluster.start("Server-A")
        await cluster.post("Server-A", "secret")
        call = cluster.stubs["Server-A"].FetchSession(chat_pb2.FetchSessionRequest(chat_id="chat"), metadata=metadata)
        assert await call.code() == grpc.StatusCode.PERMISSION_DENIED
        assert await call.details() == why


async def test_without_a_store_to_put_it_in_a_fetched_session_is_no_success(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, "Server-A", "Server-B") as cluster:
        await cluster.post("Server-A", "1")
        await cluster.servers["Server-B"]._store.close()
        with pytest.raises(grpc.aio.AioRpcError, match="the store is closed") as caught:
            await cluster.post("Server-B", "2", before="Server-A")
        assert caught.value.code() == StoreError.code


# Two servers that both believe they own a chat.


async def test_sessions_that_went_on_at_two_servers_are_united_and_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    """Two proxies disagree about who is alive. However they take turns, each message is there once, in the order its
    own server had it.
    """
    async with cluster_of(tmp_path, *IDS) as cluster:
        for text in ("1", "2"):
            await cluster.post("Server-A", text)
        await cluster.post("Server-B", "b1", before="Server-A")
        for text in ("a1", "a2"):
            await cluster.post("Server-A", text)
        await cluster.post("Server-B", "b2")
        await cluster.post("Server-A", "a3", before="Server-B")
        assert await cluster.texts("Server-A") == ["1", "2", "a1", "a2", "b1", "b2", "a3"]
        last = await cluster.post("Server-B", "b3", before="Server-A")
        assert last.message_count == 8
        assert sorted(await cluster.texts("Server-B")) == sorted(["1", "2", "a1", "a2", "b1", "b2", "a3", "b3"])
        third = await cluster.post("Server-C", "c1", before="Server-A")
        assert third.message_count == 8
        assert (await cluster.post("Server-C", "c2", before="Server-B")).message_count == 10


async def test_parts_older_than_the_dedupe_window_are_not_doubled_by_a_union(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        for id_ in ("Server-A", "Server-B"):
            store = {"url": f"sqlite:///{tmp_path}/{id_}.db", "dedupe_window": 2}
            await cluster.start(id_, store=store)
        for number in range(10):
            await cluster.post("Server-A", str(number))
        await cluster.post("Server-B", "b", before="Server-A")
        await cluster.post("Server-A", "a")
        assert (await cluster.post("Server-B", "b2", before="Server-A")).message_count == 13
        assert len(set(await cluster.texts("Server-B"))) == 13


# The end of a chat.


async def end(cluster: Cluster, id_: str, chat: str = "chat") -> chat_pb2.EndChatResponse:
    response = await cluster.stubs[id_].EndChat(chat_pb2.EndChatRequest(chat_id=chat))
    assert isinstance(response, chat_pb2.EndChatResponse)
    return response


async def test_end_chat_frees_the_session_at_all_peers(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, *IDS) as cluster:
        await cluster.post("Server-A", "1")
        await cluster.post("Server-B", "2", before="Server-A")
        await cluster.post("Server-C", "3", before="Server-B")
        assert await end(cluster, "Server-B") == chat_pb2.EndChatResponse(
            success=True, server_id="Server-B", message_count=2
        )
        for id_ in IDS:
            assert await cluster.texts(id_) == []
            assert list((await cluster.stubs[id_].GetCacheStats(chat_pb2.StatsRequest())).l1_chats) == []
        again = await cluster.post("Server-A", "1", before="Server-C")
        assert (again.message_count, again.cache_location) == (1, CACHE_MISS)


@pytest.mark.parametrize("at", ["Server-A", "Server-B"])
async def test_a_chat_that_ends_while_its_session_is_fetched_stays_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    async with cluster_of(tmp_path, *IDS) as cluster:
        for text in ("1", "2"):
            await cluster.post("Server-A", text)
        peers = cluster.servers["Server-B"]._peers
        ask, fetched, goes_on = peers._ask, asyncio.Event(), asyncio.Event()

        async def slowly(chat_id: str, peer: str, patience: asyncio.Timeout) -> Any:
            answer = await ask(chat_id, peer, patience)
            fetched.set()
            await goes_on.wait()
            return answer

        monkeypatch.setattr(peers, "_ask", slowly)
        moved = asyncio.ensure_future(cluster.post("Server-B", "new", before="Server-A"))
        await fetched.wait()
        assert (await cluster.stubs[at].EndChat(chat_pb2.EndChatRequest(chat_id="chat"))).success
        goes_on.set()
        assert (await moved).message_count == 1, "a chat of its own"
        assert await cluster.texts("Server-B") == ["new"]
        again = await cluster.post("Server-B", "next", before="Server-A")
        assert again.message_count == 2


async def test_end_chat_names_the_peers_it_did_not_reach(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, "Server-A", "Server-B") as cluster:
        await cluster.post("Server-A", "1")
        answer = await end(cluster, "Server-A")
        assert not answer.success
        assert answer.message_count == 1
        assert answer.error_message.startswith("Server-C: ")
        assert await cluster.texts("Server-A") == []


@contextlib.contextmanager
def hanging(address: str) -> Any:
    """Something that accepts connections at the address and never says a word."""
    host, _, port = address.rpartition(":")
    with socket.create_server((host, int(port)), backlog=64):
        yield
