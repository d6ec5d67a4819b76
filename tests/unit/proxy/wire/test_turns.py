"""Nobody is kept waiting by a client with much to say: how much of it is read at once, and who is heard in between."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.http2.turns import AT_ONCE, FAIR, FIRST_ROOM, MAX_ROOM, MIN_ROOM, Turns, fair_room
from tests.support.frames import HELLO, PREFACE, WINDOW_UPDATE, frame, number
from tests.support.loop import Loop
from tests.support.messages import message
from tests.support.world import World

if TYPE_CHECKING:
    from proxy.transport.downstream import DownstreamConnection
    from tests.support.peers import RawPeer

CHAT = b"/chat.ChatService/Chat"
ONE_MORE = frame(WINDOW_UPDATE, 0, 0, number(1))
WINDOW = 65_535


class SlowWorld(World):
    """On a machine on which a read takes `seconds`, if it is timed: it looks at the clock once in between."""

    seconds = FAIR

    def clock(self) -> float:
        self.time += self.seconds / 2
        return self.time


def of(client: RawPeer) -> DownstreamConnection:
    """The proxy's side of it."""
    return next(each for each in client.world.proxy.listener.connections if each.wire is client.transport.peer)


def test_who_fills_its_room_is_read_from_when_others_have_been_heard() -> None:
    world = SlowWorld().echoing().start()
    noisy, good = world.raw_client(HELLO), world.client()
    noisy.transport.write(ONE_MORE * 20_000)
    sid = good.request(message())
    good.flush()
    noisy.transport.deliver()
    assert not noisy.transport.peer.reading
    heard = of(noisy).engine.remote_window_size - WINDOW
    assert 0 < heard <= FIRST_ROOM // len(ONE_MORE)
    good.transport.deliver()
    world.run()
    assert good.exchanges[sid].status == 0
    assert noisy.transport.peer.reading
    assert of(noisy).engine.remote_window_size == WINDOW + 20_000


def test_who_does_not_fill_its_room_does_not_wait() -> None:
    client = SlowWorld().start().raw_client(HELLO)
    client.transport.write(ONE_MORE * (FIRST_ROOM // len(ONE_MORE)))
    client.transport.deliver()
    assert client.transport.peer.reading


def test_who_fills_its_room_several_times_does_not_wait_before_its_turn_is_over() -> None:
    world = SlowWorld().start()
    client = world.raw_client(HELLO)
    world.seconds = 0.3 * FAIR
    client.transport.write(ONE_MORE * 100_000)
    client.transport.deliver()
    assert not client.transport.peer.reading
    # Room for 0.3 of a turn, double that for another 0.3, and so on.
    assert of(client).engine.remote_window_size == WINDOW + (1 + 2 + 4 + 8) * FIRST_ROOM // len(ONE_MORE)


def test_the_room_shrinks_while_what_comes_takes_long_and_grows_again_when_it_no_longer_does() -> None:
    world = SlowWorld().start()
    client = world.raw_client(HELLO)
    world.seconds = 4 * FAIR
    client.say(ONE_MORE * (FIRST_ROOM // len(ONE_MORE)))
    assert len(of(client).room) == MIN_ROOM
    world.seconds = 0.0
    client.say(ONE_MORE * 100_000)
    assert len(of(client).room) == MAX_ROOM
    assert of(client).engine.remote_window_size > WINDOW + 100_000


def test_a_client_that_is_told_goodbye_while_it_waits_has_no_turn() -> None:
    world = SlowWorld().start()
    client = world.raw_client(HELLO)
    client.transport.write(ONE_MORE * (FIRST_ROOM // len(ONE_MORE) + 1))
    client.transport.deliver()
    wire = client.transport.peer
    assert not wire.reading
    of(client).close()
    world.run()
    assert not wire.reading
    assert wire.lost


def test_a_client_that_is_cut_off_for_what_fills_its_room_does_not_wait() -> None:
    world = SlowWorld().start()
    client = world.raw_client(PREFACE.ljust(FIRST_ROOM, b"\xff"))
    assert client.transport.peer.lost


def test_a_large_message_arrives_whole() -> None:
    world = SlowWorld(listener={"stream_window": 1_000_000}).echoing().start()
    client = world.client()
    body = message("chat-001", "x" * 900_000)
    sid = client.request(body)
    world.run()
    assert client.exchanges[sid].body == body


def test_a_server_that_fills_its_room_takes_turns_too() -> None:
    world = SlowWorld().silent().start()
    client = world.client(settings={4: 1_000_000})
    sid = client.request(message("chat-001"))
    world.run()
    server = world.at(world.owner("chat-001"))
    server.begin(sid)
    server.engine.send_data(sid, bytes(FIRST_ROOM))
    server.flush()
    server.transport.deliver()
    assert not server.transport.peer.reading
    world.run()
    assert server.transport.peer.reading
    assert len(client.exchanges[sid].body) == FIRST_ROOM


class Waiting:
    def __init__(self, name: int, log: list[int]) -> None:
        self.name, self.log = name, log

    def read_on(self) -> None:
        self.log.append(self.name)


def test_a_few_read_on_in_each_pass_in_the_order_in_which_they_came() -> None:
    loop, log = Loop(), []
    turns = Turns(loop.call_soon, float)
    for name in range(2 * AT_ONCE + 1):
        turns.wait(Waiting(name, log))
    for passes in (1, 2):
        loop.run()
        assert log == list(range(passes * AT_ONCE))
    loop.run()
    assert log == list(range(2 * AT_ONCE + 1))
    assert not loop.scheduled, "nobody waits, and so no pass is asked for"


def test_a_bug_in_one_of_them_keeps_nobody_waiting() -> None:
    class Broken(Waiting):
        def read_on(self) -> None:
            raise ZeroDivisionError

    loop, log = Loop(), []
    turns = Turns(loop.call_soon, float)
    turns.wait(Broken(0, log))
    for name in range(1, AT_ONCE + 1):
        turns.wait(Waiting(name, log))
    with pytest.raises(ZeroDivisionError):
        loop.run()
    loop.run()
    assert log == list(range(1, AT_ONCE + 1))


ROOMS = st.integers(MIN_ROOM, MAX_ROOM)


@given(room=ROOMS, share=st.floats(0, 1), seconds=st.floats(0, 10))
def test_a_room_grows_to_the_double_at_most_and_only_for_who_fills_it(room: int, share: float, seconds: float) -> None:
    taken = min(room, 1 + int(room * share))
    after = fair_room(room, taken, seconds)
    assert MIN_ROOM <= after <= MAX_ROOM
    assert after <= (2 * room if taken == room else room)


@given(room=ROOMS, cost=st.floats(1e-10, 1e-6))
def test_reads_of_one_kind_come_to_take_a_fair_time(room: int, cost: float) -> None:
    """`cost`: seconds a byte."""
    for _ in range(10):
        room = fair_room(room, room, room * cost)
    assert room * cost <= FAIR * 1.001 or room == MIN_ROOM
    assert room * cost >= FAIR * 0.9 or room == MAX_ROOM
