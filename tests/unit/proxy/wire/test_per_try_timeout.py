"""A server that does not begin its answer within `per_try_timeout`, on routes whose calls may run again."""

from __future__ import annotations

import ngh2

from tests.support.messages import message
from tests.support.world import World

GET = b"/a.B/Get"
PATIENT = [{"method": "/a.B/Get", "key": {"field": "1"}, "idempotent": True, "per_try_timeout": 1.0}]


def test_a_server_that_does_not_begin_in_time_is_left_for_the_next() -> None:
    world = World(routes=PATIENT).echoing()
    owner = world.owner("chat-005")
    world.at(owner).on_request = None
    client = world.start().client()
    sid = client.request(message("chat-005"), path=GET)
    world.advance(1.1)
    assert client.exchanges[sid].status == 0
    assert world.calls_at(owner)[0].reset == ngh2.ErrorCode.CANCEL
    world.assert_clean()


def test_with_no_other_server_allowed_the_last_one_keeps_the_call() -> None:
    world = World(routes=PATIENT, retry={"max_attempts": 1}).silent()
    client = world.start().client()
    sid = client.request(message("chat-005"), path=GET)
    world.advance(5.0)
    assert not client.exchanges[sid].ended
    world.at(world.owner("chat-005")).respond(1)
    world.run()
    assert client.exchanges[sid].status == 0
    world.assert_clean()


def test_a_response_that_has_begun_has_all_the_time() -> None:
    world = World(routes=PATIENT).silent()
    client = world.start().client()
    sid = client.request(message("chat-005"), path=GET)
    world.run()
    server = world.at(world.owner("chat-005"))
    server.begin(1)
    world.advance(30.0)
    server.finish(1)
    world.run()
    assert client.exchanges[sid].status == 0
    world.assert_clean()


def test_the_deadline_wins_over_every_repeat() -> None:
    world = World(routes=PATIENT).silent()
    client = world.start().client()
    sid = client.request(message("chat-005"), path=GET, extra=[(b"grpc-timeout", b"1500m")])
    world.advance(1.6)
    assert client.exchanges[sid].status == 4
    resets = [exchange.reset for name in "ABC" for exchange in world.calls_at(name)]
    assert resets == [ngh2.ErrorCode.CANCEL] * 2
    world.assert_clean()


def test_all_calls_of_a_server_that_hangs_come_over_once_it_is_found_out() -> None:
    """The first timeouts eject it; the rest of its calls follow without a charge."""
    world = World(routes=PATIENT).echoing()
    world.at("A").on_request = None
    client = world.start().client()
    sids = [client.request(message(chat), path=GET) for chat in world.chats_of("A", 100)]
    world.advance(1.1)
    assert {client.exchanges[sid].status for sid in sids} == {0}
    assert len(sids) > 50
    world.assert_clean()


def test_a_slow_server_keeps_the_call_if_there_is_no_other() -> None:
    world = World(routes=PATIENT)
    owner = world.owner("chat-005")
    world.server(owner)
    client = world.start().client()
    sid = client.request(message("chat-005"), path=GET)
    world.advance(3.0)
    assert not client.exchanges[sid].ended
    world.at(owner).respond(1)
    world.run()
    assert client.exchanges[sid].status == 0
    world.assert_clean()
