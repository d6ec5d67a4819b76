"""Calls through TLS on both sides of `districhat serve`, with stock clients and servers, and how they end."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import h2.config
import h2.connection
import pytest
from h2.events import StreamEnded

from tests.support.grpc_server import channel, echo_servers, messages, server_of
from tests.support.messages import framed
from tests.support.polling import PATIENCE, eventually, settled
from tests.support.ports import free_port
from tests.support.proxy_process import addresses, proxy_process, toml
from tests.support.raw_http2 import OK, RESPONSE
from tests.support.secure_proxy import secure_channel, secure_proxy, served_by

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.grpc_server import Context, ReceivedCall
    from tests.support.tls import Authority, Certificate

UNARY = "/any.Service/Unary"
BIDI = "/any.Service/Bidi"


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
    async with echo_servers("A") as servers:
        listener = {"address": f"127.0.0.1:{free_port()}"}
        config = toml(addresses(*servers), **{"listener.tls": certificate.table}, listener=listener)
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
