from __future__ import annotations

import tomllib
from dataclasses import replace

import pytest

from bench.certificate import Certificate
from bench.errors import UsageError
from bench.goals import GOALS
from bench.peers import districhat
from bench.peers.base import Setup
from bench.peers.table import OURS, PEERS
from bench.scenarios import SCENARIOS
from proxy.settings import Settings


@pytest.fixture
def setup(tmp_path):
    return Setup(tmp_path, 50050, ("127.0.0.1:1", "127.0.0.1:2"), "/chat.ChatService/*")


def test_our_configuration_names_listener_backends_and_the_method(setup):
    config = tomllib.loads(districhat.configuration(setup))
    assert config["listener"] == {"address": "127.0.0.1:50050"}
    assert [endpoint["address"] for endpoint in config["endpoints"]] == list(setup.backends)
    assert config["routes"] == [{"method": setup.method, "key": {"field": "1"}, "timeout": 10.0}]
    Settings.model_validate(config)


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_every_command_takes_the_setup_as_given(setup, peer):
    command = _command(peer, setup)
    files = [file.read_text() for file in setup.directory.iterdir()]
    given = "\n".join([*command, *files])
    assert str(setup.port) in given
    for backend in setup.backends:
        host, _, port = backend.rpartition(":")
        assert backend in given or f'"address": "{host}",\n' in given
        assert port in given


@pytest.mark.parametrize("peer", [peer for peer in PEERS.values() if peer.tls], ids=lambda peer: peer.name)
def test_a_peer_of_the_tls_scenarios_shows_the_certificate(setup, peer, tmp_path):
    tls = Certificate(tmp_path / "certificate.pem", tmp_path / "key.pem", tmp_path / "both.pem")
    with_tls = replace(setup, tls=tls)
    _command(peer, with_tls)
    files = "\n".join(file.read_text() for file in setup.directory.iterdir())
    assert str(tls.both) in files or (str(tls.certificate) in files and str(tls.key) in files)


def _command(peer, setup):
    try:
        return peer.command(setup)
    except UsageError as error:
        pytest.skip(f"this machine lacks a program: {error}")


@pytest.mark.parametrize("goal", GOALS, ids=str)
def test_every_goal_is_of_a_scenario_and_a_peer_that_takes_part(goal):
    scenario, peer = SCENARIOS[goal.scenario], PEERS[goal.peer]
    assert peer.scenarios is None or goal.scenario in peer.scenarios
    assert scenario.at_rate == (goal.measure == "p99")


def test_peers_name_scenarios_that_exist():
    assert {name for peer in PEERS.values() for name in peer.scenarios or ()} <= set(SCENARIOS)


def test_names_can_be_listed_with_commas():
    assert all(each.name in PEERS for each in OURS)
    assert not any("," in name or " " in name for name in PEERS)
