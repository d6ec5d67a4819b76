from __future__ import annotations

import tomllib

import pytest

from bench.peers import districhat
from bench.peers.base import Setup
from bench.peers.table import OURS, PEERS
from proxy.settings import Settings


@pytest.fixture
def setup(tmp_path):
    return Setup(tmp_path, 50050, ("127.0.0.1:1", "127.0.0.1:2"), "/chat.ChatService/PostMessage.grpc")


def test_our_configuration_names_listener_backends_and_the_method(setup):
    config = tomllib.loads(districhat.configuration(setup))
    assert config["listener"] == {"address": "127.0.0.1:50050"}
    assert [endpoint["address"] for endpoint in config["endpoints"]] == list(setup.backends)
    assert config["routes"] == [{"method": setup.method, "key": {"field": "1"}, "timeout": 10.0}]
    Settings.model_validate(config)


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_every_command_takes_the_setup_as_given(setup, peer):
    command = peer.command(setup)
    files = [file.read_text() for file in setup.directory.iterdir()]
    given = "\n".join([*command, *files])
    assert str(setup.port) in given
    assert all(backend in given for backend in setup.backends)


def test_names_can_be_listed_with_commas():
    assert OURS.name in PEERS
    assert not any("," in name or " " in name for name in PEERS)
