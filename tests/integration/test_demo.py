"""`districhat demo` as a user runs it: real servers, a real proxy, a real client, and every way it can end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import grpc
import pytest
from districhat import chat_pb2, chat_pb2_grpc

from proxy.balancing.hash_ring import HashRing
from tests.support import processes
from tests.support.tools import need

if TYPE_CHECKING:
    from collections.abc import Iterator

ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith(("DISTRICHAT_", "FORCE_COLOR", "NO_COLOR"))
}
MESSAGE = re.compile(
    r"^ +(\d+)  (Server-[ABC])  (L1 hit|L2 hit|disk  |miss  )  (chat-\d{3})  (\d+) messages?\b", re.MULTILINE
)
MOVE = re.compile(r"^  (chat-\d{3}): (Server-[ABC]) -> (Server-[ABC])$", re.MULTILINE)


def demo(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "proxy", "demo", *arguments],
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


@contextlib.contextmanager
def demo_running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "proxy", "demo", *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()


def read_until(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    assert process.stdout is not None
    for line in process.stdout:
        if match := re.search(pattern, line):
            return match
    raise AssertionError(f"no line matched {pattern!r}")


def children(process: subprocess.Popen[str]) -> dict[str, int]:
    """The demo's processes: the server's id or `proxy`, and the process id."""
    found = {}
    for pid in processes.children(process.pid):
        words = processes.command(pid)
        found[words[words.index("--id") + 1] if "--id" in words else "proxy"] = pid
    return found


def assert_gone(pids: dict[str, int]) -> None:
    for name, pid in pids.items():
        assert not processes.alive(pid), f"{name} still runs"


@pytest.fixture(scope="module")
def played() -> subprocess.CompletedProcess[str]:
    """The scenario of the contract, played once for all who look at it."""
    return demo()


@pytest.fixture(scope="module")
def ring() -> HashRing:
    ring = HashRing()
    for id_, vnodes in (("Server-A", 100), ("Server-B", 150), ("Server-C", 100)):
        ring.add_node(id_, vnodes)
    return ring


def test_the_simulation_passes(played):
    assert played.returncode == 0, played.stdout + played.stderr
    assert played.stderr == ""
    assert played.stdout.splitlines()[-1].startswith("PASSED: 50 messages sent and answered, ")
    assert "50 requests, 50 successes, 0 failures" in played.stdout
    assert "share one SQLite file" in played.stdout


def test_its_output_has_the_phases_of_the_contract_and_no_colours_in_a_pipe(played):
    phases = re.findall(r"^Phase \d: (.*)$", played.stdout, re.MULTILINE)
    assert [phase.split()[0] for phase in phases] == [
        "Starting",
        "Routing:",
        "Sending",
        "The",
        "Sending",
        "Final",
    ]
    assert "\x1b" not in played.stdout


def test_chats_take_turns_and_every_message_adds_one_to_its_session(played):
    messages = MESSAGE.findall(played.stdout)
    assert [int(number) for number, *_ in messages] == list(range(1, 51))
    assert [chat for _, _, _, chat, _ in messages] == [f"chat-{index % 25:03d}" for index in range(50)]
    assert [int(count) for *_, count in messages] == [1] * 25 + [2] * 25


def test_only_the_victims_chats_move_each_to_the_next_server_on_the_ring(played, ring):
    walks = {f"chat-{index:03d}": [id_ for id_, _ in ring.get_nodes(f"chat-{index:03d}", 3)] for index in range(25)}
    moves = {chat: (before, after) for chat, before, after in MOVE.findall(played.stdout)}
    assert moves == {chat: (walk[0], walk[1]) for chat, walk in walks.items() if walk[0] == "Server-B"}
    for number, server, _, chat, _ in MESSAGE.findall(played.stdout):
        dead = chat in moves and int(number) > 10
        assert server == walks[chat][1 if dead else 0]


def test_a_moved_session_comes_back_from_disk(played, ring):
    for number, server, level, chat, _ in MESSAGE.findall(played.stdout):
        if int(number) > 25 and chat <= "chat-009" and ring.get_node(chat)[0] == "Server-B":
            assert (server != "Server-B", level.strip()) == (True, "disk")


def test_the_simulation_without_a_death_and_with_colours():
    ended = demo("--messages", "3", "--chats", "2", "--kill-after", "0", FORCE_COLOR="1")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "\x1b[" in ended.stdout
    assert "no chat moved" in ended.stdout
    assert "The failure" not in ended.stdout


def test_sessions_survive_in_a_redis_of_the_demos_own():
    need("redis-server", "redis-server")
    ended = demo("--store", "redis")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.splitlines()[-1].startswith("PASSED: 50 messages sent and answered, ")
    assert "share one Redis" in ended.stdout
    moved = [level for number, _, level, _, _ in MESSAGE.findall(ended.stdout) if int(number) > 25]
    assert "disk  " in moved


def test_a_redis_that_cannot_be_started_is_said_with_what_to_install():
    ended = demo("--store", "redis", PATH="/nowhere")
    assert ended.returncode == 1
    assert ended.stdout.splitlines()[-1].startswith("FAILED: --store redis needs redis-server")


def test_settings_meant_for_a_real_proxy_do_not_disturb_it():
    ended = demo(
        *("--messages", "1", "--kill-after", "0"),
        DISTRICHAT_LISTENER__ADDRESS="nowhere",
        DISTRICHAT_BACKEND_ID="Server-X",
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_a_server_that_cannot_start_is_named_with_its_words_and_exit_1():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = demo("--port", str(taken.getsockname()[1] - 1))
    assert ended.returncode == 1
    assert ended.stdout.splitlines()[-1] == "FAILED: Server-A ended with status 2"
    assert "in use" in ended.stderr.lower()


def test_a_port_that_is_taken_is_told_with_the_option_that_helps():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        base = taken.getsockname()[1] - 1
        ended = demo("--serve", "--port", str(base))
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        f"if one of the ports {base} to {base + 3} is taken: --port BASE takes others"
    )


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_middle_ends_all_processes(number, status):
    with demo_running("--delay", "60") as process:
        read_until(process, r"^ +1  Server-")
        pids = children(process)
        assert set(pids) == {"Server-A", "Server-B", "Server-C", "proxy"}
        process.send_signal(number)
        assert process.wait(30) == status
        assert_gone(pids)


def test_a_proxy_that_dies_by_itself_is_named_and_exit_1():
    with demo_running("--delay", "0.2") as process:
        read_until(process, r"^ +1  Server-")
        pids = children(process)
        os.kill(pids["proxy"], signal.SIGKILL)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "the proxy was ended by SIGKILL" in err
        assert out.splitlines()[-1] == "FAILED: the proxy was ended by SIGKILL"
        assert_gone(pids)


def test_serve_keeps_all_up_for_other_clients_until_it_is_stopped():
    with demo_running("--serve", "--port", "0") as process:
        address = read_until(process, r"^  proxy +(\S+)  ready")[1]
        pids = children(process)
        with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
            stub = chat_pb2_grpc.ChatServiceStub(channel)
            response = stub.PostMessage(chat_pb2.ChatRequest(chat_id="chat-000", message="hello"), timeout=10)
        assert response.success
        assert response.server_id == "Server-A"
        read_until(process, r"grpcurl -plaintext .*PostMessage")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert_gone(pids)


def test_serve_ends_with_exit_1_when_a_server_dies():
    with demo_running("--serve", "--port", "0") as process:
        read_until(process, "Ctrl-C")
        pids = children(process)
        os.kill(pids["Server-B"], signal.SIGKILL)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "Server-B was ended by SIGKILL" in err
        assert_gone(pids)
