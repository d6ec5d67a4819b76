"""A proxy that speaks TLS, and stock clients of it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from tests.support.grpc_server import CLIENT_OPTIONS, EchoServer, server_of
from tests.support.proxy_process import ProxyProcess, Table, addresses, proxy_process, toml

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.tls import Certificate

UNARY = "/any.Service/Unary"


@asynccontextmanager
async def secure_channel(
    address: str, credentials: grpc.ChannelCredentials, *options: tuple[str, Any]
) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.secure_channel(address, credentials, options=(*CLIENT_OPTIONS, *options)) as opened:
        yield opened


@asynccontextmanager
async def secure_proxy(
    directory: Path,
    certificate: Certificate,
    *servers: EchoServer,
    upstream: Table | None = None,
    endpoint_keys: dict[str, Table] | None = None,
    tables: dict[str, Table] | None = None,
    **listener: Any,
) -> AsyncIterator[ProxyProcess]:
    """A proxy whose clients speak TLS. `upstream`: so do its servers."""
    every: dict[str, Table] = {"listener.tls": {**certificate.table, **listener}, **(tables or {})}
    if upstream is not None:
        every["upstream.tls"] = upstream
    config = toml(addresses(*servers), endpoint_keys=endpoint_keys, **every)
    async with proxy_process(directory, config) as proxy:
        yield proxy


async def served_by(proxy: ProxyProcess, credentials: grpc.ChannelCredentials, key: str = "chat") -> str:
    """Who serves a call for `key`. Raises AioRpcError."""
    async with secure_channel(proxy.address, credentials) as client:
        call = client.unary_unary(UNARY)(b"body", metadata=(("x-chat-id", key),))
        assert await call == b"body"
        return await server_of(call)
