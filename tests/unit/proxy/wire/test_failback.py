"""When a displaced chat goes home, and what its servers are told of each other."""

from __future__ import annotations

import pytest

from proxy.cluster.endpoint import Cause
from tests.support.messages import message
from tests.support.peers import echo
from tests.support.world import World, endpoints


@pytest.mark.parametrize(("mode", "stays"), [("immediate", False), ("idle", True), ("never", True)])
def test_a_chat_that_was_displaced_goes_home_as_failback_says(mode: str, stays: bool) -> None:
    world = World(failback={"mode": mode}).echoing().start()
    owner, second, _ = world.order("chat-005")
    home = world.proxy.cluster.snapshot.by_id[owner]
    client = world.client()
    home.block(Cause.HEALTH, "gone")
    client.request(message("chat-005"))
    world.run()
    home.unblock(Cause.HEALTH)
    client.request(message("chat-005"))
    world.run()
    assert (len(world.calls_at(owner)), len(world.calls_at(second))) == ((0, 2) if stays else (1, 1))
    world.advance(61.0)
    client.request(message("chat-005"))
    world.run()
    assert (len(world.calls_at(owner)) > 0) is (mode != "never")
    world.assert_clean()


def test_a_chat_without_calls_in_between_never_knew_that_its_owner_was_away() -> None:
    world = World().echoing().start()
    owner = world.owner("chat-005")
    home = world.proxy.cluster.snapshot.by_id[owner]
    home.block(Cause.HEALTH, "gone")
    home.unblock(Cause.HEALTH)
    world.client().request(message("chat-005"))
    world.run()
    assert len(world.calls_at(owner)) == 1


def test_a_displaced_chat_goes_on_when_its_substitute_fails_too() -> None:
    world = World().echoing().start()
    owner, second, third = (world.proxy.cluster.snapshot.by_id[name] for name in world.order("chat-005"))
    client = world.client()
    owner.block(Cause.HEALTH, "gone")
    client.request(message("chat-005"))
    world.run()
    second.block(Cause.HEALTH, "gone")
    client.request(message("chat-005"))
    world.run()
    assert len(world.calls_at(third.id)) == 1
    owner.unblock(Cause.HEALTH)
    second.unblock(Cause.HEALTH)
    client.request(message("chat-005"))
    world.run()
    assert len(world.calls_at(third.id)) == 2


# Who had the chat before.


def told(world: World, name: str) -> list[bytes | None]:
    """What the server was told of each call, in order."""
    server = world.at(name)
    return [
        dict(each.exchanges[sid].headers).get(b"x-districhat-previous-owner")
        for each in [*server.connections]
        for sid in each.order
    ]


@pytest.mark.parametrize("mode", ["immediate", "idle"])
def test_the_first_call_of_a_moved_chat_says_who_had_it_both_ways(mode: str) -> None:
    world = World(failback={"mode": mode}).echoing().start()
    owner, second, _ = world.order("chat-005")
    home = world.proxy.cluster.snapshot.by_id[owner]
    client = world.client()

    def call() -> None:
        client.request(message("chat-005"))
        world.run()

    call()
    home.block(Cause.HEALTH, "gone")
    call()
    call()
    home.unblock(Cause.HEALTH)
    world.advance(61.0)
    call()
    call()
    assert told(world, second) == [owner.encode(), None]
    assert told(world, owner) == [None, second.encode(), None]
    world.assert_clean()


def test_a_call_that_fails_over_says_who_failed_and_a_client_cannot_say_it() -> None:
    world = World(failback={"mode": "immediate"}).echoing()
    owner, second, _ = world.order("chat-005")
    world.at(owner).on_request = lambda server, sid, exchange: server.refuse(sid)
    client = world.start().client()
    client.request(message("chat-005"), extra=[(b"x-districhat-previous-owner", b"evil")])
    world.run()
    assert set(told(world, owner)) == {None}
    assert told(world, second) == [owner.encode()]
    world.assert_clean()


def test_nobody_is_told_when_announcing_is_off() -> None:
    world = World(failback={"announce_moves": False}).echoing().start()
    owner, second, _ = world.order("chat-005")
    world.proxy.cluster.snapshot.by_id[owner].block(Cause.HEALTH, "gone")
    world.client().request(message("chat-005"))
    world.run()
    assert told(world, second) == [None]


def test_a_chat_whose_owner_changes_with_the_members_says_who_had_it() -> None:
    world = World(endpoints=endpoints("A", "B")).echoing().start()
    client = world.client()
    chat = World().chats_of("C", 1)[0]
    before = world.owner(chat)
    client.request(message(chat))
    world.run()
    world.server("C").on_request = echo
    world.reload()
    for _ in range(2):
        client.request(message(chat))
        world.run()
    assert told(world, "C") == [before.encode(), None]
    world.assert_clean()
