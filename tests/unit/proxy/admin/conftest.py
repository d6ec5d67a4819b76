"""A client of the admin API of a proxy in memory: real HTTP, on a free port of loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from proxy.admin.ring_view import RingViews
from proxy.admin.server import application
from proxy.admin.settings import AdminSettings
from tests.support.world import World

Connect = Callable[..., Awaitable[TestClient[Any, Any]]]


@pytest.fixture
def world() -> World:
    return World(failback={"mode": "idle"}).echoing().start()


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """`await connect(world, **admin settings)`: a client of its own admin server."""
    async with AsyncExitStack() as stack:

        async def connect(world: World, **settings: object) -> TestClient[Any, Any]:
            app = application(world.whole.admin_port, AdminSettings.model_validate(settings), RingViews())
            return await stack.enter_async_context(TestClient(TestServer(app)))

        yield connect
