"""What a worker does by itself, and what it tells."""

from __future__ import annotations

import pytest

from proxy.balancing.settings import RingSettings
from proxy.cluster.cluster import Cluster
from proxy.cluster.outlier import OutlierSettings
from proxy.cluster.settings import EndpointSettings
from proxy.forwarding.failback import FailbackSettings
from proxy.slices import at_once
from proxy.workers.memories import TELL_AGAIN, ReportingDetector, SharedDisplacedChats
from proxy.workers.messages import Moved

MEMBERS = [EndpointSettings(id=name, address=f"10.0.0.1:{index}") for index, name in enumerate("ABC", 1)]


@pytest.fixture
def cluster() -> Cluster:
    return Cluster(MEMBERS, RingSettings())


Reports = list[tuple[str, str, bytes, float]]


def detector(cluster: Cluster) -> tuple[ReportingDetector, Reports]:
    reports: Reports = []
    return ReportingDetector(OutlierSettings(consecutive_failures=2), cluster, reports.append), reports


def test_failures_are_told_and_eject_nobody_here(cluster: Cluster) -> None:
    watch, reports = detector(cluster)
    a = cluster.snapshot.by_id["A"]
    for number in range(5):
        watch.failed(a, b"chat-%d" % number, 1.0)
    assert a.available
    assert reports[-1] == ("failed", "A", b"chat-4", 1.0)


def test_a_key_over_which_two_servers_died_is_quarantined_at_once(cluster: Cluster) -> None:
    watch, reports = detector(cluster)
    a, b = (cluster.snapshot.by_id[name] for name in "AB")
    watch.lost(a, b"poison", 1.0)
    watch.lost(b, b"poison", 2.0)
    assert watch.quarantined_for(b"poison", 2.0) == 30.0
    assert [each[:3] for each in reports] == [("lost", "A", b"poison"), ("lost", "B", b"poison")]


def test_what_does_not_speak_against_the_key_is_told_as_that(cluster: Cluster) -> None:
    watch, reports = detector(cluster)
    a, b = (cluster.snapshot.by_id[name] for name in "AB")
    watch.failed(a, b"chat", 1.0)
    watch.failed(b, b"chat", 2.0, again=True)
    assert not watch.quarantined
    assert [each[:3] for each in reports] == [("failed", "A", b"chat"), ("failed_again", "B", b"chat")]


def test_good_calls_are_told_only_while_somebody_wants_to_know(cluster: Cluster) -> None:
    watch, reports = detector(cluster)
    assert not watch.troubled, "callers would report every good call"
    watch.attend(on=True)
    assert watch.troubled
    watch.succeeded(cluster.snapshot.by_id["A"], b"chat")
    assert watch.troubled, "the parent wants more than one"
    assert reports == [("succeeded", "A", b"chat", 0.0)]
    watch.attend(on=False)
    assert not watch.troubled


def test_nothing_is_told_of_a_server_whose_name_another_may_have_now(cluster: Cluster) -> None:
    watch, reports = detector(cluster)
    removed = cluster.snapshot.by_id["A"]
    moved = [MEMBERS[0].model_copy(update={"address": "10.0.0.9:9"}), *MEMBERS[1:]]
    cluster.publish(at_once(cluster.succession(moved, RingSettings())))
    watch.reconfigure(OutlierSettings())
    watch.failed(removed, b"chat", 1.0)
    assert not reports


def chats(cluster: Cluster, **settings: object) -> tuple[SharedDisplacedChats, list[Moved]]:
    told: list[Moved] = []
    return SharedDisplacedChats(FailbackSettings.model_validate(settings), cluster.snapshot, told.append), told


def test_a_displaced_chat_is_told_when_it_moves_now_and_then_while_it_is_used_and_when_it_is_home(
    cluster: Cluster,
) -> None:
    displaced, told = chats(cluster, mode="never")
    b = cluster.snapshot.by_id["B"]
    displaced.served(b"chat", b, 1.0)
    assert told == [Moved(b"chat", "B", 1.0)]
    for now in (2.0, 3.0, 1.0 + TELL_AGAIN, 2.0 + TELL_AGAIN):
        assert displaced.find(b"chat", now) is b
    assert told[1:] == [Moved(b"chat", "B", 1.0 + TELL_AGAIN)]
    displaced.came_home(b"chat")
    assert told[2:] == [Moved(b"chat", None, 0.0)]


def test_what_is_learned_holds_and_is_not_told_again(cluster: Cluster) -> None:
    displaced, told = chats(cluster, mode="never")
    b = cluster.snapshot.by_id["B"]
    displaced.learn(Moved(b"chat", "B", 1.0), b)
    assert displaced.find(b"chat", 2.0) is b
    displaced.learn(Moved(b"chat", None, 0.0), None)
    assert displaced.find(b"chat", 3.0) is None
    assert not told


def test_a_chat_that_another_worker_uses_does_not_go_idle_here(cluster: Cluster) -> None:
    displaced, _ = chats(cluster, mode="idle", idle_time=10.0)
    b = cluster.snapshot.by_id["B"]
    displaced.served(b"chat", b, 0.0)
    displaced.learn(Moved(b"chat", "B", 9.0), b)
    assert displaced.find(b"chat", 15.0) is b
    assert displaced.find(b"chat", 30.0) is None


def test_the_memory_of_what_was_told_is_bounded(cluster: Cluster) -> None:
    displaced, _ = chats(cluster, mode="never", max_chats=10)
    b = cluster.snapshot.by_id["B"]
    for number in range(1000):
        displaced.served(b"chat-%d" % number, b, float(number))
    assert len(displaced._told) <= 21
