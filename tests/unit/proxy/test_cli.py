"""The commands that need no network: check, ring, and how mistakes end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

from proxy.balancing.hash_ring import HashRing
from proxy.cli import main

CONFIG = """
[ring]
virtual_nodes = 100

[[endpoints]]
id = "Server-A"
address = "127.0.0.1:50051"

[[endpoints]]
id = "Server-B"
address = "127.0.0.1:50052"
weight = 1.5

[[endpoints]]
id = "Server-C"
address = "127.0.0.1:50053"
"""


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """An empty directory to stand in, and no settings in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("DISTRICHAT_"):
            monkeypatch.delenv(name)


@pytest.fixture
def config() -> str:
    Path("proxy.toml").write_text(CONFIG)
    return "proxy.toml"


@pytest.fixture
def ring() -> HashRing:
    ring = HashRing()
    for id_, capacity, port in (("Server-A", 100, 50051), ("Server-B", 150, 50052), ("Server-C", 100, 50053)):
        ring.add_node(id_, capacity, f"127.0.0.1:{port}")
    return ring


def test_check_says_in_one_line_that_a_configuration_is_valid(config, capsys):
    assert main(["check", "--config", config]) == 0
    out, err = capsys.readouterr()
    assert out == (
        "proxy.toml: valid: 3 endpoints with 350 virtual nodes, 0 routes of its own before 6 built in, "
        "listener 127.0.0.1:50050\n"
    )
    assert err == ""


def test_check_prints_every_problem_on_stderr_and_exits_2(capsys):
    Path("bad.toml").write_text(CONFIG + "weight = 0\n[listener]\naddres = 1\n")
    assert main(["check", "--config", "bad.toml"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "listener.addres: unknown key; did you mean address?",
        "endpoints[2].weight: must be greater than 0, got 0",
    ]


def test_check_as_json_tells_the_facts(config, capsys):
    assert main(["check", "--json", "--config", config]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["valid"] is True
    assert verdict["virtual_nodes"] == 350
    assert [endpoint["id"] for endpoint in verdict["endpoints"]] == ["Server-A", "Server-B", "Server-C"]


def test_check_as_json_tells_the_problems_and_exits_2(capsys):
    Path("bad.toml").write_text(CONFIG + "weight = 0\n")
    assert main(["check", "--json", "--config", "bad.toml"]) == 2
    assert json.loads(capsys.readouterr().out) == {
        "valid": False,
        "problems": [{"key": "endpoints[2].weight", "problem": "must be greater than 0, got 0"}],
    }


@pytest.mark.parametrize("command", [["check"], ["serve"], ["ring", "share"], ["ring", "locate", "chat-000"]])
def test_a_configuration_that_cannot_be_read_is_one_line_and_exit_2(command, capsys):
    assert main([*command, "--config", "none.toml"]) == 2
    assert capsys.readouterr().err == "none.toml: cannot be read: no such file or directory\n"


@pytest.mark.parametrize("command", [["check"], ["serve"], ["ring", "share"], ["ring", "locate", "chat-000"]])
def test_no_configuration_at_all_is_one_line_and_exit_2(command, capsys):
    assert main(command) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("--config: no configuration")


def test_districhat_toml_of_the_directory_is_the_default(capsys):
    Path("districhat.toml").write_text(CONFIG)
    assert main(["check"]) == 0
    assert capsys.readouterr().out.startswith("districhat.toml: valid")


def test_the_environment_alone_is_a_configuration(monkeypatch, capsys):
    monkeypatch.setenv("DISTRICHAT_ENDPOINTS", '[{"id": "a", "address": "h:1"}]')
    assert main(["check"]) == 0
    assert capsys.readouterr().out.startswith("environment: valid: 1 endpoint with 100 virtual nodes")


def test_the_environment_counts_beside_a_file(config, monkeypatch, capsys):
    monkeypatch.setenv("DISTRICHAT_LISTENER__ADDRESS", "nowhere")
    assert main(["check", "--config", config]) == 2
    assert capsys.readouterr().err.startswith("listener.address: expected host:port")


def test_locate_names_owner_and_fallbacks_in_ring_order(config, ring, capsys):
    chats = [f"chat-{index:03d}" for index in range(5)]
    assert main(["ring", "locate", *chats, "--config", config]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["chat", "owner", "address", "then"]
    expected = []
    for chat in chats:
        (owner, address), *rest = ring.get_nodes(chat, 3)
        expected.append([chat, owner, address, ", ".join(id_ for id_, _ in rest)])
    assert [row.split(maxsplit=3) for row in rows] == expected


def test_locate_as_json(config, ring, capsys):
    assert main(["ring", "locate", "chät", "--json", "--config", config]) == 0
    answer = json.loads(capsys.readouterr().out)
    owner, *rest = [{"id": id_, "address": address} for id_, address in ring.get_nodes("chät", 3)]
    assert answer["chats"] == [{"chat_id": "chät", "owner": owner, "fallbacks": rest}]
    assert answer["fingerprint"] == ring.snapshot().fingerprint


def test_locate_uses_the_hash_of_the_configuration(config, capsys, monkeypatch):
    crc = HashRing(layout="crc32")
    for id_, capacity in (("Server-A", 100), ("Server-B", 150), ("Server-C", 100)):
        crc.add_node(id_, capacity)
    monkeypatch.setenv("DISTRICHAT_RING__HASH", "crc32")
    chats = [f"chat-{index:03d}" for index in range(20)]
    assert main(["ring", "locate", *chats, "--json", "--config", config]) == 0
    owners = [chat["owner"]["id"] for chat in json.loads(capsys.readouterr().out)["chats"]]
    assert owners == [crc.get_node(chat)[0] for chat in chats]


def test_share_shows_the_share_of_each_server_and_peak_to_mean(config, ring, capsys):
    assert main(["ring", "share", "--config", config]) == 0
    out = capsys.readouterr().out
    for id_, share in ring.snapshot().shares().items():
        assert any(line.startswith(id_) and f"{share:.2%}" in line for line in out.splitlines())
    assert "peak/mean 1.144 (Server-C)" in out
    assert ring.snapshot().fingerprint in out


def test_share_as_json_measures_the_peak_against_the_weights(config, ring, capsys):
    assert main(["ring", "share", "--json", "--config", config]) == 0
    answer = json.loads(capsys.readouterr().out)
    shares = ring.snapshot().shares()
    assert {server["id"]: server["share"] for server in answer["servers"]} == shares
    assert answer["peak_to_mean"] == pytest.approx(max(shares["Server-A"], shares["Server-C"]) * 3.5)


def test_share_with_equal_weights_has_the_plain_peak_to_mean(capsys):
    Path("districhat.toml").write_text(CONFIG.replace("weight = 1.5", ""))
    assert main(["ring", "share", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["peak_to_mean"] == pytest.approx(max(server["share"] for server in answer["servers"]) * 3)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["ring"],
        ["ring", "locate"],
        ["demo", "--messages", "0"],
        ["demo", "--chats", "-1"],
        ["demo", "--kill-after", "soon"],
        ["demo", "--delay", "nan"],
        ["demo", "--delay", "-1"],
        ["demo", "--port", "65533"],
        ["demo", "--store", "mysql"],
        ["ring", "locate", "\udcff"],
    ],
)
def test_a_mistake_on_the_command_line_exits_2_with_usage(arguments, capsys):
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    assert exited.value.code == 2
    assert "usage: districhat" in capsys.readouterr().err


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit) as exited:
        main(["--help"])
    assert exited.value.code == 0
    out = capsys.readouterr().out
    assert "examples:" in out
    assert "DISTRICHAT_LISTENER__ADDRESS" in out


def test_version(capsys):
    with pytest.raises(SystemExit) as exited:
        main(["--version"])
    assert exited.value.code == 0
    assert capsys.readouterr().out.startswith("districhat ")


def test_the_installed_module_ends_as_main_says():
    Path("bad.toml").write_text("[listener\n")
    ended = subprocess.run(
        [sys.executable, "-m", "proxy", "serve", "--config", "bad.toml"], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    [line] = ended.stderr.splitlines()
    assert line.startswith("bad.toml:1: not valid TOML")


@pytest.mark.parametrize("command", ["check", "ring share", "ring locate x --json"])
@pytest.mark.parametrize(
    ("stdout", "status", "err"),
    [
        ("/dev/full", 1, "cannot write to stdout: no space left on device\n"),
        ("&-", 0, ""),
    ],
)
def test_an_answer_that_nobody_takes_is_no_traceback(config, command, stdout, status, err):
    script = f"exec {sys.executable} -m proxy {command} --config {config} >{stdout}"
    ended = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (status, err)


def test_a_reader_that_leaves_early_is_no_failure(config):
    script = f"{sys.executable} -m proxy ring share --config {config} | true"
    ended = subprocess.run(["/bin/bash", "-o", "pipefail", "-c", script], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_terminal_that_has_not_the_characters_is_shown_their_codes(config):
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "proxy", "ring", "locate", "ch\u00e4t", "--config", config]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "ch\\xe4t" in ended.stdout


def test_a_mistake_is_json_too_for_programs(capsys):
    assert main(["ring", "share", "--json", "--config", "none.toml"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out) == {"problems": [err.rstrip("\n")]}


def test_columns_stand_below_each_other_whatever_the_characters(capsys):
    servers = "".join(f'[[endpoints]]\nid = "{id_}"\naddress = "h:1"\n' for id_ in ("\U0001f600", "e\u0301", "plain"))
    Path("wide.toml").write_text(servers, encoding="utf-8")
    assert main(["ring", "share", "--config", "wide.toml"]) == 0
    lines = capsys.readouterr().out.splitlines()[:4]
    assert len({cell_len(line) for line in lines}) == 1
