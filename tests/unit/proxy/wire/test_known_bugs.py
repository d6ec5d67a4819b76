"""Bugs that other proxies and gRPC implementations had, where no other test here asks for the same.

docs/known-bugs.md has the whole list, with the test that answers for each.
"""

from __future__ import annotations

import ngh2

from tests.support.messages import message
from tests.support.world import World

BIDI = b"/chat.ChatService/Chat"
CANCEL = 8


def test_a_call_that_is_sent_again_has_the_next_stream_of_its_new_connection() -> None:
    """nginx #1724: the buffered request went out again under the stream id of the connection before."""
    world = World()
    owner, second, third = world.order("chat-005")
    world.echoing(owner, second, third).start()
    client = world.client()
    for _ in range(3):
        client.request(message("chat-005"))
        world.run()
    world.at(owner).on_request = lambda server, sid, _: server.engine.reset_stream(sid, ngh2.ErrorCode.REFUSED_STREAM)
    sid = client.request(message("chat-005", "moved"))
    world.run()
    assert list(world.at(owner).exchanges) == [1, 3, 5, 7]
    assert list(world.at(second).exchanges) == [1]
    assert client.exchanges[sid].body == message("chat-005", "moved")
    assert client.exchanges[sid].status == 0
    world.assert_clean()


def test_a_reset_is_not_accompanied_by_a_ping() -> None:
    """golang #70575: a PING with every reset made gRPC servers end the connection for too many pings."""
    world = World(listener={"max_premature_resets": 1000})
    server = world.server("A")
    for name in "BC":
        world.server(name)
    world.start()
    client = world.client()
    for number in range(300):
        sid = client.request(message(f"chat-{number}"))
        world.run()
        client.engine.reset_stream(sid, ngh2.ErrorCode.CANCEL)
        world.run()
    resets = [exchange.reset for exchange in server.exchanges.values()]
    assert resets
    assert set(resets) == {CANCEL}
    assert sum(world.at(name).pings for name in "ABC") == 0
    world.assert_clean()


def test_a_client_may_ping_for_every_piece_of_data_that_it_gets() -> None:
    """grpc-swift-2 #5: Go pings to measure the path while data comes, and was cut off, as the server counted one write
    where the wire had many frames.
    """
    world = World().silent()
    client = world.start().client()
    sid = client.request(message("chat-0"), path=BIDI, end=False)
    world.run()
    server = world.at(world.owner("chat-0"))
    server.begin(1)
    for number in range(1, 101):
        server.engine.send_data(1, bytes(40_000))
        world.run()
        client.engine.ping()
        world.run()
        assert client.connected, f"cut off at ping {number}"
    assert client.raw.count(b"\x00\x00\x08\x06\x01\x00\x00\x00\x00") == 100  # PING ACK frames
    assert len(client.exchanges[sid].body) == 4_000_000
    assert not client.goaways


def test_messages_that_straddle_the_window_do_not_starve() -> None:
    """linkerd #1013: with a window of two frames F, a message of F-1 bytes was read and its credit held back, so that
    the next one, of F+2 bytes, could never come whole.
    """
    frame = 1000
    world = World(listener={"stream_window": 2 * frame}, upstream={"stream_window": 2 * frame}).echoing()
    client = world.start().client()
    first, second = message("chat-0", "x" * (frame - 17)), message("chat-0", "y" * (frame - 14))
    assert (len(first), len(second)) == (frame - 1, frame + 2)
    sid = client.request(first, path=BIDI, end=False)
    for _ in range(20):
        client.engine.send_data(sid, second)
        client.engine.send_data(sid, first)
        world.run()
    client.engine.end_stream(sid)
    world.run()
    assert client.exchanges[sid].body == first + (second + first) * 20
    assert client.exchanges[sid].status == 0
    world.assert_clean()
