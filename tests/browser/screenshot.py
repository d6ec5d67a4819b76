"""Takes the pictures of the dashboard for the documentation: `make screenshot`.

Three reference servers, a proxy, some load, one server drained and one killed: what the page is for is to be seen.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import grpc.aio
from districhat import chat_pb2

from tests.support.backend_server import backend_process, chat_stub
from tests.support.browser import browser
from tests.support.proxy_process import proxy_process, toml

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.browser import Browser

IDS = ("gpu-1", "gpu-2", "gpu-3", "gpu-4")
WEIGHTS = {"gpu-2": 1.5}
CHATS = 40
WIDTH = 1280
PHONE = 360


async def main(arguments: argparse.Namespace) -> None:
    """Start it all, look at it, end it all."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="districhat-screenshot-")))
        started = [await stack.enter_async_context(backend_process("--id", id_)) for id_ in IDS]
        addresses = {id_: address for id_, (_, address) in zip(IDS, started, strict=True)}
        health = {"interval": 0.5, "unhealthy_interval": 0.5}
        admin = {"address": "127.0.0.1:0"}
        config = toml(addresses, weights=WEIGHTS, admin=admin, health=health, decisions={"sample": 10})
        proxy = await stack.enter_async_context(proxy_process(directory, config))
        url = await proxy.admin_url()
        calling = asyncio.ensure_future(call(proxy.address))
        page = stack.enter_context(browser(directory / "profile"))
        page.resize(WIDTH, 900)
        chat = next(f"chat-{number:03d}" for number in range(CHATS) if proxy.owner(f"chat-{number:03d}") == "gpu-2")
        page.open(f"{url}/#key={chat}")
        await asyncio.sleep(arguments.seconds / 2)
        async with aiohttp.ClientSession(url) as admin:
            await admin.post("/api/endpoints/gpu-4/drain", json={"reason": "new driver"})
        started[1][0].kill()
        await asyncio.sleep(arguments.seconds / 2)
        await asyncio.to_thread(take, page, arguments.directory, arguments.all)
        calling.cancel()
        with suppress(asyncio.CancelledError):
            await calling


async def call(address: str) -> None:
    """Some chats that talk, more and less."""
    async with chat_stub(address) as stub:
        while True:
            chat = f"chat-{min(int(random.expovariate(0.08)), CHATS):03d}"
            request = chat_pb2.ChatRequest(chat_id=chat, message="hello", sender_id="somebody")
            with suppress(grpc.aio.AioRpcError):
                await stub.PostMessage(request, timeout=5)
            await asyncio.sleep(random.expovariate(60))


def take(page: Browser, directory: Path, every: bool) -> None:
    """The picture for the README; `every`: those to look at while working on the page, too."""
    sizes: Sequence[tuple[str, int, str]] = [("dashboard", WIDTH, "light")]
    if every:
        sizes = [*sizes, ("dark", WIDTH, "dark"), ("phone", PHONE, "light"), ("phone-dark", PHONE, "dark")]
    for name, width, scheme in sizes:
        page.prefer(scheme)
        page.resize(width, 900)
        time.sleep(0.5)
        page.resize(width, page.run("return document.body.scrollHeight"))
        time.sleep(0.5)
        page.screenshot(directory / f"{name}.png")
        print(f"wrote {directory / name}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path(__file__).parents[2] / "docs", help="where to")
    parser.add_argument("--seconds", type=float, default=60.0, help="of load before it (default: 60)")
    parser.add_argument("--all", action="store_true", help="also dark and at the width of a phone")
    asyncio.run(main(parser.parse_args()))
