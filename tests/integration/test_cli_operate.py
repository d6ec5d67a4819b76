"""The commands that ask and steer a running proxy, run against a real one that carries real calls."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio
import pytest

from proxy.cli import main
from tests.support.grpc_server import EchoServer, channel, server_of
from tests.support.messages import keyed
from tests.support.polling import eventually
from tests.support.proxy_process import ProxyProcess, addresses, proxy_process, toml
from tests.support.tools import Ended

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    Capture = pytest.CaptureFixture[str]

ROOT = Path(__file__).parents[2]
IDS = ("Server-A", "Server-B", "Server-C")
TOKEN = "correct-horse-battery-staple"
METHOD = "/chat.ChatService/PostMessage"


class Command:
    """The `districhat` command, in this process, but in a thread: it blocks."""

    def __init__(self, admin: str, capture: Capture) -> None:
        self.admin = admin
        self._capture = capture

    async def __call__(self, *arguments: str) -> Ended:
        status = await asyncio.to_thread(main, [*arguments, "--admin", self.admin])
        return Ended(status, *self._capture.readouterr())


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory without a configuration, and no settings in the environment."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("ADDRESS", "TOKEN"):
        monkeypatch.delenv(f"DISTRICHAT_ADMIN__{name}", raising=False)


@pytest.fixture
async def proxy(servers: tuple[EchoServer, ...], tmp_path: Path) -> AsyncIterator[ProxyProcess]:
    config = toml(addresses(*servers), admin={"address": "127.0.0.1:0"})
    async with proxy_process(tmp_path, config) as running:
        yield running


@pytest.fixture
async def districhat(proxy: ProxyProcess, capsys: Capture) -> Command:
    return Command((await proxy.admin_url()).removeprefix("http://"), capsys)


async def served_by(proxy: ProxyProcess, chat: str) -> str:
    async with channel(proxy.address) as client:
        call = client.unary_unary(METHOD)(keyed(chat))
        await call
        return await server_of(call)


async def test_status_lists_the_servers_and_says_when_one_is_out(
    proxy: ProxyProcess, servers: tuple[EchoServer, ...], districhat: Command
) -> None:
    status, out, err = await districhat("status")
    assert (status, err) == (0, "")
    head, _, *rows, ring = out.splitlines()
    assert head == "ready; 3 of 3 servers available, 0 calls under way"
    assert [row.split()[:3] for row in rows] == [[each.id, each.address, "available"] for each in servers]
    assert ring == f"ring {proxy.ring.snapshot().fingerprint}, snapshot 1"

    await servers[1].stop()
    await eventually(lambda: "Server-B" in proxy.log(), "the loss")
    ended = await districhat("status")
    assert ended.status == 1
    assert re.search(r"Server-B .* unreachable .* -  (cannot connect|connection|the server)", ended.out), ended.out

    assert (await districhat("status", "--json")).status == 1


async def test_the_reason_of_a_drain_is_one_line_for_everybody(districhat: Command) -> None:
    await districhat("drain", "Server-A", "--reason", "new\nkernel \x1b[31m")
    assert "drained by the operator: new kernel [31m\n" in (await districhat("status")).out


async def test_status_takes_a_drain_for_no_fault(districhat: Command) -> None:
    assert (await districhat("drain", "Server-A")).status == 0
    ended = await districhat("status", "--json")
    assert ended.status == 0
    assert [each["status"] for each in json.loads(ended.out)["endpoints"]] == ["draining", "available", "available"]


async def test_explain_names_the_server_that_calls_reach(proxy: ProxyProcess, districhat: Command) -> None:
    for chat in ("chat-000", "chät", "a b/c?d"):
        ended = await districhat("explain", chat)
        assert ended.status == 0
        [row] = [line for line in ended.out.splitlines() if "takes the call" in line]
        assert row.split()[1] == await served_by(proxy, chat)
        assert json.loads((await districhat("explain", chat, "--json")).out)["key"] == chat
    assert "Server-" in (await districhat("explain", "--hex", "00ff")).out


async def test_explain_takes_every_key_that_a_call_can_have(districhat: Command) -> None:
    for longest in ("x" * 4096, "\udcff" * 4096):
        assert (await districhat("explain", longest)).status == 0
    for wrong in ("", "x" * 4097):
        ended = await districhat("explain", wrong)
        assert (ended.status, ended.err) == (2, f"KEY: a key has 1 to 4096 bytes, not {len(wrong)}\n")


async def test_explain_exits_1_when_the_call_would_be_refused(
    proxy: ProxyProcess, servers: tuple[EchoServer, ...], districhat: Command
) -> None:
    for server in servers:
        await server.stop()
    await eventually(lambda: all(id_ in proxy.log() for id_ in IDS), "the losses")
    ended = await districhat("explain", "chat-000")
    assert ended.status == 1
    assert "no server can take it" in ended.out


async def test_drain_waits_for_the_last_call(proxy: ProxyProcess, districhat: Command, capsys: Capture) -> None:
    async with channel(proxy.address) as client:
        stream = client.stream_stream("/any.Service/Chat")(metadata=(("x-chat-id", proxy.key_of("Server-B")),))
        await stream.write(b"x")
        assert await stream.read() == b"x"

        ended = await districhat("drain", "Server-B", "--wait", "--timeout", "0.05")
        assert ended.status == 1
        assert ended.out == "Server-B drains, and still has 1 call after 0.05 s\n"
        assert ended.err == "Server-B: 1 call left\n"

        waiting = asyncio.ensure_future(districhat("drain", "Server-B", "--wait"))
        seen: list[str] = []

        def told() -> bool:
            seen.append(capsys.readouterr().err)
            return "1 call left" in "".join(seen)

        await eventually(told, "the command waiting")
        assert not waiting.done()
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        assert await waiting == (0, "Server-B is drained: it has no call left\n", "")


async def test_ctrl_c_while_a_drain_is_waited_for_leaves_it_and_says_so(
    proxy: ProxyProcess, districhat: Command
) -> None:
    async with channel(proxy.address) as client:
        stream = client.stream_stream("/any.Service/Chat")(metadata=(("x-chat-id", proxy.key_of("Server-B")),))
        await stream.write(b"x")
        assert await stream.read() == b"x"
        drain = [sys.executable, "-m", "proxy", "drain", "Server-B", "--wait", "--admin", districhat.admin]
        process = await asyncio.create_subprocess_exec(*drain, stderr=asyncio.subprocess.PIPE, cwd=ROOT)
        assert process.stderr is not None
        assert await process.stderr.readline() == b"Server-B: 1 call left\n"
        process.send_signal(signal.SIGINT)
        assert await process.stderr.read() == b"Server-B goes on draining; `districhat undrain` takes that back\n"
        assert await process.wait() == 130
    assert "draining" in (await districhat("status")).out


async def test_drained_servers_get_no_new_calls_until_undrained(proxy: ProxyProcess, districhat: Command) -> None:
    chat = proxy.key_of("Server-C")
    assert (await districhat("drain", "Server-C", "--reason", "upgrade")).out == (
        "Server-C drains: new calls walk past it\n"
    )
    assert await served_by(proxy, chat) == proxy.walk(chat)[1]
    assert "drained by the operator: upgrade" in (await districhat("status")).out
    assert (await districhat("drain", "Server-C")).out == "Server-C drains already\n"

    assert (await districhat("undrain", "Server-C")).out == "Server-C takes calls again\n"
    assert await served_by(proxy, chat) == "Server-C"
    assert (await districhat("undrain", "Server-C")).out == "Server-C was not drained, and is available\n"


async def test_plan_says_beforehand_what_a_drain_moves(proxy: ProxyProcess, districhat: Command) -> None:
    chats = [f"chat-{number:03d}" for number in range(40)]
    before = {chat: await served_by(proxy, chat) for chat in chats}
    ended = await districhat("plan", "remove", "Server-B", "--json")
    assert ended.status == 0
    told = json.loads(ended.out)
    assert (told["recent_chats"], told["moved_chats"]) == (40, list(before.values()).count("Server-B"))
    assert f"{told['moved_share']:.1%} of the key space would move" in (
        (await districhat("plan", "remove", "Server-B")).out
    )

    await districhat("drain", "Server-B")

    after = {chat: await served_by(proxy, chat) for chat in chats}
    went = [after[chat] for chat in chats if after[chat] != before[chat]]
    assert {move["target"]: move["chats"] for move in told["moves"]} == {id_: went.count(id_) for id_ in set(went)}


async def test_plan_of_new_servers_and_weights(districhat: Command) -> None:
    assert "Server-D" in (await districhat("plan", "add", "Server-D=2", "Server-E")).out
    heavier = json.loads((await districhat("plan", "reweight", "Server-A=3", "--json")).out)
    assert {move["target"] for move in heavier["moves"]} == {"Server-A"}
    for wrong in (("remove", "nobody"), ("add", "Server-A"), ("add", "x=0"), ("reweight", "Server-A")):
        ended = await districhat("plan", *wrong)
        assert (ended.status, ended.err.count("\n")) == (2, 1)


async def test_the_last_server_and_an_unknown_one_are_refused_in_one_line(districhat: Command) -> None:
    await districhat("drain", "Server-A")
    await districhat("drain", "Server-B")
    last = await districhat("drain", "Server-C")
    assert (last.status, last.err.count("\n")) == (1, 1)
    assert "Server-C is the only server that is available" in last.err
    assert (await districhat("drain", "Server-C", "--force")).status == 0
    assert "--force" in last.err
    unknown = await districhat("drain", "no/body")
    assert unknown.status == 2
    assert unknown.err.startswith("no endpoint has the id 'no/body'")


async def test_reload_tells_what_is_different_or_what_is_wrong(
    proxy: ProxyProcess, servers: tuple[EchoServer, ...], districhat: Command
) -> None:
    assert (await districhat("reload")).out == "nothing is different\n"
    config = toml(addresses(*servers), admin={"address": "127.0.0.1:0"}, retry={"max_attempts": 2})
    proxy.write(config)
    assert await districhat("reload") == (0, "retry.max_attempts: 3 -> 2\n", "")
    proxy.write(config.replace("max_attempts = 2", "max_attempts = 0"))
    refused = await districhat("reload")
    assert refused.status == 2
    assert refused.err.startswith("retry.max_attempts: must be ")
    assert json.loads((await districhat("reload", "--json")).out) == {"problems": refused.err.splitlines()}


async def test_a_token_may_come_from_option_file_environment_and_configuration(
    servers: tuple[EchoServer, ...], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = {"address": "127.0.0.1:0", "token": TOKEN}
    async with proxy_process(tmp_path, toml(addresses(*servers), admin=admin)) as proxy:
        districhat = Command((await proxy.admin_url()).removeprefix("http://"), capsys)
        refused = await districhat("status")
        assert (refused.status, refused.err.count("\n")) == (2, 1)
        assert "DISTRICHAT_ADMIN__TOKEN" in refused.err
        assert (await districhat("status", "--token", "x" * 20)).status == 2

        assert (await districhat("status", "--token", TOKEN)).status == 0
        (tmp_path / "token").write_text(f"{TOKEN}\n", encoding="utf-8")
        assert (await districhat("status", "--token-file", str(tmp_path / "token"))).status == 0
        assert (await districhat("status", "--config", str(tmp_path / "proxy.toml"))).status == 0
        monkeypatch.setenv("DISTRICHAT_ADMIN__TOKEN", TOKEN)
        assert (await districhat("status")).status == 0


async def test_a_proxy_that_cannot_be_reached_is_status_3_and_one_line(capsys: Capture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        free = f"127.0.0.1:{listening.getsockname()[1]}"
    districhat = Command(free, capsys)
    for arguments in (
        ("status",),
        ("top",),
        ("explain", "x"),
        ("plan", "remove", "a"),
        ("drain", "a"),
        ("undrain", "a"),
        ("reload",),
    ):
        ended = await districhat(*arguments)
        assert ended.status == 3
        assert ended.err.startswith(f"cannot reach the proxy at {free}: connection refused; ")
        assert ended.err.count("\n") == 1


async def test_what_is_no_admin_server_is_status_3(proxy: ProxyProcess, capsys: Capture) -> None:
    ended = await Command(proxy.address, capsys)("status")
    assert ended.status == 3
    assert ended.err.count("\n") == 1


async def test_top_tells_the_rates_of_each_server(proxy: ProxyProcess, districhat: Command) -> None:
    chat = proxy.key_of("Server-A")

    async def keep_calling() -> None:
        async with channel(proxy.address) as client:
            while True:
                await client.unary_unary(METHOD)(keyed(chat))

    calling = asyncio.ensure_future(keep_calling())
    try:
        ended = await districhat("top", "--interval", "0.3", "--count", "2", "--json")
    finally:
        calling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await calling
    assert ended.status == 0
    last = json.loads(ended.out.splitlines()[1])
    by_id = {each["id"]: each for each in last["endpoints"]}
    assert by_id["Server-A"]["calls_per_second"] > 0
    assert by_id["Server-A"]["p50_seconds"] > 0
    assert by_id["Server-B"]["calls_per_second"] == 0
    assert last["calls_per_second"] == pytest.approx(by_id["Server-A"]["calls_per_second"])
    assert "Server-A" in (await districhat("top", "--interval", "0.05", "--count", "1")).out


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (200, "server state share active calls/s errors p50 p99 why"),
        (80, "server state share active calls/s errors p50 p99 why"),
        (60, "server state active calls/s errors p50 p99"),
        (20, "server calls/s"),
        (1, None),
    ],
)
async def test_top_shows_the_columns_that_a_terminal_has_room_for(
    districhat: Command, monkeypatch: pytest.MonkeyPatch, width: int, columns: str | None
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    await districhat("drain", "Server-B", "--reason", "a long story " * 15)  # is cut, and costs no other column
    ended = await districhat("top", "--interval", "0.05", "--count", "1")
    assert ended.status == 0
    if columns is not None:
        assert columns.split() in [line.split() for line in ended.out.splitlines()]
        assert [line for line in ended.out.splitlines() if line.startswith("Server-A ")]


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1", "TERM": "dumb"}], ids=["a pipe", "a dumb terminal"])
async def test_top_prints_every_look_where_it_cannot_draw(
    districhat: Command, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ended = await districhat("top", "--interval", "0.05", "--count", "3")
    assert ended.status == 0
    assert ended.out.count("3 of 3 servers available") == 3
    assert ended.out.count("Server-A") == 3


async def test_top_in_a_pipe_ends_with_its_reader(districhat: Command) -> None:
    """As in `districhat top | head`: what it has seen is there at once, and who has seen enough may go."""
    top = [sys.executable, "-m", "proxy", "top", "--interval", "0.05", "--admin", districhat.admin]
    process = await asyncio.to_thread(subprocess.Popen, top, stdout=subprocess.PIPE, cwd=ROOT)
    with process:
        assert process.stdout is not None
        first = await asyncio.to_thread(process.stdout.readline)
        process.stdout.close()
        assert await asyncio.to_thread(process.wait, 60) == 0
    assert first.startswith(b"ready; 3 of 3 servers available")


async def test_a_server_is_planned_once(districhat: Command) -> None:
    ended = await districhat("plan", "add", "Server-D=1", "Server-D=2")
    assert (ended.status, ended.out) == (2, "")
    assert ended.err == "'Server-D' is named twice\n"


async def test_a_timeout_of_a_drain_that_nobody_waits_for_is_refused(districhat: Command) -> None:
    ended = await districhat("drain", "Server-A", "--timeout", "5")
    assert ended == (2, "", "--timeout: is how long --wait waits: give both, or neither\n")
    assert "available" in (await districhat("undrain", "Server-A")).out
