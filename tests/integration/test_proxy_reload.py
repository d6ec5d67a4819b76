"""SIGHUP: the running proxy goes by its file again, and no call notices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc.aio
import pytest

from tests.support.admin import admin_of, get
from tests.support.echo_load import EchoLoad
from tests.support.grpc_server import channel, echo_servers
from tests.support.polling import eventually
from tests.support.ports import closed_port
from tests.support.proxy_process import addresses, proxy_process, toml

if TYPE_CHECKING:
    from pathlib import Path

UNARY = "/any.Service/Unary"


async def test_servers_come_and_go_by_the_file_under_load_and_no_call_fails(tmp_path: Path) -> None:
    async with (
        echo_servers("Server-A", "Server-B", "Server-C") as (a, b, c),
        proxy_process(tmp_path, toml(addresses(a, b))) as proxy,
        EchoLoad(proxy.address) as load,
    ):
        assert set(await load.more()) == {"Server-A", "Server-B"}
        log = await proxy.reload(toml(addresses(a, b, c)))
        assert f"endpoints[Server-C].address: {c.address} (new)" in log
        assert set(await load.more()) == {"Server-A", "Server-B", "Server-C"}
        await proxy.reload(toml(addresses(a, c)))
        assert set(await load.more()) == {"Server-A", "Server-C"}
        await eventually(lambda: "has finished its calls and is gone" in proxy.log(), "the end of Server-B")
        await proxy.reload(toml(addresses(a, b, c), weights={"Server-B": 8.0}))
        answers = await load.more()
        assert answers.count("Server-B") > len(answers) / 2


async def test_a_bad_file_changes_nothing_and_says_every_mistake(tmp_path: Path) -> None:
    async with echo_servers("Server-A") as (a,), proxy_process(tmp_path, toml(addresses(a))) as proxy:
        log = await proxy.reload(toml(addresses(a), limits={"max_calls": -1}, outlier={"intervall": 1.0}))
        assert "reload: limits.max_calls: " in log
        assert "reload: outlier.intervall: " in log
        async with channel(proxy.address) as client:
            assert await client.unary_unary(UNARY)(b"body") == b"body"
        assert "reloaded: 0 changes" in await proxy.reload(toml(addresses(a)))
        proxy.expects("configuration has mistakes", "reload: ")


async def test_the_admin_api_reloads_and_answers_with_what_changed(tmp_path: Path) -> None:
    admin: dict[str, str | int | float] = {"address": "127.0.0.1:0"}
    async with (
        echo_servers("Server-A", "Server-B") as (a, b),
        proxy_process(tmp_path, toml(addresses(a), admin=admin)) as proxy,
        admin_of(proxy) as client,
    ):
        proxy.write(toml(addresses(a, b), admin=admin, listener={"address": "127.0.0.1:1", "drain_grace": 4.0}))
        async with client.post("/api/reload", json={}) as response:
            assert response.status == 200
            done = await response.json()
        assert "listener.drain_grace: 5.0 -> 4.0" in done["changed"]
        assert done["restart_needed"] == ["listener.address"]
        endpoints = await get(client, "/api/endpoints")
        assert [each["id"] for each in endpoints["endpoints"]] == ["Server-A", "Server-B"]
        assert endpoints["snapshot"]["version"] == 2
        proxy.write(toml(addresses(a), limits={"max_calls": 0}, admin=admin))
        async with client.post("/api/reload", json={}) as response:
            assert response.status == 409
            assert "limits.max_calls" in (await response.json())["problems"][0]
        assert (await get(client, "/api/endpoints"))["snapshot"] == endpoints["snapshot"]


async def test_a_new_server_is_checked_before_it_gets_calls(tmp_path: Path) -> None:
    checks = {"kind": "tcp", "interval": 3600.0, "startup_timeout": 30.0}
    async with echo_servers("Server-A") as (a,), proxy_process(tmp_path, toml(addresses(a), health=checks)) as proxy:
        with closed_port() as nobody:
            log = await proxy.reload(toml({**addresses(a), "Server-B": f"127.0.0.1:{nobody}"}, health=checks))
        assert log.index("Server-B (127.0.0.1") < log.index("reloaded: ")
        async with channel(proxy.address) as client:
            for turn in range(20):
                metadata = (("x-chat-id", f"chat-{turn}"),)
                assert await client.unary_unary(UNARY)(b"body", metadata=metadata) == b"body"


async def test_a_running_stream_survives_any_reload(tmp_path: Path) -> None:
    async with (
        echo_servers("Server-A", "Server-B") as (a, b),
        proxy_process(tmp_path, toml(addresses(a, b))) as proxy,
        channel(proxy.address) as client,
    ):
        metadata = (("x-chat-id", proxy.key_of("Server-B")),)
        call: grpc.aio.StreamStreamCall[bytes, bytes] = client.stream_stream("/any.Service/Bidi")(metadata=metadata)
        await call.write(b"one")
        assert await call.read() == b"one"
        await proxy.reload(toml(addresses(a), retry={"max_attempts": 1}, upstream={"max_connections": 1}))
        await call.write(b"two")
        assert await call.read() == b"two"
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() == grpc.StatusCode.OK


@pytest.mark.parametrize("kind", ["off", "tcp"])
async def test_health_checks_can_be_turned_on_and_off(tmp_path: Path, kind: str) -> None:
    with closed_port() as nobody:
        async with echo_servers("Server-A") as (a,):
            servers = {**addresses(a), "Server-B": f"127.0.0.1:{nobody}"}
            kinds = ("tcp", "off") if kind == "off" else ("off", "tcp")
            configs = [toml(servers, health={"kind": each}) for each in kinds]
            async with proxy_process(tmp_path, configs[0]) as proxy:
                log = await proxy.reload(configs[1])
                assert f"health.kind: {kinds[0]} -> {kinds[1]}" in log
                assert ("is unhealthy" in log) == (kind == "tcp")
