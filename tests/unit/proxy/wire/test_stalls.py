"""Who stalls and who is only slow: not one byte in `stall_timeout` seconds, or some, however few."""

from __future__ import annotations

import ngh2
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.frames import ENHANCE_YOUR_CALM
from tests.support.memory_transport import MemoryTransport
from tests.support.messages import message
from tests.support.peers import Client, Server
from tests.support.world import World

CHAT = b"/chat.ChatService/Chat"
INITIAL_WINDOW = ngh2.Setting.INITIAL_WINDOW_SIZE
TIMEOUT = 40.0
LOOK = 2.5
"""Seconds between two looks: a quarter of the shortest time there is, which is another one."""
LATEST = TIMEOUT + 2 * LOOK
"""Seconds without a byte after which nobody is spared."""
WIDE = 1 << 24


class Line:
    """A client whose transport takes only what the test lets through, its connection in the proxy, and its server."""

    def __init__(self, window: int = WIDE) -> None:
        self.world = World(listener={"stall_timeout": TIMEOUT}).silent().start()
        assert self.world.proxy.listener.sweeper.period == LOOK
        self.client: Client = self.world.client({INITIAL_WINDOW: window})
        self.client.engine.set_local_window_size(2**31 - 1)
        self.world.run()
        (self.downstream,) = self.world.proxy.listener.connections
        wire = self.downstream.wire
        assert isinstance(wire, MemoryTransport)
        self.wire = wire
        self.server: Server = self.world.at(self.world.owner("chat-001"))

    def call(self) -> int:
        sid = self.client.request(message("chat-001"), path=CHAT)
        self.world.run()
        self.server.begin(sid)
        self.world.run()
        return sid

    def answer(self, sid: int, size: int) -> None:
        """So many bytes of a response, as far as the windows allow; the rest waits in the server."""
        self.server.engine.send_data(sid, bytes(size))
        self.world.run()

    def drain(self, amount: int) -> None:
        if not self.wire.lost:
            self.wire.drain(amount)
        self.world.run()

    @property
    def stalls(self) -> int:
        return self.world.proxy.watch.counters.stall_timeout


def test_a_client_on_a_slow_line_is_not_taken_for_one_that_stalls() -> None:
    """Its transport is full all the time, so that nothing leaves the engine for minutes."""
    line = Line()
    line.wire.stall()
    sid = line.call()
    line.answer(sid, 1_000_000)
    line.server.finish(sid)
    assert line.downstream.paused
    for _ in range(1200):
        line.drain(1_000)
        line.world.advance(1.0)
    exchange = line.client.exchanges[sid]
    assert exchange.reset is None
    assert (len(exchange.body), exchange.status) == (1_000_000, 0)
    assert line.stalls == 0
    line.world.assert_clean()


def test_one_byte_now_and_then_is_enough() -> None:
    line = Line()
    line.wire.stall()
    sid = line.call()
    line.answer(sid, 1_000_000)
    for _ in range(20):
        line.drain(1)
        line.world.advance(TIMEOUT - LOOK)
    assert line.client.connected
    assert line.client.exchanges[sid].reset is None
    assert line.stalls == 0


@settings(max_examples=25)
@given(
    steps=st.lists(
        st.tuples(st.integers(1, 300_000), st.floats(0.0, TIMEOUT - 2 * LOOK), st.integers(0, 200_000)), max_size=20
    )
)
def test_whatever_the_pace_a_client_is_cut_off_only_after_a_whole_timeout_without_a_byte(
    steps: list[tuple[int, float, int]],
) -> None:
    line = Line()
    line.wire.stall()
    sid = line.call()
    line.answer(sid, 600_000)
    for amount, pause, more in steps:
        if not line.wire.buffered():
            line.answer(sid, 600_000)
        line.drain(amount)
        line.answer(sid, more)
        line.world.advance(pause)
        assert line.client.connected
        assert line.client.exchanges[sid].reset is None
    line.answer(sid, 600_000)
    assert line.downstream.paused
    line.world.advance(LATEST)
    assert not line.client.connected
    assert line.stalls >= 1


def test_a_client_that_stalls_after_it_was_slow_is_cut_off_in_time() -> None:
    line = Line()
    line.wire.stall()
    sid = line.call()
    line.answer(sid, 1_000_000)
    for _ in range(100):
        line.drain(1_000)
        line.world.advance(1.0)
    line.world.advance(TIMEOUT - LOOK)
    assert line.client.connected
    line.world.advance(2 * LOOK)
    assert not line.client.connected
    assert line.stalls == 1
    assert line.server.exchanges[sid].reset == ngh2.ErrorCode.CANCEL


def test_a_call_whose_bytes_are_on_their_way_behind_those_of_another_is_not_given_up() -> None:
    """Its window is used up by bytes that wait in the transport, so the client cannot open it yet."""
    line = Line(window=10_000)
    small, large = line.call(), line.call()
    line.client.engine.set_local_window_size(WIDE, stream_id=large)
    line.world.run()
    line.wire.stall()
    line.answer(large, 250_000)
    line.answer(small, 20_000)
    line.server.finish(small)
    for _ in range(8):
        line.answer(large, 100_000)
    exchange = line.client.exchanges[small]
    for _ in range(150):
        line.drain(2_000)
        line.world.advance(1.0)
    assert exchange.reset is None
    line.wire.resume()
    line.world.run()
    assert (len(exchange.body), exchange.status) == (20_000, 0)
    assert line.stalls == 0


def test_a_call_that_stalls_is_given_up_although_another_keeps_the_line_busy() -> None:
    line = Line(window=10_000)
    stuck, busy = line.call(), line.call()
    line.client.engine.set_local_window_size(WIDE, stream_id=busy)
    line.client.hold = True
    line.world.run()
    line.wire.stall()
    line.answer(stuck, 20_000)
    line.wire.high_water = 16_384
    waited = 0.0
    while line.client.exchanges[stuck].reset is None:
        line.answer(busy, 20_000)
        assert line.downstream.paused
        line.drain(20_000)
        line.client.take(busy)
        line.world.advance(1.0)
        waited += 1.0
        assert waited <= LATEST + 5.0
    assert waited >= TIMEOUT
    assert line.client.exchanges[stuck].reset == ENHANCE_YOUR_CALM
    assert line.client.exchanges[busy].reset is None
    assert line.stalls == 1


def test_the_last_bytes_of_a_short_response_may_be_taken_as_slowly() -> None:
    """They are so few that nobody watches their credit."""
    line = Line(window=100)
    line.client.hold = True
    sid = line.call()
    line.answer(sid, 1_000)
    line.server.finish(sid)
    line.world.run()
    exchange = line.client.exchanges[sid]
    for taken in range(100, 1_100, 100):
        assert (len(exchange.body), exchange.reset) == (taken, None)
        line.world.advance(TIMEOUT - 2 * LOOK)
        line.client.take(sid)
        line.world.run()
    assert exchange.status == 0


def test_what_is_shed_from_a_full_transport_does_not_hide_that_the_client_reads() -> None:
    line = Line()
    line.wire.stall()
    sid = line.call()
    line.answer(sid, 600_000)
    for _ in range(12):
        line.world.advance(LOOK * 2)
        before = line.wire.buffered()
        victim = line.call()
        line.answer(victim, 10_000)
        line.downstream.shed(10_000)
        added = line.wire.buffered() - before
        assert added > 0
        line.drain(added)
        line.world.run()
    assert line.client.connected


def test_what_is_written_is_counted_only_as_long_as_something_waits() -> None:
    line = Line()
    line.wire.stall()
    sid = line.call()
    line.answer(sid, 100_000)
    assert line.downstream.wire is line.wire
    line.world.advance(2 * LOOK)
    assert line.downstream.wire is not line.wire
    line.wire.resume()
    line.world.run()
    line.world.advance(2 * LOOK)
    assert line.downstream.wire is line.wire


# What is given up: the call, or the connection.


def stalling(world: World, window: int = 0) -> tuple[Client, int]:
    """A client that has a call with 50,000 bytes for it and gives no window."""
    client = world.client({INITIAL_WINDOW: window})
    client.hold = True
    sid = client.request(message("chat-001"), path=CHAT)
    world.run()
    server = world.at(world.owner("chat-001"))
    server.begin(1)
    server.engine.send_data(1, b"z" * 50_000)
    server.finish(1)
    world.run()
    return client, sid


def test_a_call_whose_client_takes_nothing_is_reset_on_both_sides() -> None:
    world = World(listener={"stall_timeout": 40.0}, upstream={"stream_window": 10_000}).silent().start()
    client, sid = stalling(world)
    other = client.request(message("chat-002"), path=CHAT)
    world.advance(35.0)
    assert client.exchanges[sid].reset is None
    world.advance(25.0)
    assert client.exchanges[sid].reset == ENHANCE_YOUR_CALM
    assert world.at(world.owner("chat-001")).exchanges[1].reset == ngh2.ErrorCode.CANCEL
    assert world.exceeded("stall_timeout") == 1
    assert client.exchanges[other].reset is None
    assert client.connected
    client.engine.reset_stream(other)
    world.run()
    world.assert_clean()


def test_a_response_that_only_waits_for_the_window_is_given_up_too() -> None:
    """The server has finished; body and trailers wait in the proxy."""
    world = World(listener={"stall_timeout": 40.0}).silent().start()
    client, sid = stalling(world)
    world.advance(60.0)
    assert client.exchanges[sid].reset == ENHANCE_YOUR_CALM
    world.assert_clean()


def test_a_response_that_is_taken_slowly_is_not_given_up_because_its_server_has_gone() -> None:
    world = World(listener={"stall_timeout": 40.0}).silent().start()
    client, sid = stalling(world, window=1000)
    exchange = client.exchanges[sid]
    world.kill(world.owner("chat-001"))
    for _ in range(60):
        client.take(sid)
        world.advance(1.0)
    assert exchange.reset is None
    assert (len(exchange.body), exchange.status) == (50_000, 0)
    world.assert_clean()


def test_trailers_alone_that_wait_for_the_window_are_given_up_too() -> None:
    world = World(listener={"stall_timeout": 40.0}).silent().start()
    client = world.client({INITIAL_WINDOW: 0})
    sid = client.request(message("chat-001"), path=CHAT)
    world.run()
    world.at(world.owner("chat-001")).respond(1)
    world.advance(60.0)
    assert client.exchanges[sid].reset == ENHANCE_YOUR_CALM
    world.assert_clean()


def test_a_client_that_takes_a_little_now_and_then_is_not_given_up() -> None:
    world = World(listener={"stall_timeout": 40.0}).silent().start()
    client, sid = stalling(world, window=100)
    for _ in range(20):
        client.take(sid)
        world.advance(30.0)
    assert client.exchanges[sid].reset is None
    assert len(client.exchanges[sid].body) == 21 * 100
    assert world.exceeded("stall_timeout") == 0


def test_a_client_that_drains_all_between_two_looks_is_not_given_up() -> None:
    world = World(listener={"stall_timeout": 40.0}).silent().start()
    client = world.client({INITIAL_WINDOW: 1000})
    client.hold = True
    sid = client.request(message("chat-001"), path=CHAT)
    world.run()
    server = world.at(world.owner("chat-001"))
    server.begin(1)
    for _ in range(30):
        server.engine.send_data(1, b"z" * 1000)
        world.run()
        client.take(sid)
        world.run()
        server.engine.send_data(1, b"z" * 1000)
        world.advance(9.0)
        client.take(sid)
        world.run()
    assert client.exchanges[sid].reset is None


def test_a_client_whose_transport_takes_nothing_loses_its_connection() -> None:
    world = World(listener={"stall_timeout": 40.0}).silent().start()
    client = world.client({INITIAL_WINDOW: 1 << 24})
    client.engine.set_local_window_size(2**31 - 1)
    client.request(message("chat-001"), path=CHAT)
    world.run()
    downstream = next(iter(world.proxy.listener.connections))
    downstream.wire.stall()  # type: ignore[union-attr]
    server = world.at(world.owner("chat-001"))
    server.begin(1)
    for _ in range(4):
        server.engine.send_data(1, b"z" * 100_000)
        world.run()
    world.advance(35.0)
    assert client.connected
    world.advance(30.0)
    assert not client.connected
    assert world.exceeded("stall_timeout") >= 1
