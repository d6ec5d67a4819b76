from __future__ import annotations

import pytest

from proxy.balancing.settings import RingSettings
from proxy.cluster.address import Address
from proxy.cluster.endpoint import Cause, Endpoint
from proxy.cluster.snapshot import ClusterSnapshot
from proxy.forwarding.failback import ANNOUNCE_TIME, DisplacedChats, FailbackSettings
from proxy.slices import at_once

KEYS = [b"chat-%d" % number for number in range(200)]


def server(name: str) -> Endpoint:
    return Endpoint(name, Address("127.0.0.1", 1))


def snapshot(*names: str) -> ClusterSnapshot:
    return at_once(ClusterSnapshot.building({server(name): 1.0 for name in names}, RingSettings(), version=1))


def chats(**settings: object) -> tuple[Endpoint, DisplacedChats]:
    return server("B"), DisplacedChats(FailbackSettings.model_validate(settings), snapshot("A", "B"))


def test_immediate_remembers_only_what_it_has_to_announce() -> None:
    server, displaced = chats(mode="immediate", announce_moves=False)
    displaced.served(b"chat", server, 0.0)
    assert not displaced.chats
    server, displaced = chats(mode="immediate")
    displaced.served(b"chat", server, 0.0)
    assert displaced.find(b"chat", 0.0) is None
    assert displaced.peek(b"chat", 0.0) == (None, 0.0)
    assert displaced.chats


def test_idle_lets_a_chat_stay_until_it_has_been_idle_and_each_use_counts() -> None:
    server, displaced = chats(mode="idle", idle_time=60)
    displaced.served(b"chat", server, 0.0)
    for now in (50.0, 100.0, 159.0):
        assert displaced.find(b"chat", now) is server
    assert displaced.find(b"chat", 219.0) is None


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


# Announcing.


def test_nobody_is_watched_until_a_chat_moves_and_after_it_came_home() -> None:
    server, displaced = chats()
    assert not displaced.watching
    displaced.served(b"chat", server, 0.0)
    assert displaced.watching
    displaced.came_home(b"chat")
    assert not displaced.watching


def test_a_move_away_and_the_way_home_are_announced_and_staying_is_not() -> None:
    there, displaced = chats()
    home = server("A")
    assert displaced.moved_from(b"chat", home, home, 0.0) == ""
    assert displaced.moved_from(b"chat", home, there, 0.0) == "A"
    displaced.served(b"chat", there, 0.0)
    assert displaced.moved_from(b"chat", home, there, 0.0) == ""
    assert displaced.moved_from(b"chat", home, home, 0.0) == "B"
    assert displaced.moved_from(b"chat", home, server("C"), 0.0) == "B"
    displaced.came_home(b"chat")
    assert displaced.moved_from(b"chat", home, home, 0.0) == ""


@pytest.mark.parametrize("mode", ["immediate", "idle"])
def test_the_way_home_is_announced_until_the_owner_has_answered(mode: str) -> None:
    there, displaced = chats(mode=mode)
    home = server("A")
    displaced.served(b"chat", there, 0.0)
    for _ in range(2):
        assert displaced.find(b"chat", 100.0) is None
        assert displaced.moved_from(b"chat", home, home, 100.0) == "B"


def test_a_move_is_not_announced_when_that_is_off() -> None:
    there, displaced = chats(announce_moves=False)
    home = server("A")
    displaced.served(b"chat", there, 0.0)
    assert displaced.moved_from(b"chat", home, home, 0.0) == ""
    assert displaced.find(b"chat", 100.0) is None
    assert not displaced.watching


@pytest.mark.parametrize("name", ["Sërver", "a\nb", "a\x00"])
def test_an_id_that_cannot_be_metadata_is_not_announced(name: str) -> None:
    _, displaced = chats()
    assert displaced.moved_from(b"chat", server(name), server("B"), 0.0) == ""


def test_after_a_change_of_the_ring_the_chats_it_moved_are_announced_until_answered() -> None:
    settings = FailbackSettings()
    old, new = snapshot("A", "B"), snapshot("A", "B", "C")
    displaced = DisplacedChats(settings, old)
    displaced.configure(settings, new, 10.0)
    assert displaced.watching
    moved = 0
    for key in KEYS:
        before, after = old.owner(key).id, new.owner(key)
        announced = displaced.moved_from(key, after, after, 10.0)
        assert announced == ("" if before == after.id else before)
        moved += bool(announced)
        displaced.came_home(key)
        assert displaced.moved_from(key, after, after, 10.0) == ""
    assert 20 < moved < 120
    assert displaced.watching


def test_a_change_of_the_ring_is_forgotten_in_time_and_within_bounds() -> None:
    old, new = snapshot("A", "B"), snapshot("A", "B", "C")
    for settings, now, homes in ((FailbackSettings(), ANNOUNCE_TIME, 0), (FailbackSettings(max_chats=5), 0.0, 6)):
        displaced = DisplacedChats(settings, old)
        displaced.configure(settings, new, 0.0)
        for number in range(homes):
            displaced.came_home(b"%d" % number)
        displaced.moved_from(b"chat", new.owner(b"chat"), new.owner(b"chat"), now)
        assert not displaced.watching


def test_other_settings_with_the_same_ring_announce_nothing() -> None:
    displaced = DisplacedChats(FailbackSettings(), snapshot("A", "B"))
    displaced.configure(FailbackSettings(idle_time=5), snapshot("B", "A"), 0.0)
    assert not displaced.watching


@pytest.mark.parametrize(("mode", "kept"), [("immediate", 0), ("idle", 0), ("never", 3)])
def test_chats_without_a_call_for_very_long_are_forgotten_unless_they_stay_for_good(mode: str, kept: int) -> None:
    there, displaced = chats(mode=mode)
    for number in range(3):
        displaced.served(b"%d" % number, there, 0.0)
    for _ in range(5):
        displaced.find(b"another", ANNOUNCE_TIME - 1.0)
    assert len(displaced.chats) == 3
    for _ in range(5):
        displaced.find(b"another", ANNOUNCE_TIME)
    assert len(displaced.chats) == kept
    assert displaced.watching == bool(kept)
