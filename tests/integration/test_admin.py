"""The admin server of a real proxy, asked over HTTP while real clients call through it."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio
import pytest

from tests.support.admin import admin_of, get, samples
from tests.support.grpc_server import EchoServer, channel, server_of
from tests.support.messages import keyed
from tests.support.polling import eventually
from tests.support.proxy_process import ProxyProcess, addresses, environment, proxy_process, toml

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CALLS = Path(__file__).parents[2] / "docs/calls.md"
IDS = ("Server-A", "Server-B", "Server-C")
CHATS = tuple(f"chat-{number:03d}" for number in range(30))
METHOD = "/chat.ChatService/PostMessage"
TOKEN = "correct-horse-battery-staple"


@pytest.fixture
async def proxy(servers: tuple[EchoServer, ...], tmp_path: Path) -> AsyncIterator[ProxyProcess]:
    async with proxy_process(tmp_path, toml(addresses(*servers), admin={"address": "127.0.0.1:0"})) as running:
        yield running


async def served_by(client: grpc.aio.Channel, chat: str) -> str:
    call = client.unary_unary(METHOD)(keyed(chat))
    await call
    return await server_of(call)


async def all_served_by(client: grpc.aio.Channel) -> dict[str, str]:
    return dict(zip(CHATS, await asyncio.gather(*(served_by(client, chat) for chat in CHATS)), strict=True))


async def test_an_explanation_names_the_server_that_calls_reach(proxy: ProxyProcess) -> None:
    async with channel(proxy.address) as client, admin_of(proxy) as admin:
        for chat, server in (await all_served_by(client)).items():
            assert (await get(admin, f"/api/explain?key={chat}"))["chosen"] == server


async def test_a_drain_moves_the_new_calls_of_that_server_alone(proxy: ProxyProcess) -> None:
    async with channel(proxy.address) as client, admin_of(proxy) as admin:
        at_home = await all_served_by(client)
        stream = client.stream_stream("/any.Service/Chat")(metadata=(("x-chat-id", proxy.key_of("Server-B")),))
        await stream.write(b"before")
        assert await stream.read() == b"before"

        async with admin.post("/api/endpoints/Server-B/drain", json={"reason": "upgrade"}) as response:
            assert await response.json() == {
                "schema_version": 1,
                "id": "Server-B",
                "changed": True,
                "status": "draining",
                "active_calls": 1,
            }
        moved = await all_served_by(client)
        assert {chat for chat in CHATS if moved[chat] != at_home[chat]} == {
            chat for chat in CHATS if at_home[chat] == "Server-B"
        }
        assert "Server-B" not in moved.values()

        # What it has, it keeps.
        await stream.write(b"after")
        assert await stream.read() == b"after"
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        [drained] = [each for each in (await get(admin, "/api/endpoints"))["endpoints"] if each["id"] == "Server-B"]
        assert (drained["active_calls"], drained["blocks"][0]["cause"]) == (0, "operator")

        async with admin.post("/api/endpoints/Server-B/undrain", json={}) as response:
            assert (await response.json())["status"] == "available"
        assert await all_served_by(client) == at_home


async def test_a_passed_health_check_does_not_undo_a_drain(servers: tuple[EchoServer, ...], tmp_path: Path) -> None:
    health = {"kind": "tcp", "interval": 0.05, "unhealthy_interval": 0.05}
    config = toml(addresses(*servers), admin={"address": "127.0.0.1:0"}, health=health)
    async with proxy_process(tmp_path, config) as proxy, admin_of(proxy) as admin:
        async with admin.post("/api/endpoints/Server-A/drain", json={}) as response:
            assert response.status == HTTPStatus.OK
        async with admin.get("/api/events", headers={"Last-Event-ID": "0"}) as events:
            # Checks go on: a server that dies and comes back is seen to do both, and the drain stands.
            await servers[0].stop()
            async for line in events.content:
                if line == b"event: unhealthy\n":
                    break
            await servers[0].start()
            async for line in events.content:
                if line == b"event: healthy\n":
                    break
        told = {each["id"]: each["status"] for each in (await get(admin, "/api/endpoints"))["endpoints"]}
        assert told["Server-A"] == "draining"


async def test_mistakes_are_404_400_and_401(servers: tuple[EchoServer, ...], tmp_path: Path) -> None:
    config = toml(addresses(*servers), admin={"address": "127.0.0.1:0", "token": TOKEN})
    async with (
        proxy_process(tmp_path, config) as proxy,
        admin_of(proxy, Authorization=f"Bearer {TOKEN}") as admin,
        admin_of(proxy) as stranger,
        channel(proxy.address) as client,
    ):
        async with admin.post("/api/endpoints/nobody/drain", json={}) as response:
            assert (response.status, response.content_type) == (404, "application/problem+json")
        async with admin.post("/api/endpoints/Server-A/drain", json={"reason": 1}) as response:
            assert (response.status, response.content_type) == (400, "application/problem+json")
        async with stranger.post("/api/endpoints/Server-A/drain", json={}) as response:
            assert (response.status, response.content_type) == (401, "application/problem+json")
        async with stranger.get("/readyz") as response:
            assert response.status == HTTPStatus.OK
        served = await all_served_by(client)
        assert served == {chat: proxy.owner(chat) for chat in CHATS}, "none of it has changed anything"


@pytest.mark.parametrize(
    "garbage", [b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", b"\0\1\2\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
)
async def test_what_is_no_http_is_refused_and_no_traceback(proxy: ProxyProcess, garbage: bytes) -> None:
    host, _, port = (await proxy.admin_url()).removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(garbage)
    assert (await reader.readline()).split()[1] == b"400"
    writer.close()
    await writer.wait_closed()
    assert "Traceback" not in proxy.log()


async def test_while_it_drains_the_proxy_says_that_it_is_not_ready(
    servers: tuple[EchoServer, ...], tmp_path: Path
) -> None:
    config = toml(addresses(*servers), admin={"address": "127.0.0.1:0"})
    async with (
        proxy_process(tmp_path, config) as proxy,
        channel(proxy.address) as client,
        admin_of(proxy) as admin,
    ):
        stream = client.stream_stream("/any.Service/Chat")(metadata=(("x-chat-id", "chat-000"),))
        await stream.write(b"x")
        assert await stream.read() == b"x"
        proxy.signal(signal.SIGTERM)

        await eventually(lambda: "draining:" in proxy.log(), "the drain")
        async with admin.get("/readyz") as response:
            assert response.status == HTTPStatus.SERVICE_UNAVAILABLE
            assert (await response.json())["reason"] == "the proxy is draining"
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF


def test_an_admin_address_that_was_asked_for_and_is_taken_is_a_mistake(tmp_path: Path) -> None:
    config = tmp_path / "proxy.toml"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config.write_text(toml({"Server-A": "127.0.0.1:9"}, admin={"address": address}), encoding="utf-8")
        command = [sys.executable, "-m", "proxy", "serve", "--config", str(config)]
        ended = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 2
    assert f"admin.address: cannot listen on {address}: " in ended.stderr.splitlines()[-1]


async def test_a_successor_takes_the_admin_address_over_too(servers: tuple[EchoServer, ...], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        listener, admin_port = (f"127.0.0.1:{each.getsockname()[1]}" for each in (one, other))
    config = toml(addresses(*servers), listener={"address": listener}, admin={"address": admin_port})
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    async with proxy_process(first, config) as old:
        async with admin_of(old) as admin:
            await get(admin, "/livez")
        async with proxy_process(second, config, arguments=["--takeover"]) as new:
            assert await old.ended() == 0
            old.signalled = True
            async with admin_of(new) as admin:
                assert f"admin server on http://{admin_port}" in new.log()
                assert (await get(admin, "/readyz"))["status"] == "ok"


async def test_prometheus_is_told_of_calls_checks_and_the_loop(servers: tuple[EchoServer, ...], tmp_path: Path) -> None:
    health = {"kind": "tcp", "interval": 0.05, "unhealthy_interval": 0.05}
    config = toml(addresses(*servers), admin={"address": "127.0.0.1:0"}, health=health)
    async with proxy_process(tmp_path, config) as proxy, channel(proxy.address) as client, admin_of(proxy) as admin:
        served = {chat: await served_by(client, chat) for chat in CHATS}
        found = await samples(admin)
        calls = {each.labels["endpoint"]: each.value for each in found if each.name == "districhat_calls_total"}
        assert calls == Counter(served.values())
        checks = [each for each in found if each.name == "districhat_health_checks_total"]
        assert {(each.labels["endpoint"], each.labels["result"]) for each in checks} == {(id_, "passed") for id_ in IDS}
        names = {each.name for each in found}
        assert {"districhat_pass_seconds_count", "districhat_loop_lag_seconds_count"} <= names


async def test_a_stock_client_that_asks_is_told_where_its_call_went(proxy: ProxyProcess) -> None:
    async with channel(proxy.address) as client:
        call = client.unary_unary(METHOD)(keyed("chat-007"), metadata=(("x-districhat-explain", "1"),))
        await call
        told = dict(await call.trailing_metadata())
        assert told["x-districhat-endpoint"] == await server_of(call) == told["x-districhat-owner"]
        assert told["x-districhat-attempts"] == "1"


async def test_a_client_that_asks_is_told_all_that_the_documentation_lists(
    proxy: ProxyProcess, servers: tuple[EchoServer, ...]
) -> None:
    await servers[0].stop()
    async with channel(proxy.address) as client:
        key = keyed(proxy.key_of("Server-A"))
        call = client.unary_unary(METHOD)(key, metadata=(("x-districhat-explain", "1"),))
        await call
        told = dict(await call.trailing_metadata())
    documented = re.findall(r"^\| `(x-districhat-[a-z]+)` \|", CALLS.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(name for name in told if name.startswith("x-districhat-")) == sorted(documented)
    assert told["x-districhat-owner"] == "Server-A" != told["x-districhat-endpoint"]
    assert told["x-districhat-reasons"].startswith("Server-A: ")


@pytest.mark.parametrize("workers", [1, 2])
async def test_recent_decisions_and_the_access_log_tell_of_every_process(
    servers: tuple[EchoServer, ...], tmp_path: Path, workers: int
) -> None:
    log = tmp_path / "access.log"
    config = toml(
        addresses(*servers),
        listener={"workers": workers},
        admin={"address": "127.0.0.1:0"},
        decisions={"sample": 1, "chat_ids": "plain"},
        log={"access_sample": 1, "access_file": str(log)},
    )
    async with proxy_process(tmp_path, config) as proxy, admin_of(proxy) as admin:
        for _ in range(4):  # connections, which the kernel spreads
            async with channel(proxy.address) as client:
                served = await all_served_by(client)
        decisions = (await get(admin, "/api/decisions?limit=1000"))["decisions"]
        assert len(decisions) == 4 * len(CHATS)
        assert {each["chat"]: each["endpoint"] for each in decisions} == served
        assert len((await get(admin, "/api/decisions?key=chat-007"))["decisions"]) == 4
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 4 * len(CHATS)
    assert {line["chat"]: line["endpoint"] for line in lines} == served
