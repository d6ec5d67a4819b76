"""Servers that cannot be connected to, each in its own way: their calls go to the next on the ring, and none fails."""

from __future__ import annotations

import socket
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.support.bad_server import BadCall, bad_server
from tests.support.fault import CHATS, EVERY_KIND, SOON, config, failed, one_call
from tests.support.ledger_cluster import ledger_cluster
from tests.support.ledger_load import Absence, Load, violations
from tests.support.ports import closed_port
from tests.support.proxy_process import proxy_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.proxy_process import Table

IMPATIENT: Table = {**SOON, "connect_timeout": 0.4}


@contextmanager
def full_queue() -> Iterator[int]:
    """A port whose accept queue is full: the kernel drops what wants to connect, and nobody accepts."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port: int = listener.getsockname()[1]
        waiting = []
        try:
            for _ in range(8):
                one = socket.socket()
                one.setblocking(False)
                one.connect_ex(("127.0.0.1", port))
                waiting.append(one)
            yield port
        finally:
            for one in waiting:
                one.close()


@pytest.mark.parametrize("how", ["refuses", "full accept queue", "accepts and is mute"])
async def test_no_call_fails_for_a_server_that_cannot_be_connected_to(tmp_path: Path, how: str) -> None:
    async with AsyncExitStack() as stack:
        if how == "refuses":
            address = f"127.0.0.1:{stack.enter_context(closed_port())}"
        elif how == "full accept queue":
            address = f"127.0.0.1:{stack.enter_context(full_queue())}"
        else:
            address = (await stack.enter_async_context(bad_server("Server-B", mute=True))).address
        cluster = await stack.enter_async_context(ledger_cluster(tmp_path, "Server-A", "Server-C"))
        text = config({**cluster.addresses(), "Server-B": address}, upstream=IMPATIENT)
        proxy = await stack.enter_async_context(proxy_process(tmp_path, text))
        async with Load(proxy.address, CHATS, kinds=EVERY_KIND, workers=8) as load:
            await load.made(400)
            records = await load.stop()
        assert [record.details for record in failed(records)] == []
        absent = [Absence("Server-B", how, 0.0, float("inf"))]
        assert violations(records, cluster.ledger(), proxy.walk, absent) == []


async def test_a_server_that_finds_its_voice_gets_its_chats(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(ledger_cluster(tmp_path, "Server-A", "Server-B"))
        mute = await stack.enter_async_context(bad_server("Server-C", mute=True))
        proxy = await stack.enter_async_context(
            proxy_process(tmp_path, config({**cluster.addresses(), "Server-C": mute.address}, upstream=IMPATIENT))
        )
        chat = proxy.key_of("Server-C")
        assert (await one_call(proxy.address, chat)).servers == [proxy.walk(chat)[1]]
        mute.mute = False
        mute.script = serve
        for _ in range(500):
            if (await one_call(proxy.address, chat)).servers == ["Server-C"]:
                return
        pytest.fail("the chat comes home")


async def serve(call: BadCall) -> None:
    await call.complete.wait()
    call.answer(call.server.id.encode())
