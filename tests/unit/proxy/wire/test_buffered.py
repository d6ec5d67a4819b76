"""Bytes that wait in the proxy are bounded: for a client, for a server, and in all."""

from __future__ import annotations

import ngh2
import pytest

from tests.support.frames import ENHANCE_YOUR_CALM
from tests.support.messages import framed, message
from tests.support.peers import Client
from tests.support.world import World

RESOURCE_EXHAUSTED = 8
INITIAL_WINDOW = ngh2.Setting.INITIAL_WINDOW_SIZE
CHAT = b"/chat.ChatService/Chat"


def hoard(world: World, client: Client, calls: int, size: int, server: str) -> None:
    """Responses of `size` bytes to `calls` calls that the client does not take."""
    first = len(world.at(server).exchanges)
    for _ in range(calls):
        client.request(message("chat-001"), path=CHAT)
    world.run()
    for number in range(first, first + calls):
        if world.at(server).exchanges[2 * number + 1].reset is None:
            world.at(server).begin(2 * number + 1)
            world.at(server).engine.send_data(2 * number + 1, b"z" * size)
    world.run()


@pytest.mark.parametrize("stalled", [False, True], ids=["no window", "transport full"])
def test_a_client_that_lets_too_much_wait_loses_its_largest_calls(stalled: bool) -> None:
    world = World(limits={"max_buffered_per_connection": 1_000_000}, upstream={"stream_window": 100_000})
    world.silent().start()
    client = world.client({INITIAL_WINDOW: 1 << 24 if stalled else 0})
    client.engine.set_local_window_size(2**31 - 1)
    world.run()
    downstream = next(iter(world.proxy.listener.connections))
    if stalled:
        downstream.wire.stall()  # type: ignore[union-attr]
    server = world.owner("chat-001")
    hoard(world, client, 5, 1_000, server)
    for _ in range(40):
        hoard(world, client, 1, 100_000, server)
    assert world.exceeded("buffered_per_connection") >= 1
    held = downstream.engine.queued_body_size() + downstream.wire.buffered()  # type: ignore[union-attr]
    assert held <= 1_100_000
    small = [client.exchanges[2 * number + 1] for number in range(5)]
    assert all(each.reset is None for each in small)
    if not stalled:
        assert sum(each.reset == ENHANCE_YOUR_CALM for each in client.exchanges.values()) >= 30
    else:
        downstream.wire.resume()  # type: ignore[union-attr]
        world.run()
        assert all(len(each.body) == 1_000 for each in small)
        assert sum(each.reset == ENHANCE_YOUR_CALM for each in client.exchanges.values()) >= 20


def test_beyond_the_total_the_client_that_holds_most_pays() -> None:
    world = World(limits={"max_buffered": 1_000_000}, upstream={"stream_window": 100_000}).silent().start()
    server = world.owner("chat-001")
    modest, greedy = world.client({INITIAL_WINDOW: 0}), world.client({INITIAL_WINDOW: 0})
    hoard(world, modest, 2, 100_000, server)
    hoard(world, greedy, 20, 100_000, server)
    assert world.exceeded("buffered") >= 1
    assert all(each.reset is None for each in modest.exchanges.values())
    assert world.proxy.outbox.backlog.total <= 1_000_000


def test_beyond_the_total_no_more_calls_are_given_up_than_it_takes() -> None:
    """Ten clients come to hold something in the same moment, when the uploads to a slow server take nearly all."""
    world = World(
        limits={"max_buffered": 1_000_000}, listener={"stream_window": 100_000}, upstream={"stream_window": 100_000}
    ).silent()
    slow = world.owner("chat-001")
    world.server(slow, {INITIAL_WINDOW: 0}).hold = True
    world.start()
    uploads = []
    for _ in range(15):
        client = world.client()
        uploads.append((client, client.request(message("chat-001", "x" * 60_000), path=CHAT, end=False)))
    world.run()
    other = next(name for name in "ABC" if name != slow)
    (chat,) = world.chats_of(other, 1)
    for client in [world.client({INITIAL_WINDOW: 0}) for _ in range(10)]:
        client.request(message(chat), path=CHAT)
    world.run()
    server = world.at(other)
    for sid in tuple(server.exchanges):
        server.begin(sid)
        server.engine.send_data(sid, bytes(30_000))
    world.run()
    assert sum(client.exchanges[sid].status == RESOURCE_EXHAUSTED for client, sid in uploads) == 5
    assert 700_000 <= world.proxy.outbox.backlog.total <= 1_000_000


def test_a_client_whose_uploads_pile_up_at_a_slow_server_loses_the_largest() -> None:
    world = World(limits={"max_buffered_per_connection": 1_000_000}, listener={"stream_window": 100_000})
    for name in "ABC":
        world.server(name, {INITIAL_WINDOW: 0}).hold = True
    world.start()
    modest, greedy = world.client(), world.client()
    mine = [modest.request(message("chat-001", "x" * 60_000), path=CHAT, end=False) for _ in range(4)]
    theirs = [greedy.request(message("chat-001", "x" * 90_000), path=CHAT, end=False) for _ in range(20)]
    world.run()
    assert all(modest.exchanges[sid].status is None for sid in mine)
    assert sum(greedy.exchanges[sid].status == RESOURCE_EXHAUSTED for sid in theirs) >= 9
    assert world.exceeded("buffered_per_connection") >= 1
    assert world.proxy.outbox.backlog.total <= 1_500_000


def test_what_is_gone_is_not_counted_any_more() -> None:
    world = World(upstream={"stream_window": 100_000}).silent().start()
    client = world.client({INITIAL_WINDOW: 0})
    hoard(world, client, 3, 100_000, world.owner("chat-001"))
    assert world.proxy.outbox.backlog.total == 300_000
    client.transport.abort()
    world.run()
    assert world.proxy.outbox.backlog.total == 0
    world.assert_clean()


def test_what_a_client_no_longer_wants_is_not_counted_any_more_however_little_it_is() -> None:
    world = World(upstream={"stream_window": 100_000}).silent().start()
    client = world.client({INITIAL_WINDOW: 0})
    hoard(world, client, 3, 3_000, world.owner("chat-001"))
    assert world.proxy.outbox.backlog.total == 9_000
    for sid in client.exchanges:
        client.engine.reset_stream(sid)
    world.run()
    assert world.proxy.outbox.backlog.total == 0
    world.assert_clean()


def test_what_a_server_refuses_to_take_is_not_counted_any_more() -> None:
    world = World(listener={"stream_window": 100_000}).echoing(settings={INITIAL_WINDOW: 0}).start()
    client = world.client()
    sid = client.request(message("chat-001", "x" * 90_000), path=CHAT)
    world.run()
    assert world.proxy.outbox.backlog.total > 90_000
    world.at(world.owner("chat-001")).engine.reset_stream(1, ngh2.ErrorCode.INTERNAL_ERROR)
    world.run()
    assert client.exchanges[sid].ended
    assert world.proxy.outbox.backlog.total == 0
    world.assert_clean()


def test_first_messages_of_one_client_that_never_end_do_not_starve_another() -> None:
    world = World(limits={"max_buffered_per_connection": 500_000}, retry={"replay_buffer_total": 1_000_000})
    world.echoing().start()
    endless = framed(b"\x12\x80\x80\x80\x01" + b"x" * 90_000 + bytes(2_100_000))[:90_000]
    clients = [world.client() for _ in range(4)]
    sids = [(client, client.request(endless, end=False)) for client in clients for _ in range(8)]
    world.run()
    refused = [client.exchanges[sid].status == RESOURCE_EXHAUSTED for client, sid in sids]
    assert sum(refused) >= 16
    assert world.exceeded("request_bytes") == sum(refused)
    assert world.proxy.forwarder.kept <= 1_000_000
    good = world.client()
    sid = good.request(message("chat-001")[:6], end=False)
    world.run()
    good.engine.send_data(sid, message("chat-001")[6:], end_stream=True)
    world.run()
    assert good.exchanges[sid].status == 0


def test_requests_that_wait_for_a_server_are_bounded() -> None:
    world = World(limits={"max_buffered_per_connection": 500_000}, upstream={"max_connections": 1})
    world.silent(settings={ngh2.Setting.MAX_CONCURRENT_STREAMS: 1})
    client = world.start().client()
    sids = [client.request(message("chat-001", "x" * 90_000), path=CHAT, end=False) for _ in range(20)]
    world.run()
    refused = [sid for sid in sids if client.exchanges[sid].status == RESOURCE_EXHAUSTED]
    assert len(refused) >= 14
    assert world.exceeded("request_bytes") == len(refused)
    assert next(iter(world.proxy.listener.connections)).kept <= 500_000


def test_a_call_that_is_turned_away_while_it_waits_for_a_server_does_not_keep_its_place_there() -> None:
    world = World(limits={"max_buffered_per_connection": 100_000}, upstream={"max_connections": 1})
    world.silent(settings={ngh2.Setting.MAX_CONCURRENT_STREAMS: 1})
    greedy, good = world.start().client(), world.client()
    first = greedy.request(message("chat-001"), path=CHAT)
    world.run()
    hoards = [greedy.request(message("chat-001", "x" * 60_000), path=CHAT, end=False) for _ in range(3)]
    world.run()
    assert [greedy.exchanges[sid].status for sid in hoards] == [None, RESOURCE_EXHAUSTED, RESOURCE_EXHAUSTED]
    greedy.engine.reset_stream(hoards[0])
    waits = good.request(message("chat-001"), path=CHAT)
    world.run()
    world.echo_everywhere()
    greedy.engine.reset_stream(first)
    world.run()
    assert good.exchanges[waits].status == 0
    world.assert_clean()
