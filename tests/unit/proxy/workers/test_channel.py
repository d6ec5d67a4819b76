"""Messages between a parent and a worker, over a real socket pair."""

from __future__ import annotations

import asyncio
import pickle
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from proxy.workers import channel as module
from proxy.workers.channel import Channel
from proxy.workers.messages import Elsewhere, Quarantined, Said
from tests.support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Channel, socket.socket, list[None]]]:
    """A channel, the bare other end, and a list that grows each time the other end has caught up."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    caught_up: list[None] = []
    channel = await Channel.open(ours, lambda: caught_up.append(None))
    with theirs:
        yield channel, theirs, caught_up
        channel.close()
        await asyncio.sleep(0)


async def test_messages_arrive_in_order_and_then_the_end() -> None:
    ours, theirs = socket.socketpair()
    for each in (ours, theirs):
        each.setblocking(False)
    one, other = await Channel.open(ours), await Channel.open(theirs)
    sent = [Said("A", {"health": "timed out"}), Quarantined(b"\xff", 1.5), Elsewhere({"A": 3}, 3)]
    for message in sent:
        one.send(message)
    one.close()
    assert [await other.receive() for _ in sent] == sent
    assert await other.receive() is None
    other.send(sent[0])  # to nobody: nothing happens
    other.close()


async def test_a_message_may_arrive_byte_by_byte() -> None:
    async with pair() as (channel, theirs, _):
        message = Elsewhere({f"server-{number}": number for number in range(50)}, 7)
        data = pickle.dumps(message)
        for byte in len(data).to_bytes(4, "big") + data:
            await asyncio.get_running_loop().sock_sendall(theirs, bytes([byte]))
            await asyncio.sleep(0)
        assert await channel.receive() == message


async def test_to_a_slow_reader_only_what_must_arrive_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BACKLOG", 1000)
    async with pair() as (channel, theirs, caught_up):
        bulk = Elsewhere({str(number): number for number in range(100_000)}, 0)
        channel.send(bulk)
        channel.send(Quarantined(b"dropped", 0.0))
        assert channel.dropped == 1
        assert not caught_up
        channel.send(Quarantined(b"must", 0.0), must=True)
        read = asyncio.ensure_future(_read(theirs, until=b"must"))
        await eventually(lambda: caught_up, "its catching up")
        assert b"dropped" not in await read
        channel.send(Quarantined(b"again", 0.0))
        assert b"again" in await _read(theirs, until=b"again")


async def _read(end: socket.socket, until: bytes) -> bytes:
    data = b""
    while until not in data:
        data += await asyncio.get_running_loop().sock_recv(end, 65_536)
    return data
