"""An endpoint under active health checks, as the proxy makes them."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from proxy.cluster.address import Address
from proxy.cluster.endpoint import Endpoint
from proxy.control.health import HealthChecker
from proxy.control.settings import HealthSettings
from tests.support.polling import PATIENCE, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from proxy.transport.tls import ClientTls
    from tests.support.proxy_process import Table

OFTEN: Table = {"interval": 0.05, "unhealthy_interval": 0.05, "timeout": PATIENCE, "startup_timeout": PATIENCE}
"""A busy machine must not look like a server that hangs."""


def at(port: int, **options: Any) -> Endpoint:
    """An endpoint of this machine."""
    return Endpoint("Server-A", Address("127.0.0.1", port), **options)


@asynccontextmanager
async def checked(
    endpoint: Endpoint,
    tls: ClientTls | None = None,
    *,
    on_success: Callable[[Endpoint], object] | None = None,
    **settings: Any,
) -> AsyncIterator[Endpoint]:
    """The endpoint, after its first check. `settings`: of the checks, which come `OFTEN` if they do not say else."""
    secured = {endpoint.id: tls.of(endpoint)} if tls is not None else {}
    checks = HealthSettings.model_validate({**OFTEN, **settings})
    checker = HealthChecker([endpoint], checks, secured=secured, on_success=on_success)
    await checker.start()
    try:
        yield endpoint
    finally:
        await checker.stop()


async def becomes(endpoint: Endpoint, *, available: bool) -> None:
    """Wait for its checks to find that."""
    await eventually(lambda: endpoint.available is available, f"available={available}, not {endpoint.reason!r},")
