"""A client of a running proxy's admin server: its API, and its metrics."""

from __future__ import annotations

from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from prometheus_client.samples import Sample

    from tests.support.proxy_process import ProxyProcess


@asynccontextmanager
async def admin_of(proxy: ProxyProcess, **headers: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of its admin server, which must be switched on. `headers`: of every request."""
    async with aiohttp.ClientSession(await proxy.admin_url(), headers=headers) as session:
        yield session


async def get(admin: aiohttp.ClientSession, path: str) -> Any:
    async with admin.get(path) as response:
        assert response.status == HTTPStatus.OK, await response.text()
        return await response.json()


async def samples(admin: aiohttp.ClientSession) -> list[Sample]:
    """All that Prometheus would be told now."""
    async with admin.get("/metrics") as response:
        families = text_string_to_metric_families(await response.text())
    return [sample for family in families for sample in family.samples]


async def metric(admin: aiohttp.ClientSession, name: str, **labels: str) -> float:
    """The sum of the samples of that name, `districhat_` and all, with at least these labels."""
    return sum(
        each.value for each in await samples(admin) if each.name == name and labels.items() <= each.labels.items()
    )
