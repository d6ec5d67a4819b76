"""h2specd against our connections to servers: each of its cases is a server on a port of its own that breaks a rule.

h2specd runs a command per case. That command tells this test the port, and the test starts a proxy with that port as
its only endpoint, and sends it a call.
"""

from __future__ import annotations

import asyncio
import re
import sys
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import pytest

from proxy.transport.reactor import AsyncioReactor
from tests.conformance import proxies
from tests.conformance.disputed import CLIENT, differences
from tests.conformance.memory import replay_server
from tests.conformance.table import Row
from tests.conformance.tools import go_tool
from tests.support.messages import framed
from tests.support.raw_http2 import raw_client

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from proxy.cluster.address import Address
    from proxy.transport.reactor import Handle
    from proxy.transport.tls import Secured

VERSION = "2.2.1"
CASES = 57
FIRST_PORT = 31_000
"""Below the ports that the kernel gives out, so that all of them are free."""
PATIENCE = 1.5
"""Seconds for a call of which the server may make anything; h2specd gives a case 3."""

DIFFERENCES = differences(CLIENT)


class OneConnection(AsyncioReactor):
    """Connects once. A pool connects again when a server breaks its connection, and h2specd would take that for another
    run of its case.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._connected = False

    def connect(
        self,
        address: Address,
        protocol: asyncio.Protocol,
        on_failure: Callable[[str], None],
        secured: Secured | None = None,
    ) -> Handle:
        """See `Reactor.connect`."""
        if self._connected:
            return asyncio.get_running_loop().call_soon(on_failure, "one connection a case")
        self._connected = True
        return super().connect(address, protocol, on_failure, secured)


async def call_through_a_proxy(address: str) -> None:
    """One unary call to the server at `address`, and whatever becomes of it."""
    async with (
        proxies.running(proxies.quiet({"h2specd": address}), reactor=OneConnection) as (_, port),
        raw_client(port) as client,
    ):
        stream = client.request("/chat.ChatService/GetCacheStats")
        client.send(stream, framed(b""), end=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await client.over(stream)


async def serve_case(troubles: list[BaseException], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The other end of the command: gets the case's URL, and closes when the case has had its call."""
    try:
        url = (await reader.readline()).decode()
        match = re.fullmatch(r"http://(127\.0\.0\.1:\d+)/\s*", url)
        assert match is not None, url
        await call_through_a_proxy(match[1])
    except Exception as error:
        troubles.append(error)
    finally:
        writer.close()
        await writer.wait_closed()


def outcomes(text: str) -> dict[str, bool]:
    """Case -> whether it passed, from h2specd's report."""
    found: dict[str, bool] = {}
    section = ""
    for line in text.partition("Failures:")[0].replace("\r", "\n").splitlines():
        if heading := re.match(r"\s*(\d+(?:\.\d+)*)\. ", line):
            section = heading[1]
        elif case := re.search("([\u2714\u00d7]) (\\d+): ", line):
            found[f"client/{section}/{case[2]}"] = case[1] == "\u2714"
    return found


@pytest.mark.slow
async def test_every_case_passes_but_those_explained(tmp_path: Path, record: Callable[[Row], None]):
    h2specd = go_tool("h2specd")
    troubles: list[BaseException] = []
    server = await asyncio.start_server(partial(serve_case, troubles), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    command = tmp_path / "case.sh"
    command.write_text(f'#!/bin/bash\nexec 3<>/dev/tcp/127.0.0.1/{port}\necho "$1" >&3\ncat <&3\n', encoding="utf-8")
    command.chmod(0o755)
    arguments = ("--exec", str(command), "--from-port", str(FIRST_PORT), "--timeout", "1")
    process = await asyncio.create_subprocess_exec(
        h2specd, *arguments, stdout=asyncio.subprocess.PIPE, stderr=sys.stderr
    )
    output, _ = await process.communicate()
    server.close()
    await server.wait_closed()
    assert not troubles
    results = outcomes(output.decode())
    assert len(results) == CASES, output.decode()
    failed = {name for name, passed in results.items() if not passed}
    assert failed == DIFFERENCES.keys(), output.decode()
    record(Row("h2specd", VERSION, len(results), tuple(DIFFERENCES.items())))


@pytest.mark.parametrize("name", CLIENT)
def test_what_is_disputed_is_answered_as_it_is_said(name: str):
    assert replay_server(CLIENT[name].says) == CLIENT[name].ours
