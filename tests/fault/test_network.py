"""Networks that lose, delay and swallow packets, between a proxy and servers in namespaces of their own."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.support.fault import CHATS, EVERY_KIND, SOON, came_home, config, failed, one_call
from tests.support.ledger_cluster import IDS, LedgerCluster
from tests.support.ledger_load import Absence, Load, Record, violations
from tests.support.netns import Network, TunLink, VethLink, gateway, network
from tests.support.polling import eventually
from tests.support.proxy_process import ProxyProcess, Table, proxy_process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

FOREVER = float("inf")


class Lab:
    """Servers, a proxy and the links between them; `address` is where clients come in."""

    def __init__(self, net: Network, cluster: LedgerCluster, proxy: ProxyProcess, address: str) -> None:
        self.net = net
        self.cluster = cluster
        self.proxy = proxy
        self.address = address

    def link(self, server_id: str) -> VethLink | TunLink:
        return self.net.links[server_id]


@asynccontextmanager
async def lab(directory: Path, *, tun: bool = False, cut: str = "", **tables: Table) -> AsyncIterator[Lab]:
    """`cut`: the server whose link is cut from the beginning."""
    async with AsyncExitStack() as stack:
        net = await stack.enter_async_context(network(*IDS, tun=tun))
        cluster = LedgerCluster(directory)
        stack.push_async_callback(cluster.close)
        for server_id in IDS:
            address = f"{net.links[server_id].address}:50051"
            cluster.add(server_id, address, launcher=net.far[server_id].launcher)
        await cluster.start()
        if cut:
            net.links[cut].cut()
        text = config(cluster.addresses(), **tables)
        proxy = await stack.enter_async_context(proxy_process(directory, text, launcher=net.near.launcher))
        address = await stack.enter_async_context(gateway(net.near, proxy.address))
        yield Lab(net, cluster, proxy, address)


def waiting_only_for(server_id: str, records: list[Record], proxy: ProxyProcess) -> bool:
    under_way = [record for record in records if not record.ended]
    return bool(under_way) and all(proxy.owner(record.chat) == server_id for record in under_way)


# Loss and delay.


@pytest.mark.parametrize("effect", ["delay", "loss", "both"])
async def test_a_bad_network_costs_time_and_no_call(tmp_path: Path, effect: str) -> None:
    async with lab(tmp_path, tun=True) as made:
        for server_id in IDS:
            link = made.link(server_id)
            assert isinstance(link, TunLink)
            link.delay = 0.03 if effect != "loss" else 0.0
            link.loss = 0.03 if effect != "delay" else 0.0
        async with Load(made.address, CHATS, kinds=EVERY_KIND, workers=16) as load:
            await load.made(300)
            records = await load.stop()
        assert [record.details for record in failed(records)] == []
        assert violations(records, made.cluster.ledger(), made.proxy.walk) == []


async def test_netem_loss_delay_and_reordering_cost_time_and_no_call(tmp_path: Path) -> None:
    async with lab(tmp_path) as made:
        for server_id in IDS:
            link = made.link(server_id)
            assert isinstance(link, VethLink)
            link.netem("delay", "20ms", "10ms", "loss", "2%", "reorder", "10%")
        async with Load(made.address, CHATS, kinds=EVERY_KIND, workers=16) as load:
            await load.made(300)
            records = await load.stop()
        assert [record.details for record in failed(records)] == []
        assert violations(records, made.cluster.ledger(), made.proxy.walk) == []


# Black hole.


async def test_a_server_behind_a_black_hole_is_passed_over_after_the_connect_timeout(tmp_path: Path) -> None:
    upstream: Table = {"connect_timeout": 0.5, "connect_backoff": 0.05, "max_connect_backoff": 0.2}
    async with lab(tmp_path, cut="Server-B", upstream=upstream) as made:
        async with Load(made.address, CHATS, kinds=EVERY_KIND, workers=8) as load:
            await load.made(200)
            records = await load.stop()
        assert [record.details for record in failed(records)] == []
        absent = [Absence("Server-B", "black hole", 0.0, FOREVER)]
        assert violations(records, made.cluster.ledger(), made.proxy.walk, absent) == []
        made.link("Server-B").mend()
        chat = made.proxy.key_of("Server-B")
        for _ in range(500):
            if (await one_call(made.address, chat)).servers == ["Server-B"]:
                return
        pytest.fail("the chats of a server that can be reached again come home")


# Partition.


async def test_a_short_partition_that_nobody_detects_delays_calls_and_loses_none(tmp_path: Path) -> None:
    async with lab(tmp_path) as made:
        async with Load(made.address, CHATS, kinds=EVERY_KIND, workers=12) as load:
            await load.made(100)
            made.link("Server-B").cut()
            await eventually(lambda: waiting_only_for("Server-B", load.records, made.proxy), "calls that wait")
            made.link("Server-B").mend()
            await load.made(100)
            records = await load.stop()
        assert [record.details for record in failed(records)] == []
        assert violations(records, made.cluster.ledger(), made.proxy.walk) == []


async def test_connections_that_are_cut_cost_only_what_they_carried_and_move_no_chat_for_good(tmp_path: Path) -> None:
    async with lab(tmp_path) as made:
        absences = []
        async with Load(made.address, CHATS, kinds=EVERY_KIND, workers=12, delay_ms=2) as load:
            for server_id in IDS * 2:
                await load.made(60)
                before = time.monotonic()
                made.net.near.kill_connections(made.link(server_id).address)
                absences.append(Absence(server_id, "cut", before, time.monotonic() + 0.5))
            await load.made(60)
            records = await load.stop()
        assert violations(records, made.cluster.ledger(), made.proxy.walk, absences) == []
        for record in failed(records):
            assert record.kind != "keyed"
            assert any(
                absence.server == made.proxy.owner(record.chat) and absence.explains(record) for absence in absences
            )


async def test_a_partition_is_found_out_and_its_chats_are_served_elsewhere_until_it_heals(tmp_path: Path) -> None:
    health: Table = {"kind": "grpc_watch", "interval": 0.3, "unhealthy_interval": 0.2, "timeout": 0.3}
    async with lab(tmp_path, health={**health, "unhealthy_threshold": 2, "healthy_threshold": 1}) as made:
        began = time.monotonic()
        async with Load(made.address, CHATS, workers=8) as waiting:
            await waiting.made(100)
            made.link("Server-B").cut()
            await eventually(lambda: "is unhealthy" in made.proxy.log(), "the partition's being found out")
            assert time.monotonic() - began < 15.0
            async with Load(made.address, CHATS, kinds=EVERY_KIND, workers=8) as load:
                await load.made(200)
                records = await load.stop()
            made.link("Server-B").mend()
            await came_home(waiting, made.proxy.owner, "Server-B")
            records += await waiting.stop()
        assert [record.details for record in failed(records)] == []
        absent = [Absence("Server-B", "partition", began, FOREVER)]
        assert violations(records, made.cluster.ledger(), made.proxy.walk, absent) == []


# Half-open TCP: one side is gone, the other does not know.


async def test_a_server_that_was_reset_behind_a_partition_loses_only_calls_that_it_had(tmp_path: Path) -> None:
    """Its host restarts without a word; the proxy learns it from the first answer, a RST."""
    async with lab(tmp_path) as made:
        server = made.cluster["Server-B"]
        async with Load(made.address, CHATS, workers=12, delay_ms=2) as load:
            await load.made(100)
            before = time.monotonic()
            made.link("Server-B").cut()
            await eventually(lambda: waiting_only_for("Server-B", load.records, made.proxy), "calls that wait")
            await server.kill()
            await server.start()
            made.link("Server-B").mend()
            mended = time.monotonic()
            await load.made(200)
            records = await load.stop()
        absent = [Absence("Server-B", "reset behind a partition", before, time.monotonic())]
        assert violations(records, made.cluster.ledger(), made.proxy.walk, absent) == []
        for record in failed(records):
            assert record.kind == "once"
            assert made.proxy.owner(record.chat) == "Server-B"
            assert record.started <= mended


async def test_a_dead_peer_shows_by_bytes_that_nobody_acknowledges(tmp_path: Path) -> None:
    """TCP_USER_TIMEOUT: without it, the kernel tries for a quarter of an hour."""
    upstream: Table = {**SOON, "connect_timeout": 0.5, "tcp_user_timeout": 1.0}
    async with lab(tmp_path, upstream=upstream) as made:
        began = time.monotonic()
        async with Load(made.address, CHATS, workers=8) as load:
            await load.made(100)
            made.link("Server-B").cut()
            await eventually(lambda: waiting_only_for("Server-B", load.records, made.proxy), "calls that wait")
            await load.made(100, 30.0)  # their deadline is 60 s away
            records = await load.stop()
        absent = [Absence("Server-B", "cut off", began, FOREVER)]
        assert violations(records, made.cluster.ledger(), made.proxy.walk, absent) == []
        for record in failed(records):
            assert record.kind == "once"
            assert made.proxy.owner(record.chat) == "Server-B"
            assert "may have run" in record.details
