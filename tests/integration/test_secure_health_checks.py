"""Active health checks over TLS and over unix sockets: every kind, against real servers, and by `districhat serve`."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from districhat import chat_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from proxy.cluster.address import Address
from proxy.cluster.endpoint import Endpoint
from proxy.transport.settings import UpstreamTlsSettings
from proxy.transport.tls import ClientTls
from tests.support.grpc_server import channel, echo_servers, server_of
from tests.support.health_checks import OFTEN, at, becomes, checked
from tests.support.polling import eventually
from tests.support.proxy_process import Table, addresses, proxy_process, toml
from tests.support.tls import Authority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

KINDS = ["auto", "grpc", "grpc_watch", "chat", "tcp"]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Chat(grpc.GenericRpcHandler):
    """The original system's way to be asked."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        if handler_call_details.method != "/chat.ChatService/HealthCheck":
            return None
        return grpc.unary_unary_rpc_method_handler(self._answer)

    async def _answer(self, _request: bytes, _context: object) -> bytes:
        return chat_pb2.HealthResponse(healthy=True).SerializeToString()


@asynccontextmanager
async def stock(
    address: str, credentials: grpc.ServerCredentials | None = None
) -> AsyncIterator[tuple[int, health.aio.HealthServicer]]:
    """A server with grpcio-health-checking's servicer and the chat service's own; its port, and the servicer."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_generic_rpc_handlers((Chat(),))
    secure = credentials is not None
    port = server.add_secure_port(address, credentials) if secure else server.add_insecure_port(address)
    await server.start()
    try:
        yield port, servicer
    finally:
        await server.stop(None)


def client_tls(ca: Authority, **settings: Any) -> ClientTls:
    return ClientTls(UpstreamTlsSettings.model_validate({"ca": ca.file, **settings}))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_server_is_checked_over_tls_with_certificates_on_both_sides(ca: Authority, kind: str) -> None:
    certificate, own = ca.issue("127.0.0.1"), ca.issue("proxy.test", file="proxy")
    async with stock("127.0.0.1:0", certificate.server_credentials(ca)) as (port, servicer):
        await servicer.set("", SERVING)
        async with checked(at(port), client_tls(ca, **own.table), kind=kind) as endpoint:
            assert endpoint.available, endpoint.reason
            if kind in ("auto", "grpc", "grpc_watch"):
                await servicer.set("", NOT_SERVING)
                await becomes(endpoint, available=False)
                assert endpoint.reason == "says NOT_SERVING"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_server_that_is_not_who_it_should_be_is_not_healthy(ca: Authority, kind: str, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "other").issue("127.0.0.1", file="stranger")
    async with (
        stock("127.0.0.1:0", stranger.server_credentials()) as (port, _),
        checked(at(port), client_tls(ca), kind=kind) as endpoint,
    ):
        assert endpoint.reason.startswith("health check failed: ")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_cleartext_server_is_not_healthy_where_tls_is_expected(ca: Authority, kind: str) -> None:
    async with stock("127.0.0.1:0") as (port, _), checked(at(port), client_tls(ca), kind=kind) as endpoint:
        assert endpoint.reason.startswith("health check failed: ")
        assert endpoint.reason.lower().replace("_", " ").endswith("wrong version number")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("names", "settings", "of_its_own", "well"),
    [
        (["gpu.test"], {}, None, False),
        (["gpu.test"], {"server_name": "gpu.test"}, None, True),
        (["gpu.test"], {"server_name": "other.test"}, "gpu.test", True),
        (["spiffe://test/chat"], {"allowed_servers": ["spiffe://test/chat"]}, None, True),
        (["spiffe://test/chat", "gpu.test"], {"allowed_servers": ["spiffe://test/chat"]}, None, True),
        (["spiffe://test/other", "127.0.0.1.test"], {"allowed_servers": ["spiffe://test/chat"]}, None, False),
    ],
)
async def test_it_is_known_by_the_name_or_the_identity_that_calls_know_it_by(
    ca: Authority, kind: str, names: list[str], settings: Table, of_its_own: str | None, *, well: bool
) -> None:
    certificate = ca.issue(*names)
    async with (
        stock("127.0.0.1:0", certificate.server_credentials()) as (port, _),
        checked(at(port, server_name=of_its_own), client_tls(ca, **settings), kind=kind) as endpoint,
    ):
        assert endpoint.available == well, endpoint.reason


async def test_the_server_is_told_the_name_that_is_expected_of_it(ca: Authority) -> None:
    """SNI: a server with many certificates has to know which to show."""
    told: set[str | None] = set()
    certificate = ca.issue("gpu.test")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    context.sni_callback = lambda _socket, name, _context: told.add(name)
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        for kind in ("tcp", "grpc"):
            async with checked(at(port, server_name="gpu.test"), client_tls(ca), kind=kind):
                assert told == {"gpu.test"}
            told.clear()


# Not `tcp`, which is over before the server has seen our certificate (TLS 1.3).
@pytest.mark.parametrize("kind", ["auto", "grpc", "grpc_watch", "chat"])
async def test_a_renewed_certificate_is_used_from_the_next_check_on(ca: Authority, kind: str, tmp_path: Path) -> None:
    certificate, own = ca.issue("127.0.0.1"), ca.issue("proxy.test", file="proxy")
    tls = client_tls(ca, **own.table)
    async with (
        stock("127.0.0.1:0", certificate.server_credentials(ca)) as (port, _),
        checked(at(port), tls, kind=kind, unhealthy_threshold=1) as endpoint,
    ):
        assert endpoint.available
        Authority(tmp_path, "other").again(own, "proxy.test")  # of a CA that the server does not know
        assert tls.renew()
        await becomes(endpoint, available=False)
        ca.again(own, "proxy.test")
        assert tls.renew()
        await becomes(endpoint, available=True)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_server_is_checked_over_a_unix_socket(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "server.sock"
    endpoint = Endpoint("Server-A", Address.parse(f"unix:{path}"))
    async with stock(f"unix:{path}") as (_, servicer), checked(endpoint, kind=kind):
        assert endpoint.available, endpoint.reason
        if kind in ("auto", "grpc", "grpc_watch"):
            await servicer.set("", NOT_SERVING)
            await becomes(endpoint, available=False)
    async with checked(Endpoint("Server-B", Address.parse(f"unix:{tmp_path}/none")), kind=kind) as nobody:
        assert not nobody.available


async def test_a_server_is_checked_over_tls_on_a_unix_socket(ca: Authority, tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    endpoint = Endpoint("Server-A", Address.parse(f"unix:{path}"), server_name="gpu.test")
    credentials = ca.issue("gpu.test").server_credentials()
    for kind in KINDS:
        async with stock(f"unix:{path}", credentials), checked(endpoint, client_tls(ca), kind=kind):
            assert endpoint.available, endpoint.reason


async def test_the_proxy_checks_as_it_connects_unless_it_is_told_otherwise(ca: Authority, tmp_path: Path) -> None:
    """Server-B says its health in cleartext elsewhere, as sidecars do."""
    certificate = ca.issue("127.0.0.1")
    async with (
        echo_servers("Server-A", "Server-B", credentials=certificate.server_credentials()) as servers,
        stock("127.0.0.1:0") as (port, servicer),
    ):
        for server in servers:
            server.scripts["/grpc.health.v1.Health/Check"] = _says(SERVING)
        config = toml(
            addresses(*servers),
            endpoint_keys={"Server-B": {"check_address": f"127.0.0.1:{port}", "check_tls": False}},
            health={**OFTEN, "kind": "grpc"},
            **{"upstream.tls": {"ca": str(ca.file)}},
        )
        async with proxy_process(tmp_path, config) as proxy, channel(proxy.address) as client:

            async def served(key: str) -> str:
                call = client.unary_unary("/any.Service/Unary")(b"", metadata=(("x-chat-id", key),))
                await call
                return await server_of(call)

            keys = {name: proxy.key_of(name) for name in ("Server-A", "Server-B")}
            assert {name: await served(key) for name, key in keys.items()} == {name: name for name in keys}
            await servicer.set("", NOT_SERVING)
            await eventually(lambda: "is unhealthy: says NOT_SERVING" in proxy.log(), "the news of Server-B")
            assert await served(keys["Server-B"]) == "Server-A"


def _says(status: int) -> Callable[..., Any]:
    async def script(_call: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        await context.read()
        await context.write(health_pb2.HealthCheckResponse(status=status).SerializeToString())

    return script
