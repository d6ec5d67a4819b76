"""What the simulation counts as right and wrong, without processes."""

from __future__ import annotations

import tomllib

import pytest

from proxy.cluster.settings import EndpointSettings
from proxy.commands.demo.ledger import Answer, ClientStatistics, Ledger, Move
from proxy.commands.demo.scenario import SERVERS, Scenario, proxy_config
from proxy.settings import load_settings


@pytest.fixture
def ledger() -> Ledger:
    return Ledger({"one": ["A", "B", "C"], "two": ["B", "C", "A"], "three": ["B", "A", "C"]})


def answer(server: str, messages: int) -> Answer:
    return Answer(server, "L1 hit", messages)


def test_owners_that_answer_and_count_pass(ledger):
    assert ledger.answered(1, "one", answer("A", 1))
    assert ledger.answered(2, "two", answer("B", 1))
    assert ledger.answered(3, "one", answer("A", 2))
    passed, line = ledger.verdict()
    assert passed
    assert line == "PASSED: 3 messages sent and answered, no chat moved, no session lost its count"
    assert ledger.statistics == ClientStatistics(requests=3, successes=3, primary_hits=3)


def test_a_death_moves_its_chats_each_to_the_next_on_its_walk(ledger):
    assert ledger.killed("B") == [Move("two", "B", "C"), Move("three", "B", "A")]
    assert [ledger.expected(chat) for chat in ("one", "two", "three")] == ["A", "C", "A"]
    assert ledger.killed("C") == [Move("two", "C", "A")]


def test_a_moved_chat_that_keeps_its_count_passes_and_is_a_failover(ledger):
    assert ledger.answered(1, "two", answer("B", 1))
    ledger.killed("B")
    assert ledger.answered(2, "two", answer("C", 2))
    passed, line = ledger.verdict()
    assert passed
    assert line == "PASSED: 2 messages sent and answered, 2 chats moved, each of them B's, no session lost its count"
    assert ledger.statistics == ClientStatistics(requests=2, successes=2, primary_hits=1, failovers=1)


def test_an_answer_from_another_server_while_the_owner_lives_fails(ledger):
    ledger.killed("B")
    assert not ledger.answered(1, "one", answer("C", 1))
    assert ledger.problems == ["message 1: one belongs to A, but C answered"]
    assert ledger.verdict() == (False, "FAILED: 1 answer came from a server that need not have")


def test_a_move_to_another_than_the_next_server_fails(ledger):
    ledger.killed("B")
    assert not ledger.answered(1, "two", answer("A", 1))
    assert ledger.problems == ["message 1: two belongs to C, but A answered"]


def test_an_answer_from_the_dead_fails(ledger):
    ledger.killed("B")
    assert not ledger.answered(1, "two", answer("B", 1))


def test_a_lost_session_fails_and_is_reported_once(ledger):
    ledger.answered(1, "one", answer("A", 1))
    ledger.answered(2, "one", answer("A", 2))
    assert not ledger.answered(3, "one", answer("A", 1))
    assert ledger.answered(4, "one", answer("A", 2))
    assert ledger.problems == ["message 3: one has 3 messages, but A counts 1"]
    assert ledger.verdict() == (False, "FAILED: 1 answer showed that a session lost its count")


def test_a_message_counted_twice_fails(ledger):
    assert not ledger.answered(1, "one", answer("A", 2))


def test_a_failed_message_fails_and_does_not_count_in_the_session(ledger):
    ledger.failed(1, "one", "UNAVAILABLE: nobody there")
    assert ledger.answered(2, "one", answer("A", 1))
    assert ledger.problems == ["message 1: one failed: UNAVAILABLE: nobody there"]
    assert ledger.verdict() == (False, "FAILED: 1 message of 2 failed")
    assert ledger.statistics == ClientStatistics(requests=2, successes=1, failures=1, primary_hits=1)


def test_the_verdict_names_every_kind_of_failure(ledger):
    ledger.failed(1, "one", "why")
    ledger.failed(2, "one", "why")
    ledger.answered(3, "one", answer("C", 7))
    ledger.noticed("gave up")
    passed, line = ledger.verdict()
    assert not passed
    assert line == (
        "FAILED: 2 messages of 3 failed, 1 answer came from a server that need not have, "
        "1 answer showed that a session lost its count, 1 other problem"
    )


def test_without_any_server_nobody_is_expected(ledger):
    ledger.killed("C")
    ledger.killed("A")
    with pytest.raises(ValueError, match="no server is left"):
        ledger.killed("B")


def test_the_default_scenario_is_the_originals():
    scenario = Scenario()
    assert (scenario.messages, scenario.chats, scenario.kill_after) == (50, 25, 10)
    assert scenario.chat_ids()[:2] == ["chat-000", "chat-001"]
    assert [scenario.chat_of(number) for number in (1, 25, 26, 50)] == ["chat-000", "chat-024", "chat-000", "chat-024"]


@pytest.mark.parametrize(("kill_after", "kills"), [(0, False), (1, True), (50, True), (51, False)])
def test_the_victim_dies_only_after_a_message_that_is_sent(kill_after, kills):
    assert Scenario(kill_after=kill_after).kills() is kills


def test_the_proxys_configuration_is_valid_and_has_the_originals_weights(tmp_path):
    addresses = {server.id: f"127.0.0.1:{port}" for port, server in enumerate(SERVERS, start=1)}
    text = proxy_config("127.0.0.1:0", addresses)
    assert tomllib.loads(text)["listener"]["address"] == "127.0.0.1:0"
    path = tmp_path / "demo.toml"
    path.write_text(text)
    assert load_settings(path, {}).endpoints == (
        EndpointSettings(id="Server-A", address="127.0.0.1:1", weight=1.0),
        EndpointSettings(id="Server-B", address="127.0.0.1:2", weight=1.5),
        EndpointSettings(id="Server-C", address="127.0.0.1:3", weight=1.0),
    )
