"""h2spec against our listener. It wants `GET /` and `POST /` answered with 200 and a body; nghttpd behind us does.

Every request so takes the production path: listener, engine, call, pool, and back.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from tests.conformance.disputed import SERVER, answers, differences, digest, request
from tests.conformance.peers import ask_server
from tests.conformance.proxies import quiet, running
from tests.conformance.table import Row
from tests.conformance.tools import go_tool
from tests.support.frames import EMPTY_SETTINGS, END_HEADERS, END_STREAM, HEADERS, PREFACE, frame, literal_named
from tests.support.polling import PATIENCE, eventually
from tests.support.ports import free_port
from tests.support.tools import need

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

VERSION = "2.2.1"
"""The newest that can be had as a Go module: of the later releases none is served."""
CASES = 146
LATEST = "2.6.0"
"""Has one case more, `hpack/2.3.3/2`; all others have the same names, but for one letter and for `hpack/2.3.3/1`."""
DIFFERENCES = differences(SERVER)


@asynccontextmanager
async def static_server(directory: Path) -> AsyncIterator[str]:
    """nghttpd with one page; its address."""
    (directory / "index.html").write_text("hello\n", encoding="utf-8")
    port = free_port()
    program = need("nghttpd", "nghttp2-server")
    process = await asyncio.create_subprocess_exec(program, "--no-tls", "-d", str(directory), str(port))

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        await eventually(answers, "nghttpd listening")
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        await process.wait()


def failures(report: Path) -> tuple[int, dict[str, str]]:
    """From h2spec's JUnit report: how many cases there are, and those that failed, with what was seen."""
    failed = {}
    total = 0
    for suite in ET.parse(report).getroot():
        for number, case in enumerate(suite.iter("testcase"), 1):
            total += 1
            trouble = next((each for each in case if each.tag in ("failure", "error", "skipped")), None)
            if trouble is not None:
                name = f"{case.get('package')}/{number}"
                failed[name] = f"{case.get('classname')}: {''.join(trouble.itertext())}"
    return total, failed


@pytest.mark.slow
async def test_every_case_passes_but_those_explained(tmp_path: Path, record: Callable[[Row], None]):
    h2spec = go_tool("h2spec")
    report = tmp_path / "report.xml"
    pages = tmp_path / "pages"
    pages.mkdir()
    async with (
        static_server(pages) as address,
        running(quiet({"nghttpd": address}), any_http=True) as (_, port),
    ):
        command = (h2spec, "--strict", "--port", str(port), "--junit-report", str(report))
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL, stderr=sys.stderr)
        await process.wait()
    total, failed = failures(report)
    unexplained = {name: what for name, what in failed.items() if name not in DIFFERENCES}
    assert not unexplained
    assert failed.keys() == DIFFERENCES.keys(), "a difference that is explained has gone"
    assert total == CASES
    record(Row("h2spec, strict", VERSION, total, tuple(DIFFERENCES.items())))


async def test_hpack_2_3_3_2_a_literal_whose_name_has_an_index_beyond_both_tables(
    tmp_path: Path, record: Callable[[Row], None]
):
    """The case that 2.6.0 has and 2.2.1 has not, written anew: as there, the static table's end is exceeded by 9."""
    fields = request()[9:] + literal_named(70)
    said = frame(HEADERS, END_HEADERS | END_STREAM, 1, fields)
    async with static_server(tmp_path) as address, running(quiet({"nghttpd": address}), any_http=True) as (_, port):
        assert await ask_server(port, PREFACE + EMPTY_SETTINGS + said, quiet=PATIENCE) == "GOAWAY COMPRESSION_ERROR"
    record(Row("h2spec, the case that is new", f"ours, after {LATEST}", 1))


async def test_what_is_disputed_is_answered_as_it_is_said(tmp_path: Path):
    async with static_server(tmp_path) as address, running(quiet({"nghttpd": address}), any_http=True) as (_, port):
        asking = [ask_server(port, PREFACE + EMPTY_SETTINGS + each.says, each.then, 3.0) for each in SERVER.values()]
        verdicts = dict(zip(SERVER, await asyncio.gather(*asking), strict=True))
    assert verdicts == {name: dispute.ours for name, dispute in SERVER.items()}


def test_the_peers_were_asked_about_the_same_bytes():
    assert answers()[""] == {"of": digest()}, "make conformance-peers"
