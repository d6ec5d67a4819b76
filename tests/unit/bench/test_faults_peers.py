from __future__ import annotations

import json
import tomllib

import pytest

from bench.errors import UsageError
from bench.faults import cli
from bench.faults.table import PEERS
from bench.options import available
from bench.peers import districhat, envoy, haproxy, nginx
from bench.peers.base import Resilience, Setup
from bench.peers.programs import bundled, installed
from proxy.settings import Settings

ONCE = "/bench.Ledger/AppendOnce"


@pytest.fixture(params=[None, Resilience(ONCE)], ids=["cpu", "faults"])
def setup(tmp_path, request):
    return Setup(tmp_path, 50050, ("127.0.0.1:1", "127.0.0.1:2"), "/bench.Ledger/*", request.param)


@pytest.mark.parametrize("peer", [districhat, envoy, haproxy, nginx], ids=lambda peer: peer.PEER.name)
def test_a_configuration_has_what_it_is_given(setup, peer):
    text = peer.configuration(setup)
    assert "50050" in text
    assert (ONCE in text) == (setup.resilience is not None)
    if peer is envoy:
        assert '"port_value": 1' in text
        assert '"port_value": 2' in text
    else:
        assert all(backend in text for backend in setup.backends)


def test_our_configuration_is_valid_and_puts_the_repeatable_method_first(tmp_path):
    config = tomllib.loads(districhat.configuration(Setup(tmp_path, 1, ("127.0.0.1:1",), "/s/*", Resilience(ONCE))))
    settings = Settings.model_validate(config)
    assert [route.method for route in settings.routes] == [ONCE, "/s/*"]
    assert [route.idempotency_key for route in settings.routes] == [True, False]


def test_envoy_retries_more_only_where_a_call_may_run_twice(tmp_path):
    setup = Setup(tmp_path, 1, ("127.0.0.1:1",), "/s/*", Resilience(ONCE))
    listener = json.loads(envoy.configuration(setup))["static_resources"]["listeners"][0]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    once, others = manager["route_config"]["virtual_hosts"][0]["routes"]
    assert once["match"] == {"path": ONCE}
    assert "unavailable" in once["route"]["retry_policy"]["retry_on"]
    assert others["route"]["retry_policy"]["retry_on"] == "connect-failure,refused-stream,reset-before-request"


def test_the_check_of_haproxy_is_a_grpc_call():
    from h2.config import H2Configuration
    from h2.connection import H2Connection
    from h2.events import DataReceived, RequestReceived, StreamEnded

    server = H2Connection(H2Configuration(client_side=False))
    server.initiate_connection()
    events = server.receive_data(haproxy.check_request())
    headers = dict(next(event for event in events if isinstance(event, RequestReceived)).headers)
    assert headers[b":path"] == b"/grpc.health.v1.Health/Check"
    assert headers[b"content-type"] == b"application/grpc"
    assert headers[b"te"] == b"trailers"
    assert next(event for event in events if isinstance(event, DataReceived)).data == bytes(5)
    assert any(isinstance(event, StreamEnded) for event in events)


def test_a_missing_program_names_its_package():
    with pytest.raises(UsageError, match=r"^thing not found; pip install the-thing$"):
        bundled("no_such_package", "bin/thing", "the-thing")
    with pytest.raises(UsageError, match=r"^no-such-program not found; on Debian: apt-get install the-thing$"):
        installed("no-such-program", "the-thing")


def test_a_missing_peer_is_skipped_and_said(capsys, monkeypatch):
    def missing():
        raise UsageError("nginx not found; on Debian: apt-get install nginx-light")

    monkeypatch.setattr(nginx, "_program", missing)
    assert available([PEERS["districhat"], PEERS["nginx"]]) == (PEERS["districhat"],)
    assert "skipped nginx: nginx not found; on Debian: apt-get install nginx-light" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--peers", "nobody"], ["--seconds", "0"], ["--rate", "x"], ["--scenarios", ""]])
def test_a_wrong_argument_is_a_usage_error(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert arguments[0] in capsys.readouterr().err


def test_help_names_every_peer_and_scenario(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in (*PEERS, "rolling", "kill", "hang"))
