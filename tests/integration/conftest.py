"""What many of these tests start from: three servers, certificates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.grpc_server import echo_servers
from tests.support.tls import Authority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.grpc_server import EchoServer
    from tests.support.tls import Certificate


@pytest.fixture
async def servers() -> AsyncIterator[tuple[EchoServer, ...]]:
    """They echo, each of any service."""
    async with echo_servers("Server-A", "Server-B", "Server-C") as three:
        yield three


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def certificate(ca: Authority) -> Certificate:
    """The proxy's own, and the servers'."""
    return ca.issue("127.0.0.1", "localhost", "proxy.test")


@pytest.fixture
def visitor(ca: Authority) -> Certificate:
    """A client's."""
    return ca.issue("visitor.test", file="visitor")
