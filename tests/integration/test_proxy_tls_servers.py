"""Servers over TLS: which of them get calls."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest

from tests.support.grpc_server import EchoServer, echo_servers
from tests.support.proxy_process import Table, addresses, toml
from tests.support.secure_proxy import secure_proxy, served_by
from tests.support.tls import Authority, Certificate

if TYPE_CHECKING:
    from pathlib import Path


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
        assert "reloaded: " in await proxy.reload(config)
        assert await served_by(proxy, certificate.client_credentials()) == "A"
