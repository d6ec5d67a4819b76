from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.cluster import outlier as module
from proxy.cluster.address import Address
from proxy.cluster.endpoint import Cause, Endpoint
from proxy.cluster.outlier import OutlierDetector, OutlierSettings


def cluster(count: int, **settings: object) -> tuple[list[Endpoint], OutlierDetector]:
    endpoints = [Endpoint(f"S{index}", Address("127.0.0.1", 1)) for index in range(count)]
    return endpoints, OutlierDetector(OutlierSettings.model_validate(settings), endpoints)


def fail(detector: OutlierDetector, endpoint: Endpoint, times: int, now: float = 0.0, chats: int = 2) -> bool:
    ejected = [detector.failed(endpoint, b"chat-%d" % (index % chats), now) for index in range(times)]
    return any(ejected)


def test_failures_in_a_row_of_different_chats_eject() -> None:
    servers, detector = cluster(3)
    assert not fail(detector, servers[0], 4)
    assert detector.failed(servers[0], b"chat-9", 0.0)
    assert servers[0].reason == "ejected for 30 s after 5 failures in a row"


def test_one_poisonous_chat_ejects_nobody() -> None:
    servers, detector = cluster(3)
    assert not fail(detector, servers[0], 100, chats=1)
    assert servers[0].available


def test_a_success_in_between_starts_the_count_anew() -> None:
    servers, detector = cluster(3)
    fail(detector, servers[0], 4)
    detector.succeeded(servers[0], b"chat-0")
    assert not fail(detector, servers[0], 4)
    assert servers[0].available


@pytest.mark.parametrize(("count", "most"), [(1, 0), (2, 1), (3, 1), (4, 2), (10, 5)])
def test_half_of_the_servers_and_at_least_one_are_left(count: int, most: int) -> None:
    servers, detector = cluster(count)
    for server in servers:
        fail(detector, server, 10)
    assert sum(not server.available for server in servers) == most


def test_an_ejection_lasts_longer_each_time_up_to_the_maximum_and_is_over_in_time() -> None:
    servers, detector = cluster(2, max_ejection_time=70.0)
    now = 0.0
    for seconds in (30, 60, 70, 70):
        fail(detector, servers[0], 5, now)
        assert servers[0].reason.startswith(f"ejected for {seconds} s")
        assert detector.sweep(now + seconds - 0.1) == []
        now += seconds
        assert detector.sweep(now) == [servers[0]]
        assert servers[0].available


def test_the_memory_of_past_ejections_fades() -> None:
    servers, detector = cluster(2)
    for now in (0.0, 100.0):
        fail(detector, servers[0], 5, now)
        detector.sweep(now + 90)
    for _ in range(2):
        detector.compare(200.0)
    fail(detector, servers[0], 5, 300.0)
    assert servers[0].reason.startswith("ejected for 30 s")


def test_failures_that_were_under_way_at_the_ejection_do_not_prolong_it() -> None:
    servers, detector = cluster(2)
    fail(detector, servers[0], 50, 0.0)
    assert detector.sweep(30.0) == [servers[0]]


def test_enough_active_successes_end_an_ejection() -> None:
    servers, detector = cluster(2)
    fail(detector, servers[0], 5)
    assert not detector.checked_healthy(servers[0])
    assert detector.checked_healthy(servers[0])
    assert servers[0].available
    assert not detector.checked_healthy(servers[0])


def test_another_objection_outlasts_the_ejection() -> None:
    servers, detector = cluster(2)
    servers[0].block(Cause.HEALTH, "timed out")
    fail(detector, servers[0], 5)
    detector.sweep(31.0)
    assert servers[0].reason == "timed out"


def test_consecutive_failures_can_be_switched_off() -> None:
    servers, detector = cluster(2, consecutive_failures=0)
    assert not fail(detector, servers[0], 1000)


def test_success_rate_ejects_who_is_far_below_the_others() -> None:
    servers, detector = cluster(6, success_rate=True, consecutive_failures=0)
    for index, server in enumerate(servers):
        for call in range(200):
            if index == 2 and call % 2:
                detector.failed(server, b"chat-%d" % call, 0.0)
            else:
                detector.succeeded(server, b"chat-%d" % call)
    assert detector.compare(10.0) == [servers[2]]
    assert "a success rate of 50% where 92% is the mean" in servers[2].reason
    assert detector.compare(20.0) == []


@pytest.mark.parametrize(("calls", "count"), [(99, 6), (200, 2)])
def test_success_rate_says_nothing_with_too_few_calls_or_servers(calls: int, count: int) -> None:
    servers, detector = cluster(count, success_rate=True, consecutive_failures=0)
    for index, server in enumerate(servers):
        for call in range(calls):
            if index:
                detector.succeeded(server, b"%d" % call)
            else:
                detector.failed(server, b"%d" % call, 0.0)
    assert detector.compare(10.0) == []


# Quarantine.


def test_a_key_that_fails_alone_on_two_servers_is_quarantined_for_a_time() -> None:
    servers, detector = cluster(3)
    detector.failed(servers[0], b"poison", 0.0)
    assert not detector.quarantined
    detector.failed(servers[1], b"poison", 1.0)
    assert detector.quarantined_for(b"poison", 1.0) == 30.0
    assert detector.quarantined_for(b"other", 1.0) == 0.0
    assert detector.quarantined_for(b"poison", 31.0) == 0.0
    assert not detector.quarantined
    assert detector.quarantines == 1


def test_failing_twice_on_the_same_server_is_no_quarantine() -> None:
    servers, detector = cluster(3)
    detector.failed(servers[0], b"poison", 0.0)
    detector.failed(servers[0], b"poison", 0.0)
    assert not detector.quarantined


def test_what_one_call_is_answered_again_and_again_counts_for_the_servers_and_not_for_the_key() -> None:
    servers, detector = cluster(3, consecutive_failures=2, min_chats=2, max_ejection_percent=100)
    for number, key in enumerate((b"chat-1", b"chat-2")):
        detector.failed(servers[0], key, number)
        assert detector.failed(servers[1], key, number, again=True) == (number == 1)
    assert not detector.quarantined
    assert not servers[1].available


def test_where_the_servers_fail_others_too_the_key_is_innocent() -> None:
    servers, detector = cluster(3)
    detector.failed(servers[0], b"somebody", 0.0)
    detector.failed(servers[0], b"chat", 0.0)
    detector.failed(servers[1], b"chat", 0.0)
    assert not detector.quarantined


def test_a_success_clears_the_suspicion() -> None:
    servers, detector = cluster(3)
    detector.failed(servers[0], b"chat", 0.0)
    detector.succeeded(servers[1], b"chat")
    detector.failed(servers[2], b"chat", 0.0)
    assert not detector.quarantined


def test_an_old_failure_is_forgotten() -> None:
    servers, detector = cluster(3)
    detector.failed(servers[0], b"chat", 0.0)
    detector.failed(servers[1], b"chat", 31.0)
    assert not detector.quarantined


def test_a_key_over_which_two_servers_died_is_quarantined_though_others_died_with_it() -> None:
    servers, detector = cluster(3)
    for key in (b"bystander", b"poison"):
        detector.lost(servers[0], key, 0.0)
    detector.lost(servers[1], b"poison", 0.0)
    assert set(detector.quarantined) == {b"poison"}


def test_calls_without_a_key_are_never_quarantined() -> None:
    servers, detector = cluster(3)
    for server in servers:
        detector.lost(server, b"", 0.0)
    assert not detector.quarantined


def test_quarantine_can_be_switched_off() -> None:
    servers, detector = cluster(3, quarantine_time=0)
    for server in servers:
        detector.failed(server, b"poison", 0.0)
    assert not detector.quarantined


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SUSPECTS", 50)
    servers, detector = cluster(3)
    for number in range(1000):
        for server in servers[:2]:
            detector.lost(server, b"%d" % number, 0.0)
        detector.lost(servers[2], b"s%d" % number, 0.0)
        assert len(detector.quarantined) <= 50
        assert len(detector._suspects) <= 50


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.booleans()), max_size=80))
def test_successes_matter_only_while_there_is_trouble(steps: list[tuple[int, int, bool]]) -> None:
    """The hot path reports a success only while `troubled`: leaving the others out must change nothing."""
    told, telling = cluster(3), cluster(3)
    for index, chat, good in steps:
        for all_of_them, (servers, detector) in ((True, told), (False, telling)):
            if not good:
                detector.failed(servers[index], b"%d" % chat, 0.0)
            elif all_of_them or detector.troubled:
                detector.succeeded(servers[index], b"%d" % chat)
    assert [server.available for server in told[0]] == [server.available for server in telling[0]]
    assert told[1].quarantined == telling[1].quarantined
