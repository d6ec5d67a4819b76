"""What the health checks, the outlier detection and the limits are for, seen from outside."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING

import grpc
import pytest

from tests.support.bad_server import BadCall, bad_server
from tests.support.fault import CHATS, came_home, config, failed, one_call
from tests.support.ledger_cluster import IDS, ledger_cluster
from tests.support.ledger_load import Absence, Load, violations
from tests.support.polling import eventually
from tests.support.proxy_process import ProxyProcess, Table, proxy_process

if TYPE_CHECKING:
    from pathlib import Path

CHECKS: Table = {
    "kind": "grpc_watch",
    "interval": 0.3,
    "unhealthy_interval": 0.2,
    "timeout": 0.3,
    "unhealthy_threshold": 2,
    "healthy_threshold": 1,
}
DETECTED = 2 * (0.3 + 0.3)
"""Seconds in which a hang is found out: `unhealthy_threshold` x (`interval` + `timeout`)."""
GENEROUSLY = 5.0
"""Seconds on top of it for a slow machine."""


@pytest.mark.parametrize("mode", ["immediate", "idle", "never"])
async def test_a_hang_is_found_out_in_time_and_failback_says_when_its_chats_come_home(
    tmp_path: Path, mode: str
) -> None:
    failback: Table = {"mode": mode, "idle_time": 1.0}
    async with ledger_cluster(tmp_path) as cluster:
        text = config(cluster.addresses(), health=CHECKS, failback=failback)
        async with proxy_process(tmp_path, text) as proxy:
            chat = next(chat for chat in CHATS if proxy.owner(chat) == "Server-B")
            began = time.monotonic()
            async with Load(proxy.address, CHATS, workers=8) as hanging:
                await hanging.made(100)
                cluster["Server-B"].signal(signal.SIGSTOP)
                stopped = time.monotonic()
                await eventually(lambda: "Server-B" in unhealthy(proxy), "the hang's being found out")
                assert time.monotonic() - stopped < DETECTED + GENEROUSLY
                async with Load(proxy.address, CHATS, workers=4) as load:
                    await load.made(100)
                    records = await load.stop()
                displaced = (await one_call(proxy.address, chat)).servers
                assert displaced == [proxy.walk(chat)[1]]
                cluster["Server-B"].signal(signal.SIGCONT)
                await eventually(lambda: "is healthy again" in proxy.log(), "its being well again")
                if mode == "immediate":
                    await came_home(hanging, proxy.owner, "Server-B")
                    assert (await one_call(proxy.address, chat)).servers == ["Server-B"]
                else:  # a chat in use stays where it is
                    assert (await one_call(proxy.address, chat)).servers == displaced
                records += await hanging.stop()
            if mode == "idle":
                await home_after_a_rest(proxy, chat)
            assert [record.details for record in failed(records)] == []
            absent = [Absence("Server-B", "hung", began, float("inf"))]
            assert violations(records, cluster.ledger(), proxy.walk, absent) == []


def unhealthy(proxy: ProxyProcess) -> str:
    return "".join(line for line in proxy.log().splitlines() if "is unhealthy" in line)


async def home_after_a_rest(proxy: ProxyProcess, chat: str) -> None:
    """With more than the idle time between two calls, the chat is home after the first or, on a slow machine, soon."""
    for _ in range(20):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.2):
                await asyncio.Event().wait()
        if (await one_call(proxy.address, chat)).servers == ["Server-B"]:
            return
    pytest.fail("an idle chat comes home")


async def test_a_ping_that_nobody_answers_ends_the_calls_of_a_hanging_server(tmp_path: Path) -> None:
    upstream: Table = {"keepalive_interval": 1.0, "keepalive_timeout": 0.5, "connect_timeout": 0.5}
    async with (
        ledger_cluster(tmp_path, options=("--delay", "0.5")) as cluster,
        proxy_process(tmp_path, config(cluster.addresses(), upstream=upstream)) as proxy,
    ):
        began = time.monotonic()
        chats = [chat for chat in CHATS if proxy.owner(chat) == "Server-B"]
        async with Load(proxy.address, chats, workers=2) as load:
            await eventually(lambda: len(load.records) == 2, "two calls under way")
            cluster["Server-B"].signal(signal.SIGSTOP)
            await load.made(8, 30.0)  # their deadline is 60 s away
            records = await load.stop()
        absent = [Absence("Server-B", "hung", began, float("inf"))]
        assert violations(records, cluster.ledger(), proxy.walk, absent) == []
        assert {record.kind for record in failed(records)} <= {"once"}


async def test_a_drained_server_gets_no_new_calls_and_loses_none(tmp_path: Path) -> None:
    async with (
        ledger_cluster(tmp_path) as cluster,
        proxy_process(tmp_path, config(cluster.addresses(), health=CHECKS)) as proxy,
    ):
        began = time.monotonic()
        async with Load(proxy.address, CHATS, kinds=("once", "stream", "bidi"), workers=12, delay_ms=5) as load:
            await load.made(100)
            cluster["Server-B"].signal(signal.SIGTERM)
            assert await cluster["Server-B"].ended() == 0
            await load.made(200)
            records = await load.stop()
        assert [record.details for record in failed(records)] == []
        absent = [Absence("Server-B", "drained", began, float("inf"))]
        assert violations(records, cluster.ledger(), proxy.walk, absent) == []


async def test_a_poisonous_chat_takes_two_servers_at_most(tmp_path: Path) -> None:
    """On a route with an idempotency key it walks on; then it is in quarantine."""
    ids = (*IDS, "Server-D")
    async with ledger_cluster(tmp_path, *ids, options=("--poison", "poison")) as cluster:
        text = config(cluster.addresses(), outlier={"quarantine_time": 60.0}, retry={"max_attempts": 5})
        async with proxy_process(tmp_path, text) as proxy:
            for _ in range(5):
                record = await one_call(proxy.address, "poison", "keyed")
                assert record.statuses == [grpc.StatusCode.UNAVAILABLE], record
            order = proxy.walk("poison")
            for id_ in order[:2]:
                assert await cluster[id_].ended() == -signal.SIGKILL
            assert all(cluster[id_].running for id_ in order[2:])
            for chat in CHATS[:10]:
                assert (await one_call(proxy.address, chat)).ok


async def fail_all(call: BadCall) -> None:
    await call.complete.wait()
    call.reset(2)


async def test_a_server_that_fails_everything_is_ejected_for_its_time_and_comes_back(tmp_path: Path) -> None:
    outlier: Table = {"consecutive_failures": 5, "base_ejection_time": 1.0, "max_ejection_time": 1.0}
    async with bad_server("Server-B", fail_all) as sick, ledger_cluster(tmp_path, "Server-A", "Server-C") as cluster:
        text = config({**cluster.addresses(), "Server-B": sick.address}, outlier=outlier)
        async with proxy_process(tmp_path, text) as proxy:
            mine = [chat for chat in CHATS if proxy.owner(chat) == "Server-B"]
            first = [await one_call(proxy.address, chat) for chat in mine[:5]]
            assert [record.ok for record in first] == [False] * 5
            moved = await one_call(proxy.address, mine[0])
            assert moved.servers == [proxy.walk(mine[0])[1]]
            sick.script = answer_well
            for _ in range(500):
                if (await one_call(proxy.address, mine[1])).servers == ["Server-B"]:
                    return
            pytest.fail("the ejection ends")


async def answer_well(call: BadCall) -> None:
    await call.complete.wait()
    call.answer(call.server.id.encode())


async def test_calls_beyond_a_servers_limit_are_refused_at_once_and_move_no_chat(tmp_path: Path) -> None:
    async with ledger_cluster(tmp_path, options=("--delay", "0.5")) as cluster:
        text = config(cluster.addresses(), limits={"max_calls_per_endpoint": 4})
        async with proxy_process(tmp_path, text) as proxy:
            chat = proxy.key_of("Server-B")
            async with Load(proxy.address, [chat], workers=12) as load:
                await eventually(lambda: load.ended >= 12, "the first answers")
                records = await load.stop()
            refused = failed(records)
            assert refused
            assert {record.statuses[0] for record in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
            ledger = cluster.ledger()
            assert all(not ledger.executions(record.call, record.kind) for record in refused)
            assert violations(records, ledger, proxy.walk) == []
