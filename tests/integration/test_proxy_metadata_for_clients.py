"""Clients that announce how much metadata they take: h2 by hand, and grpcio, whose default is 16 KiB."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import grpc.aio
import h2.events
import pytest

from tests.support.grpc_server import channel
from tests.support.messages import framed
from tests.support.proxy_process import ProxyProcess, proxy_process, toml
from tests.support.raw_http2 import OK, RESPONSE, RawConnection, raw_client, raw_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

MAX_HEADER_LIST_SIZE = 6
ROOMY = ("grpc.max_metadata_size", 60_000), ("grpc.absolute_max_metadata_size", 60_000)
PAD = [(b"x-pad", b"p" * 20_000)]
PADDED = ("/any.Service/Headers", "/any.Service/Trailers", "/any.Service/TrailersOnly")
"""Methods whose responses have more metadata than most clients take, and where."""
UNARY = "/any.Service/Unary"


def answer(connection: RawConnection, event: h2.events.Event) -> None:
    if not isinstance(event, h2.events.StreamEnded):
        return
    sid = event.stream_id
    where = connection.streams[sid].headers[b":path"].rpartition(b"/")[2]
    if where == b"TrailersOnly":
        connection.h2.send_headers(sid, [*RESPONSE, *OK, *PAD], end_stream=True)
        return
    connection.h2.send_headers(sid, RESPONSE + (PAD if where == b"Headers" else []))
    connection.h2.send_data(sid, framed(b"hello"))
    connection.h2.send_headers(sid, OK + (PAD if where == b"Trailers" else []), end_stream=True)


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[ProxyProcess]:
    async with (
        raw_server("A", answer) as server,
        proxy_process(tmp_path, toml({"A": server.address})) as running,
    ):
        yield running


@pytest.mark.parametrize("path", PADDED)
async def test_a_raw_clients_call_with_too_much_metadata_ends_alone(proxy: ProxyProcess, path: str) -> None:
    async with raw_client(proxy.port, settings={MAX_HEADER_LIST_SIZE: 8_192}) as client:
        going_on = client.request("/any.Service/Chat")
        refused = client.request(path)
        client.send(refused, framed(b"hello"), end=True)
        await client.until(lambda: client.streams[refused].ended, "the refusal")
        assert client.streams[refused].status == b"8"
        assert "bytes of metadata, and the client takes 8192 at most" in client.streams[refused].message
        assert b"x-pad" not in client.streams[refused].headers | client.streams[refused].trailers
        client.send(going_on, framed(b"still here"), end=True)
        await client.until(lambda: client.streams[going_on].ended, "the other call's end")
        assert client.streams[going_on].status == b"0"
        assert not client.goaways


@pytest.mark.parametrize("path", PADDED)
async def test_grpcio_is_told_what_its_limit_forbids(proxy: ProxyProcess, path: str) -> None:
    async with channel(proxy.address) as client:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.unary_unary(path)(b"hello")
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "the client takes 16384 at most" in (refused.value.details() or "")
        assert await client.unary_unary(UNARY)(b"and then") == b"hello"


@pytest.mark.parametrize("path", PADDED)
async def test_a_client_that_takes_more_gets_it(proxy: ProxyProcess, path: str) -> None:
    async with channel(proxy.address, *ROOMY) as client:
        call = client.unary_unary(path)(b"hello")
        found = dict(await call.initial_metadata()) | dict(await call.trailing_metadata())
        assert found["x-pad"] == "p" * 20_000
