"""SIGTERM, as a client sees it: GOAWAY in two steps, running calls finish, new ones go elsewhere (RFC 9113, 6.8)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from proxy.http2 import MAX_STREAM_ID
from tests.support.messages import framed, message
from tests.support.peers import Client
from tests.support.world import World

GRACE = 20.0


@pytest.fixture
def world() -> World:
    return World().silent().start()


@asynccontextmanager
async def draining(world: World) -> AsyncIterator[asyncio.Task[int]]:
    task = asyncio.get_running_loop().create_task(world.proxy.listener.drain(GRACE))
    await asyncio.sleep(0)
    world.run()
    yield task
    world.advance(GRACE + 10.0)
    await task


async def test_without_connections_the_drain_is_over_at_once(world: World) -> None:
    assert await world.proxy.listener.drain(GRACE) == 0


async def test_an_idle_client_is_told_and_closed(world: World) -> None:
    client = world.client()
    world.run()
    async with draining(world) as drain:
        assert client.goaways[0].last_stream_id == MAX_STREAM_ID
        assert not client.connected
        assert await drain == 0


async def test_a_call_that_raced_the_first_goaway_is_still_served(world: World) -> None:
    """envoy #2305, #7614: the client cannot know yet, so its call must not fail."""
    client = world.client()
    racing = client.request(message("chat-001"))
    async with draining(world):
        server = world.at(world.owner("chat-001"))
        server.respond(1, framed(b"late"))
        world.run()
        assert client.exchanges[racing].body == framed(b"late")
        assert client.exchanges[racing].status == 0
        assert client.goaways[-1].last_stream_id == racing
        assert not client.connected


async def test_a_client_that_never_answers_the_ping_gets_the_final_goaway_all_the_same(world: World) -> None:
    """envoy #19045, #22825: long streams must not keep the second GOAWAY back."""
    client = world.client()
    client.request(message("chat-001"), end=False)
    world.run()
    client.stopped = True  # says nothing more
    async with draining(world):
        assert [event.last_stream_id for event in client.goaways] == [MAX_STREAM_ID]
        world.advance(5.0)
        assert [event.last_stream_id for event in client.goaways] == [MAX_STREAM_ID, 1]


async def test_a_stream_may_go_on_until_the_grace_is_over_and_then_ends_with_a_status(world: World) -> None:
    client = world.client()
    sid = client.request(message("chat-001"), end=False, path=b"/chat.ChatService/Chat")
    world.run()
    server = world.at(world.owner("chat-001"))
    server.begin(1)
    async with draining(world) as drain:
        world.advance(GRACE - 1)
        server.engine.send_data(1, framed(b"still here"))
        world.run()
        assert client.exchanges[sid].body == framed(b"still here")
        world.advance(1.5)
        assert client.exchanges[sid].status == 14
        assert client.exchanges[sid].message == "the proxy is shutting down"
        assert await drain == 1
    world.assert_clean()


async def test_a_client_that_reads_nothing_cannot_keep_the_proxy_alive(world: World) -> None:
    client = world.client({4: 0})  # INITIAL_WINDOW_SIZE
    client.request(message("chat-001"))
    world.run()
    world.at(world.owner("chat-001")).respond(1, framed(b"never read"))
    world.run()
    async with draining(world) as drain:
        world.advance(GRACE + 1.5)
        assert await drain == 0
    assert not client.connected


async def test_a_client_accepted_in_the_last_moment_is_asked_first_too(world: World) -> None:
    early = world.client()
    early.request(message("chat-001"), end=False, path=b"/chat.ChatService/Chat")  # keeps the drain going
    world.run()
    async with draining(world):
        late = Client(world)
        world.join(world.proxy.listener.connection(), late)
        sid = late.request(message("chat-002"))
        world.run()
        assert late.goaways[0].last_stream_id == MAX_STREAM_ID
        world.at(world.owner("chat-002")).respond(max(world.at(world.owner("chat-002")).exchanges))
        world.run()
        assert late.exchanges[sid].status == 0
        assert not late.connected
