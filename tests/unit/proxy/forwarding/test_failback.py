from __future__ import annotations

from proxy.cluster.address import Address
from proxy.cluster.endpoint import Cause, Endpoint
from proxy.forwarding.failback import DisplacedChats, FailbackSettings


def chats(**settings: object) -> tuple[Endpoint, DisplacedChats]:
    return Endpoint("B", Address("127.0.0.1", 1)), DisplacedChats(FailbackSettings.model_validate(settings))


def test_immediate_remembers_nothing() -> None:
    server, displaced = chats(mode="immediate")
    displaced.served(b"chat", server, 0.0)
    assert not displaced.chats


def test_idle_lets_a_chat_stay_until_it_has_been_idle_and_each_use_counts() -> None:
    server, displaced = chats(mode="idle", idle_time=60)
    displaced.served(b"chat", server, 0.0)
    for now in (50.0, 100.0, 159.0):
        assert displaced.find(b"chat", now) is server
    assert displaced.find(b"chat", 219.0) is None
    assert not displaced.chats


def test_never_lets_it_stay_for_good() -> None:
    server, displaced = chats(mode="never")
    displaced.served(b"chat", server, 0.0)
    assert displaced.find(b"chat", 1e9) is server


def test_a_server_that_is_not_available_loses_the_chats_it_took_in() -> None:
    server, displaced = chats(mode="never")
    displaced.served(b"chat", server, 0.0)
    server.block(Cause.HEALTH, "gone")
    assert displaced.find(b"chat", 1.0) is None


def test_a_chat_that_came_home_is_forgotten() -> None:
    server, displaced = chats()
    displaced.served(b"chat", server, 0.0)
    displaced.came_home(b"chat")
    assert displaced.find(b"chat", 0.0) is None


def test_the_longest_idle_chats_are_forgotten_beyond_the_maximum() -> None:
    server, displaced = chats(max_chats=3)
    for number in range(5):
        displaced.served(b"%d" % number, server, 0.0)
        displaced.find(b"0", 0.0)
    assert sorted(displaced.chats) == [b"0", b"3", b"4"]
