"""The proxy under test, in this process: the production listener, engine, calls and pools on real sockets."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from proxy.forwarding.headers import RequestHead, RequestHeads
from proxy.forwarding.routes import Route
from proxy.forwarding.settings import KeySource, RouteSettings
from proxy.server import Proxy
from proxy.settings import Settings
from proxy.transport.reactor import AsyncioReactor
from tests.support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from proxy.forwarding.headers import Headers

ANY_ROUTE = Route(RouteSettings(method="*", key=KeySource(metadata="x-no-key")))
"""Routes by its headers alone: what has no message, as `GET /`, goes out at once."""


class AnyHttp(RequestHeads):
    """Passes on what is not gRPC too: conformance tools ask with `GET /` and expect 200."""

    __slots__ = ()

    def _parse(self, headers: Headers) -> RequestHead:
        return RequestHead(headers, ANY_ROUTE, dict(reversed(headers)), ())


def quiet(endpoints: Mapping[str, str], **tables: object) -> Settings:
    """Settings of a proxy that does nothing of its own accord: no health checks, no admin server, a free port."""
    given: dict[str, Any] = {
        "endpoints": [{"id": name, "address": address} for name, address in endpoints.items()],
        "listener": {"address": "127.0.0.1:0", "drain_grace": 1.0},
        "health": {"kind": "off"},
        "admin": {"address": ""},
        **tables,
    }
    return Settings.model_validate(given)


@asynccontextmanager
async def running(
    settings: Settings, *, any_http: bool = False, reactor: type[AsyncioReactor] = AsyncioReactor
) -> AsyncIterator[tuple[Proxy, int]]:
    """A proxy and its port. `any_http`: it forwards what is not gRPC instead of answering 415.

    At the end no call may be left in it, whatever its peers did.
    """
    proxy = Proxy(settings, reactor(asyncio.get_running_loop()))
    if any_http:
        proxy.data.forwarder.heads.__class__ = AnyHttp
    address = await proxy.start()
    try:
        yield proxy, address.port
        await eventually(lambda: not proxy.data.forwarder.active, "the end of all calls")
        assert not proxy.data.forwarder.kept
        assert not len(proxy.data.forwarder.deadlines)
        assert all(endpoint.active == 0 for endpoint in proxy.data.pools)
    finally:
        for connection in tuple(proxy.data.listener.connections):
            connection.abort()
        await proxy.stop()
