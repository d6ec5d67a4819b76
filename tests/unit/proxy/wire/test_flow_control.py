"""Back-pressure from end to end: who may not be held up by whom, and how much is ever held."""

from __future__ import annotations

import ngh2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.messages import framed, message
from tests.support.world import World

WINDOW = 65_535
INITIAL_WINDOW = ngh2.Setting.INITIAL_WINDOW_SIZE


def held(world: World) -> int:
    """Bytes of bodies in the proxy: in its engines and in its transports."""
    connections = [*world.proxy.listener.connections]
    for pool in world.proxy.pools.values():
        connections += pool.connections
    return sum(each.engine.queued_body_size() + each.wire.buffered() for each in connections)  # type: ignore[union-attr]


def test_a_message_larger_than_every_window_passes_both_ways() -> None:
    world = World(listener={"stream_window": WINDOW}, upstream={"stream_window": WINDOW}).echoing().start()
    client = world.client()
    body = message("chat-001", "x" * 3_000_000)
    sid = client.request(body)
    world.run()
    assert client.exchanges[sid].body == body
    assert client.exchanges[sid].status == 0
    world.assert_clean()


def test_a_server_that_does_not_read_holds_up_the_client_within_the_window() -> None:
    world = World(listener={"stream_window": WINDOW})
    for name in "ABC":
        world.server(name).hold = True
    client = world.start().client()
    sid = client.request(message("chat-001", "x" * 1_000_000))
    world.run()
    server = world.at(world.owner("chat-001"))
    assert len(server.exchanges[1].body) == WINDOW
    assert held(world) <= WINDOW
    assert client.engine.queued_body_size(sid) >= 1_000_000 - 2 * WINDOW
    while not server.exchanges[1].ended:
        server.take(1)
        world.run()
        assert held(world) <= WINDOW
    server.respond(1)
    world.run()
    assert client.exchanges[sid].status == 0
    world.assert_clean()


def test_a_client_that_does_not_read_holds_up_the_server_within_the_window() -> None:
    world = World(upstream={"stream_window": WINDOW}).silent()
    client = world.start().client()
    client.hold = True
    sid = client.request(message("chat-001"))
    world.run()
    server = world.at(world.owner("chat-001"))
    server.begin(1)
    server.engine.send_data(1, b"y" * 1_000_000)
    server.finish(1)
    world.run()
    assert len(client.exchanges[sid].body) == WINDOW
    assert held(world) <= WINDOW
    while not client.exchanges[sid].ended:
        client.take(sid)
        world.run()
        assert held(world) <= WINDOW
    assert len(client.exchanges[sid].body) == 1_000_000
    world.assert_clean()


def test_one_stalled_stream_does_not_hold_up_the_others_of_its_connections() -> None:
    """linkerd2 #638, netty #4423, golang #54330."""
    world = World().silent()
    client = world.start().client({INITIAL_WINDOW: 1 << 20})
    client.engine.set_local_window_size(2**31 - 1)
    client.hold = True
    stalled = [client.request(message("chat-001")) for _ in range(20)]
    world.run()
    server = world.at(world.owner("chat-001"))
    for number in range(20):
        server.begin(2 * number + 1)
        server.engine.send_data(2 * number + 1, b"z" * 3_000_000)
    world.run()
    free = client.request(message("chat-001"))
    world.run()
    server.respond(41, framed(b"quick"))
    world.run()
    assert client.exchanges[free].body == framed(b"quick")
    assert client.exchanges[free].status == 0
    assert all(len(client.exchanges[sid].body) == 1 << 20 for sid in stalled)


def test_a_transport_that_takes_nothing_holds_back_credit_too() -> None:
    """Bytes in the transport's buffer have not been taken by the client: no credit for them (wire rule 2)."""
    world = World(upstream={"stream_window": WINDOW}).silent()
    client = world.start().client({INITIAL_WINDOW: 1 << 24})
    client.engine.set_local_window_size(2**31 - 1)
    world.run()
    sids = [client.request(message("chat-001")) for _ in range(20)]
    world.run()
    downstream = next(iter(world.proxy.listener.connections))
    downstream.wire.stall()  # type: ignore[union-attr]
    server = world.at(world.owner("chat-001"))
    for number in range(20):
        server.begin(2 * number + 1)
        server.engine.send_data(2 * number + 1, b"z" * 1_000_000)
        server.finish(2 * number + 1)
    world.run()
    assert held(world) <= 20 * WINDOW + 2 * downstream.wire.high_water  # type: ignore[union-attr]
    downstream.wire.resume()  # type: ignore[union-attr]
    world.run()
    assert all(len(client.exchanges[sid].body) == 1_000_000 for sid in sids)
    world.assert_clean()


def test_control_frames_are_answered_while_data_is_blocked() -> None:
    """helidon #12182."""
    world = World().silent()
    client = world.start().client({INITIAL_WINDOW: 0})
    sid = client.request(message("chat-001"))
    world.run()
    server = world.at(world.owner("chat-001"))
    server.respond(1, b"blocked")
    world.run()
    client.engine.ping(b"still up")
    server.engine.ping(b"you too?")
    world.run()
    assert b"still up" in client.raw
    assert b"you too?" in server.raw
    assert client.exchanges[sid].body == b""
    client.engine.update_settings({INITIAL_WINDOW: 100})
    world.run()
    assert client.exchanges[sid].body == b"blocked"
    world.assert_clean()


def test_data_for_a_call_that_is_over_still_returns_the_connections_credit() -> None:
    world = World(listener={"stream_window": WINDOW, "max_concurrent_streams": 1}).start()  # no server: refused at once
    client = world.client()
    for _ in range(40):
        sid = client.request(message("chat-001", "x" * 10_000), end=False)
        client.flush()
        world.run()
        client.engine.reset_stream(sid)
        world.run()
    downstream = next(iter(world.proxy.listener.connections))
    assert downstream.engine.local_window_size > WINDOW // 2 - 10_100
    world.assert_clean()


def test_credit_for_a_cancelled_response_goes_back_to_the_server() -> None:
    world = World(upstream={"stream_window": WINDOW}).silent()
    client = world.start().client({INITIAL_WINDOW: 0})
    for number in range(30):
        sid = client.request(message("chat-001"))
        world.run()
        server = world.at(world.owner("chat-001"))
        server.begin(2 * number + 1)
        server.engine.send_data(2 * number + 1, b"z" * 50_000)
        world.run()
        client.engine.reset_stream(sid)
        world.run()
        world.assert_clean()


@pytest.mark.parametrize("ended", [False, True])
def test_credit_for_a_response_goes_back_when_the_client_vanishes(ended: bool) -> None:
    world = World(upstream={"stream_window": WINDOW}).silent()
    client = world.start().client({INITIAL_WINDOW: 10})
    client.hold = True
    client.request(message("chat-001"))
    world.run()
    server = world.at(world.owner("chat-001"))
    server.begin(1)
    server.engine.send_data(1, b"z" * 50_000)
    if ended:
        server.finish(1)
    world.run()
    client.transport.abort()
    world.run()
    world.assert_clean()
    upstream = world.proxy.pools[world.proxy.cluster.snapshot.by_id[world.owner("chat-001")]].connections[0]
    assert upstream.closed is False


@settings(max_examples=40)
@given(
    client_window=st.integers(1, 1 << 17),
    server_window=st.integers(1, 1 << 17),
    proxy_window=st.integers(1, 1 << 17),
    sizes=st.lists(st.integers(0, 60_000), min_size=1, max_size=12),
    cut=st.integers(1, 20_000),
)
def test_no_byte_is_lost_reordered_or_stuck_whatever_the_windows(
    client_window: int, server_window: int, proxy_window: int, sizes: list[int], cut: int
) -> None:
    # Windows of a few bytes make a frame per byte; keep the work of one example bounded.
    smallest = min(client_window, server_window, proxy_window)
    sizes = [min(size, smallest * 400) for size in sizes]
    world = World(
        cut=lambda data: (data[i : i + cut] for i in range(0, len(data), cut)),
        listener={"stream_window": proxy_window},
        upstream={"stream_window": proxy_window},
    )
    world.echoing(settings={INITIAL_WINDOW: server_window}).start()
    client = world.client({INITIAL_WINDOW: client_window})
    bodies = {
        client.request(message(f"c{n}", "t" * size)): message(f"c{n}", "t" * size) for n, size in enumerate(sizes)
    }
    world.run()
    assert {sid: client.exchanges[sid].body for sid in bodies} == bodies
    assert all(client.exchanges[sid].status == 0 for sid in bodies)
    world.assert_clean()


def nothing_owed(world: World) -> None:
    """Every byte of every stream has been credited to its sender, by the engines' own account."""
    connections = [*world.proxy.listener.connections]
    for pool in world.proxy.pools.values():
        connections += pool.connections
    for connection in connections:
        for sid in range(1, 20):
            with pytest.raises(ValueError, match="exceeds unacknowledged data"):
                connection.engine.acknowledge_received_data(1, sid)


@pytest.mark.parametrize("size", [0, 1, 100, 4080, 4096, 4097, 20_000])
def test_a_calls_end_returns_all_of_its_credit_whatever_its_size(size: int) -> None:
    world = World().echoing().start()
    client = world.client()
    sid = client.request(message("chat-001", "x" * size))
    world.run()
    assert client.exchanges[sid].status == 0
    nothing_owed(world)


@pytest.mark.parametrize("size", [1, 3000, 5000])
@pytest.mark.parametrize("end", ["served", "cancelled", "reset", "client lost"])
def test_a_streams_end_returns_all_of_its_credit_however_it_ends(end: str, size: int) -> None:
    world = World().silent()
    client = world.start().client()
    sid = client.request(message("chat-001", "x"), end=False)
    world.run()
    server = world.at(world.owner("chat-001"))
    server.begin(1)
    for _ in range(3):
        client.engine.send_data(sid, framed(b"u" * size))
        server.engine.send_data(1, framed(b"d" * size))
        world.run()
    if end == "served":
        client.engine.send_data(sid, b"", end_stream=True)
        server.finish(1)
    elif end == "cancelled":
        client.engine.reset_stream(sid)
    elif end == "reset":
        server.engine.reset_stream(1)
    else:
        client.transport.abort()
    world.run()
    nothing_owed(world)
    world.assert_clean()


def test_a_long_stream_of_small_messages_gets_its_credit_on_the_way() -> None:
    world = World(listener={"stream_window": WINDOW}, upstream={"stream_window": WINDOW}).silent()
    client = world.start().client()
    sid = client.request(message("chat-001", "x"), end=False)
    world.run()
    server = world.at(world.owner("chat-001"))
    server.begin(1)
    for _ in range(2_000):  # three windows' worth
        client.engine.send_data(sid, framed(b"u" * 95))
        server.engine.send_data(1, framed(b"d" * 95))
        world.run()
    assert len(server.exchanges[1].body) == 2_000 * 100 + len(message("chat-001", "x"))
    assert len(client.exchanges[sid].body) == 2_000 * 100
