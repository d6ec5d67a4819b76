"""`listener.workers`: many processes on one port that behave as one."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from proxy.workers import supervisor
from tests.support.admin import admin_of, get, metric
from tests.support.echo_load import EchoLoad
from tests.support.grpc_server import GATED, EchoServer, Gate, channel, echo_servers, server_of
from tests.support.polling import eventually
from tests.support.ports import free_port
from tests.support.processes import alive, command, page_faults, stopped
from tests.support.proxy_process import PATIENCE, addresses, environment, proxy_process, toml
from tests.support.workers import client_of_each, workers_of

if TYPE_CHECKING:
    from tests.support.grpc_server import Context, ReceivedCall

pytestmark = pytest.mark.skipif(not supervisor.SUPPORTED, reason="needs Linux: SO_REUSEPORT that spreads, pidfd")

UNARY = "/any.Service/Unary"


def config(*servers: EchoServer, workers: int = 2, **tables: Any) -> str:
    listener = {"workers": workers, **tables.pop("listener", {})}
    return toml(addresses(*servers), listener=listener, admin={"address": "127.0.0.1:0"}, **tables)


async def ask(client: grpc.aio.Channel, chat: str) -> str:
    """Which server answers a call for the chat. It waits for a connection first: what fails was under way."""
    call = client.unary_unary(UNARY)(b"body", metadata=(("x-chat-id", chat),), wait_for_ready=True)
    assert await call == b"body"
    return await server_of(call)


async def becomes(client: grpc.aio.Channel, chat: str, server: str) -> None:
    """Until calls for the chat are answered by that server: what is decided takes a moment to reach all workers."""
    async with asyncio.timeout(PATIENCE):
        while await ask(client, chat) != server:
            pass


async def test_two_workers_agree_on_every_owner(tmp_path: Path) -> None:
    async with (
        echo_servers("Server-A", "Server-B", "Server-C") as servers,
        proxy_process(tmp_path, config(*servers)) as proxy,
        client_of_each(proxy) as clients,
    ):
        assert len(clients) == 2
        for number in range(30):
            chat = f"chat-{number}"
            assert {await ask(client, chat) for client in clients.values()} == {proxy.owner(chat)}


async def test_a_killed_worker_costs_its_own_calls_alone_and_is_replaced(tmp_path: Path) -> None:
    async with (
        echo_servers("Server-A") as (server,),
        proxy_process(tmp_path, config(server)) as proxy,
        client_of_each(proxy) as clients,
        admin_of(proxy) as admin,
    ):
        gate = Gate([server])
        calls = {pid: client.unary_unary(GATED)(b"body") for pid, client in clients.items()}
        await gate.inside(2)
        victim, survivor = clients
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(grpc.aio.AioRpcError) as lost:
            await calls[victim]
        assert lost.value.code() == grpc.StatusCode.UNAVAILABLE
        await eventually(lambda: len(workers_of(proxy)) == 2 and victim not in workers_of(proxy), "its replacement")
        gate.open()
        assert await calls[survivor] == b"body"
        assert "was ended by SIGKILL: the calls that it had are lost; it is replaced at once" in proxy.log()
        proxy.expects("was ended by SIGKILL")
        async with client_of_each(proxy) as again:
            for client in again.values():
                assert await ask(client, "chat") == "Server-A"
        assert (await get(admin, "/api/endpoints"))["endpoints"][0]["status"] == "available"


async def test_a_worker_that_crashes_again_soon_is_replaced_after_a_pause(tmp_path: Path) -> None:
    async with echo_servers("Server-A") as (server,), proxy_process(tmp_path, config(server)) as proxy:
        for when in ("at once", "in 0.5 s"):
            (victim,) = [pid for pid in workers_of(proxy) if "worker-0" in command(pid)]
            ready = proxy.log().count("is ready")
            os.kill(victim, signal.SIGKILL)
            await eventually(lambda ready=ready: proxy.log().count("is ready") > ready, "replacement")  # type: ignore[misc]
            assert f"worker 0 (process {victim}) was ended by SIGKILL" in proxy.log()
            assert f"it is replaced {when}" in proxy.log()
        assert len(workers_of(proxy)) == 2
        proxy.expects("was ended by SIGKILL")


async def test_under_load_a_killed_worker_fails_only_calls_that_it_had(tmp_path: Path) -> None:
    async with echo_servers("Server-A", "Server-B") as servers, proxy_process(tmp_path, config(*servers)) as proxy:
        failed: list[grpc.StatusCode] = []
        done = 0
        going = True

        async def client() -> None:
            nonlocal done
            async with channel(proxy.address) as own:
                while going:
                    try:
                        await ask(own, f"chat-{done % 50}")
                    except grpc.aio.AioRpcError as error:
                        failed.append(error.code())
                    done += 1

        clients = [asyncio.ensure_future(client()) for _ in range(8)]
        for _ in range(2):
            before = done
            await eventually(lambda before=before: done > before + 100, "calls")  # type: ignore[misc]
            os.kill(victim := workers_of(proxy)[0], signal.SIGKILL)
            await eventually(lambda v=victim: len(c := workers_of(proxy)) == 2 and v not in c, "replacement")  # type: ignore[misc]
        before = done
        await eventually(lambda: done > before + 100, "calls")
        going = False
        await asyncio.gather(*clients)
        assert set(failed) <= {grpc.StatusCode.UNAVAILABLE}
        assert len(failed) <= 2 * len(clients), "more calls failed than were under way"
        proxy.expects("was ended by SIGKILL")


async def test_sigterm_drains_every_worker(tmp_path: Path) -> None:
    async with (
        echo_servers("Server-A") as (server,),
        proxy_process(tmp_path, config(server)) as proxy,
        client_of_each(proxy) as clients,
    ):
        calls = []
        for client in clients.values():
            call: grpc.aio.StreamStreamCall[bytes, bytes] = client.stream_stream("/any.Service/Bidi")()
            await call.write(b"one")
            assert await call.read() == b"one"
            calls.append(call)
        proxy.signal(signal.SIGTERM)
        await eventually(lambda: "draining" in proxy.log(), "the drain")
        for call in calls:
            await call.write(b"two")
            assert await call.read() == b"two"
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            assert await call.code() == grpc.StatusCode.OK
        assert await proxy.ended() == 0


async def test_the_workers_end_with_their_parent(tmp_path: Path) -> None:
    async with (
        echo_servers("Server-A") as (server,),
        proxy_process(tmp_path, config(server)) as proxy,
        client_of_each(proxy) as clients,
    ):
        workers = workers_of(proxy)
        call: grpc.aio.StreamStreamCall[bytes, bytes] = next(iter(clients.values())).stream_stream(
            "/any.Service/Bidi"
        )()
        await call.write(b"one")
        assert await call.read() == b"one"
        proxy.signal(signal.SIGKILL)
        assert await proxy.ended() == -signal.SIGKILL
        await call.write(b"two")
        assert await call.read() == b"two", "a running call has the grace, as after SIGTERM"
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        await eventually(lambda: not any(map(alive, workers)), "the end of the workers")
        proxy.exit_status = -signal.SIGKILL


async def test_a_worker_that_is_stopped_when_its_parent_is_killed_goes_on_and_ends(tmp_path: Path) -> None:
    async with echo_servers("Server-A") as (server,), proxy_process(tmp_path, config(server)) as proxy:
        workers = workers_of(proxy)
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        try:
            await eventually(lambda: all(map(stopped, workers)), "their standing still")
            proxy.signal(signal.SIGKILL)
            assert await proxy.ended() == -signal.SIGKILL
            await eventually(lambda: not any(map(alive, workers)), "the end of the workers")
        finally:
            for worker in workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
        proxy.exit_status = -signal.SIGKILL


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
async def test_workers_keep_the_memory_that_large_messages_take(tmp_path: Path) -> None:
    large = bytes(512 << 10)
    async with (
        echo_servers("Server-A") as (server,),
        proxy_process(tmp_path, config(server)) as proxy,
        channel(proxy.address) as client,
    ):

        async def faults(calls: int) -> int:
            before = sum(map(page_faults, workers_of(proxy)))
            for _ in range(calls):
                assert await client.unary_unary(UNARY)(large) == large
            return sum(map(page_faults, workers_of(proxy))) - before

        await faults(50)  # until there is enough of it
        assert await faults(50) < 50 * len(large) / 4096 / 10, "it is taken from the kernel again and again"


async def test_a_reload_reaches_every_worker(tmp_path: Path) -> None:
    async with (
        echo_servers("Server-A", "Server-B", "Server-C") as (a, b, c),
        proxy_process(tmp_path, config(a, b)) as proxy,
    ):
        async with EchoLoad(proxy.address, clients=8) as load:
            assert set(await load.more()) == {"Server-A", "Server-B"}
            await proxy.reload(config(a, c))
            assert set(await load.more()) == {"Server-A", "Server-C"}
        async with client_of_each(proxy) as clients:
            for client in clients.values():
                assert {await ask(client, f"chat-{number}") for number in range(20)} == {"Server-A", "Server-C"}
            await proxy.reload(
                config(a, c, routes=['method = "*"\nkey = { metadata = "x-other" }\nmissing_key = "reject"'])
            )
            for client in clients.values():
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await ask(client, "chat")
                assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "listener.workers: 2 -> 3: needs a restart" in await proxy.reload(config(a, c, workers=3))


async def test_a_worker_that_comes_later_knows_what_was_said_before(tmp_path: Path) -> None:
    async with (
        echo_servers("Server-A", "Server-B") as servers,
        proxy_process(tmp_path, config(*servers)) as proxy,
        admin_of(proxy) as admin,
    ):
        async with admin.post("/api/endpoints/Server-A/drain", json={}) as response:
            assert response.status == 200
        os.kill(victim := workers_of(proxy)[0], signal.SIGKILL)
        await eventually(lambda: len(c := workers_of(proxy)) == 2 and victim not in c, "replacement")
        async with client_of_each(proxy) as clients:
            for client in clients.values():
                assert {await ask(client, f"chat-{number}") for number in range(20)} == {"Server-B"}
            async with admin.post("/api/endpoints/Server-A/undrain", json={}) as response:
                assert response.status == 200
            for client in clients.values():
                await becomes(client, proxy.key_of("Server-A"), "Server-A")
        proxy.expects("was ended by SIGKILL")


async def test_a_health_check_speaks_to_every_worker(tmp_path: Path) -> None:
    health = {"kind": "grpc", "interval": 0.05, "unhealthy_interval": 0.05, "service": "any.Service"}
    healthy = True

    async def check(_call: ReceivedCall, context: Context) -> None:
        await context.read()
        await context.write(b"\x08\x01" if healthy else b"\x08\x02")

    async with echo_servers("Server-A", "Server-B") as servers:
        for server in servers:
            server.scripts["/grpc.health.v1.Health/Check"] = check
        async with proxy_process(tmp_path, config(*servers, health=health)) as proxy, client_of_each(proxy) as clients:
            servers[0].scripts["/grpc.health.v1.Health/Check"] = refuse
            chat = proxy.key_of("Server-A")
            for client in clients.values():
                await becomes(client, chat, "Server-B")
            servers[0].scripts["/grpc.health.v1.Health/Check"] = check
            for client in clients.values():
                await becomes(client, chat, "Server-A")


async def refuse(_call: ReceivedCall, context: Context) -> None:
    await context.read()
    await context.write(b"\x08\x02")


async def test_failures_in_different_workers_eject_together(tmp_path: Path) -> None:
    """Three failures here and two there are five in a row."""
    outlier = {"consecutive_failures": 5, "base_ejection_time": 3600.0}
    method = "/any.Service/Fails"

    async def fail(_call: ReceivedCall, context: Context) -> None:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "sick")

    async with (
        echo_servers("Server-A", "Server-B") as servers,
        proxy_process(tmp_path, config(*servers, outlier=outlier)) as proxy,
        client_of_each(proxy) as clients,
        admin_of(proxy) as admin,
    ):
        servers[0].scripts[method] = fail
        keys = [key for number in range(100) if proxy.owner(key := f"chat-{number}") == "Server-A"]
        for index, count in enumerate((3, 2)):
            client = list(clients.values())[index]
            for _ in range(count):
                with pytest.raises(grpc.aio.AioRpcError):
                    await client.unary_unary(method)(b"body", metadata=(("x-chat-id", keys.pop()),))
        async with asyncio.timeout(PATIENCE):
            while (told := (await get(admin, "/api/endpoints"))["endpoints"][0])["status"] != "ejected":
                pass
        assert "5 failures in a row" in told["blocks"][0]["reason"]
        for client in clients.values():
            await becomes(client, keys[-1], "Server-B")


async def test_a_displaced_chat_stays_where_it_is_whichever_worker_its_calls_arrive_at(tmp_path: Path) -> None:
    async with (
        echo_servers("Server-A", "Server-B", "Server-C") as servers,
        proxy_process(tmp_path, config(*servers, failback={"mode": "never"})) as proxy,
        client_of_each(proxy) as clients,
        admin_of(proxy) as admin,
    ):
        chat = proxy.key_of("Server-A")
        first, second = clients.values()
        async with admin.post("/api/endpoints/Server-A/drain", json={}) as response:
            assert response.status == 200
        substitute = proxy.walk(chat)[1]
        await becomes(first, chat, substitute)

        async with asyncio.timeout(PATIENCE):
            while (await get(admin, f"/api/explain?key={chat}"))["verdict"] != "displaced":
                pass
        async with admin.post("/api/endpoints/Server-A/undrain", json={}) as response:
            assert response.status == 200
        others = (key for number in count() if proxy.owner(key := f"other-{number}") == "Server-A")
        async with asyncio.timeout(PATIENCE):
            while await ask(second, next(others)) != "Server-A":
                pass
        assert await ask(second, chat) == substitute
        assert await ask(first, chat) == substitute


async def test_the_load_of_all_workers_is_one(tmp_path: Path) -> None:
    """Two calls here and two there are four, for the limit and for the operator."""
    async with (
        echo_servers("Server-A") as (server,),
        proxy_process(tmp_path, config(server, limits={"max_calls_per_endpoint": 4})) as proxy,
        client_of_each(proxy) as clients,
        admin_of(proxy) as admin,
    ):
        gate = Gate([server])
        calls = [client.unary_unary(GATED)(b"body") for client in clients.values() for _ in range(2)]
        await gate.inside(4)

        async with asyncio.timeout(PATIENCE):
            while (await get(admin, "/api/endpoints"))["endpoints"][0]["active_calls"] != 4:
                pass
        for client in clients.values():
            refused = 0
            while not refused:  # until the figures of the other worker are here
                probe = client.unary_unary(GATED)(b"body")
                done, _ = await asyncio.wait([asyncio.ensure_future(probe.code())], timeout=0.5)
                if done:
                    assert await probe.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
                    refused += 1
                else:
                    probe.cancel()
        gate.open()
        assert [await call for call in calls] == [b"body"] * 4


async def test_the_numbers_of_all_workers_are_added_up_and_those_of_a_dead_one_stay(tmp_path: Path) -> None:
    async with (
        echo_servers("Server-A") as (server,),
        proxy_process(tmp_path, config(server)) as proxy,
        client_of_each(proxy) as clients,
        admin_of(proxy) as admin,
    ):
        for client in clients.values():
            for _ in range(5):
                await ask(client, "chat")
        assert await metric(admin, "districhat_calls_total") == 10
        assert await metric(admin, "districhat_workers") == 2
        assert await metric(admin, "districhat_workers_replaced_total") == 0
        os.kill(victim := next(iter(clients)), signal.SIGKILL)
        await eventually(lambda: len(c := workers_of(proxy)) == 2 and victim not in c, "replacement")
        assert await metric(admin, "districhat_calls_total") == 10
        assert await metric(admin, "districhat_workers_replaced_total") == 1
        proxy.expects("was ended by SIGKILL")


@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 1), (1, 2), (2, 3)])
async def test_a_takeover_reaches_from_any_number_of_workers_to_any_other(
    tmp_path: Path, before: int, after: int
) -> None:
    address = f"127.0.0.1:{free_port()}"
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    async with echo_servers("Server-A", "Server-B") as servers:
        old = config(*servers, workers=before, listener={"address": address})
        new = config(*servers, workers=after, listener={"address": address})
        async with (
            proxy_process(tmp_path / "first", old) as first,
            EchoLoad(address, clients=6, per_connection=50, wait_for_ready=True) as load,
        ):
            first.signalled = True  # its successor ends it
            await load.more()
            async with proxy_process(tmp_path / "second", new, arguments=("--takeover",)) as second:
                assert await first.ended() == 0
                await load.more(400)
                assert len(workers_of(second)) == (after if after > 1 else 0)
                await load.stop()


async def test_a_port_that_another_proxy_has_is_refused_though_it_could_be_shared(tmp_path: Path) -> None:
    async with echo_servers("Server-A") as (server,):
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
        async with proxy_process(tmp_path / "first", config(server)) as first:
            with pytest.raises(AssertionError, match=r"cannot listen on .*: address already in use"):
                async with proxy_process(
                    tmp_path / "second", config(server, listener={"address": f"127.0.0.1:{first.port}"})
                ):
                    pass


async def test_a_worker_that_is_stopped_holds_up_neither_parent_nor_drain(tmp_path: Path) -> None:
    async with (
        echo_servers("Server-A") as (server,),
        proxy_process(tmp_path, config(server, listener={"drain_grace": 0.1})) as proxy,
        client_of_each(proxy) as clients,
    ):
        stopped, running = clients
        os.kill(stopped, signal.SIGSTOP)
        assert await ask(clients[running], "chat") == "Server-A"
        proxy.signal(signal.SIGTERM)
        assert await proxy.ended() == 0
        assert "did not end in time and is killed" in proxy.log()


async def test_workers_load_nothing_from_the_working_directory(tmp_path: Path) -> None:
    """As `districhat serve`, the installed program, does not: modules of the same names may lie there."""
    for name in ("proxy", "logging", "asyncio"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not of ours')\n", encoding="utf-8")
    file = tmp_path / "proxy.toml"
    listener = {"workers": 2, "address": "127.0.0.1:0"}
    file.write_text(toml({"Server-A": "127.0.0.1:9"}, listener=listener, admin={"address": ""}), encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "proxy", "serve", "--config", str(file)),
        cwd=tmp_path,
        env=environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    ready = await process.stdout.readline()
    if ready:
        process.terminate()
    _, log = await process.communicate()
    assert ready.startswith(b"districhat ready on "), log.decode()
    assert process.returncode == 0
