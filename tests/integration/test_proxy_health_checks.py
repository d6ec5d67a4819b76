"""Active health checks: against real servers of every kind, by the checker alone and by `districhat serve`."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from districhat import chat_pb2, chat_pb2_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from proxy.cluster.address import Address
from proxy.cluster.endpoint import Endpoint
from proxy.control.health import HealthChecker
from proxy.control.settings import HealthSettings
from tests.support.backend_server import backend_process
from tests.support.grpc_server import channel, echo_servers, server_of
from tests.support.health_checks import OFTEN, at, becomes, checked
from tests.support.polling import PATIENCE, eventually, settled
from tests.support.ports import closed_port
from tests.support.proxy_process import addresses, proxy_process, toml
from tests.support.raw_http2 import raw_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.grpc_server import Context, Script
    from tests.support.proxy_process import Table

CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
CHAT = "/chat.ChatService/HealthCheck"
UNARY = "/any.Service/Unary"

SERVING = health_pb2.HealthCheckResponse(status="SERVING").SerializeToString()
NOT_SERVING = health_pb2.HealthCheckResponse(status="NOT_SERVING").SerializeToString()
HEALTHY = chat_pb2.HealthResponse(healthy=True).SerializeToString()
UNHEALTHY = chat_pb2.HealthResponse(healthy=False).SerializeToString()

ONCE: Table = {**OFTEN, "interval": 3600.0}
"""While all is well only the first check and the watch can tell anything."""
WATCHED: Table = {**ONCE, "kind": "grpc_watch"}
SHORT: Table = {**OFTEN, "timeout": 0.2}
"""For servers that do hang."""


class ScriptedServer(grpc.GenericRpcHandler):
    """A grpc.aio server that has just the methods in `answers`, unary ones, and counts what it is asked."""

    def __init__(self, **answers: bytes | grpc.StatusCode | None) -> None:
        """By the names CHECK, WATCH and CHAT: the answer, or the status to end with, or None to hang."""
        self.answers = {{"CHECK": CHECK, "WATCH": WATCH, "CHAT": CHAT}[name]: value for name, value in answers.items()}
        self.asked: Counter[str] = Counter()
        self.requests: set[bytes] = set()
        self.port = 0
        self._server: grpc.aio.Server | None = None

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        method = handler_call_details.method
        self.asked[method] += 1
        return grpc.unary_unary_rpc_method_handler(self._handler(method)) if method in self.answers else None

    def _handler(self, method: str) -> Any:
        async def answer(request: bytes, context: Context) -> bytes:
            self.requests.add(request)
            value = self.answers[method]
            if value is None:
                await asyncio.Event().wait()
            if isinstance(value, grpc.StatusCode):
                await context.abort(value, "so it is")
            assert isinstance(value, bytes)
            return value

        return answer

    async def start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers((self,))
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.stop(None)


@asynccontextmanager
async def scripted(**answers: bytes | grpc.StatusCode | None) -> AsyncIterator[ScriptedServer]:
    server = ScriptedServer(**answers)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def stock(*services: str) -> AsyncIterator[tuple[grpc.aio.Server, health.aio.HealthServicer, int]]:
    """A server with grpcio-health-checking's servicer, SERVING as a whole and for these services; and its port."""
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    for service in services:
        await servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield server, servicer, port
    finally:
        await server.stop(None)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("auto", ONCE), ("grpc_watch", ONCE), ("auto", OFTEN), ("grpc_watch", OFTEN), ("grpc", OFTEN)],
)
async def test_a_server_that_says_not_serving_is_blocked_until_it_serves_again(kind: str, settings: Table) -> None:
    async with stock() as (_, servicer, port), checked(at(port), kind=kind, **settings) as endpoint:
        for _ in range(2):
            assert endpoint.available
            await servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
            await becomes(endpoint, available=False)
            assert endpoint.reason == "says NOT_SERVING"
            await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
            await becomes(endpoint, available=True)


@pytest.mark.parametrize("says_so", [True, False])
async def test_the_graceful_stop_of_a_stock_server_does_not_wait_for_our_watch(*, says_so: bool) -> None:
    async with stock() as (server, servicer, port), checked(at(port), **(ONCE if says_so else OFTEN)) as endpoint:
        if says_so:
            await servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        async with asyncio.timeout(PATIENCE):
            await server.stop(grace=3600)
        await becomes(endpoint, available=False)


async def test_the_health_of_one_service_is_not_that_of_the_server_as_a_whole() -> None:
    async with stock("chat.ChatService") as (_, servicer, port):
        async with checked(at(port), kind="grpc", service="chat.ChatService") as endpoint:
            await servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
            assert endpoint.available
            await servicer.set("chat.ChatService", health_pb2.HealthCheckResponse.NOT_SERVING)
            await becomes(endpoint, available=False)
        async with checked(at(port), service="no.Such", **ONCE) as endpoint:
            assert endpoint.reason.startswith("health check failed: NOT_FOUND")


async def test_a_server_of_the_original_system_is_asked_its_own_way_and_that_is_remembered() -> None:
    async with scripted(CHAT=HEALTHY) as server, checked(at(server.port)) as endpoint:
        await eventually(lambda: server.asked[CHAT] > 5, "checks")
        assert endpoint.available
        assert server.asked[CHECK] == 1
        assert server.asked[WATCH] == 0
        server.answers[CHAT] = UNHEALTHY
        await becomes(endpoint, available=False)
        assert endpoint.reason == "says that it is not healthy"
        server.answers[CHAT] = HEALTHY
        await becomes(endpoint, available=True)


async def test_what_was_remembered_is_forgotten_when_the_server_was_away() -> None:
    async with scripted(CHAT=HEALTHY) as server, checked(at(server.port)) as endpoint:
        await eventually(lambda: server.asked[CHAT] > 1, "checks")
        await server.stop()
        await becomes(endpoint, available=False)
        server.answers = {CHECK: SERVING}
        asked = server.asked.copy()
        await server.start()
        await becomes(endpoint, available=True)
        assert server.asked[CHECK] > asked[CHECK]
        await eventually(lambda: server.asked[WATCH], "a try to watch it")
        await eventually(lambda: server.asked[CHECK] > asked[CHECK] + 5, "checks")
        assert server.asked[WATCH] == 1, "it has none: asked once"
        assert server.asked[CHAT] == asked[CHAT]


@pytest.mark.parametrize(
    "answers",
    [
        {},
        {"CHECK": grpc.StatusCode.UNAUTHENTICATED, "CHAT": grpc.StatusCode.UNAUTHENTICATED},
        {"CHECK": grpc.StatusCode.PERMISSION_DENIED},
        {"CHECK": grpc.StatusCode.NOT_FOUND},
    ],
)
async def test_a_server_without_any_health_service_is_well_while_it_listens(answers: dict[str, Any]) -> None:
    async with scripted(**answers) as server, checked(at(server.port)) as endpoint:
        assert endpoint.available
        assert (server.asked[CHECK], server.asked[CHAT]) == (1, 1)
        await server.stop()
        await becomes(endpoint, available=False)
        await server.start()
        await becomes(endpoint, available=True)


@pytest.mark.parametrize(
    ("kind", "answers", "reason"),
    [
        ("grpc", {}, "health check failed: UNIMPLEMENTED: method not found!"),
        ("chat", {}, "health check failed: UNIMPLEMENTED: method not found!"),
        ("grpc", {"CHECK": grpc.StatusCode.INTERNAL}, "health check failed: INTERNAL: so it is"),
        ("auto", {"CHECK": grpc.StatusCode.INTERNAL}, "health check failed: INTERNAL: so it is"),
        ("grpc", {"CHECK": b"\xff\xff"}, "health check failed: the answer makes no sense"),
        ("chat", {"CHAT": b"\xff\xff"}, "health check failed: the answer makes no sense"),
        ("grpc", {"CHECK": b""}, "says UNKNOWN"),
        ("grpc", {"CHECK": b"\x08\x2a"}, "says 42"),
        ("chat", {"CHAT": b""}, "says that it is not healthy"),
    ],
)
async def test_what_is_not_a_good_answer_blocks_and_says_why(kind: str, answers: dict[str, Any], reason: str) -> None:
    async with scripted(**answers) as server, checked(at(server.port), kind=kind, **ONCE) as endpoint:
        assert endpoint.reason == reason


async def test_tcp_is_content_with_a_port_that_accepts_and_auto_is_not() -> None:
    async with raw_server("Server-A", speaks=False) as mute:
        async with checked(at(mute.port), kind="tcp") as endpoint:
            assert endpoint.available
            await eventually(lambda: len(mute.connections) > 2, "checks")
        async with checked(at(mute.port), **SHORT) as endpoint:
            assert endpoint.reason.startswith("health check failed: ")


@pytest.mark.parametrize("kind", ["auto", "grpc", "grpc_watch", "chat", "tcp"])
async def test_when_nothing_listens_that_is_known_before_the_start_is_over(kind: str) -> None:
    with closed_port() as port:
        async with checked(at(port), kind=kind, **{**ONCE, "startup_timeout": 3600}) as endpoint:
            assert endpoint.reason.endswith("connection refused")


@pytest.mark.parametrize("kind", ["auto", "grpc", "chat"])
async def test_a_server_that_hangs_is_blocked_until_it_answers(kind: str) -> None:
    async with (
        scripted(CHECK=SERVING, CHAT=HEALTHY) as server,
        checked(at(server.port), kind=kind, **SHORT) as endpoint,
    ):
        await becomes(endpoint, available=True)
        server.answers.update({CHECK: None, CHAT: None})
        await becomes(endpoint, available=False)
        assert endpoint.reason == "health check failed: no answer within 0.2 s"
        server.answers.update({CHECK: SERVING, CHAT: HEALTHY})
        await becomes(endpoint, available=True)


async def test_the_start_does_not_wait_longer_than_told_and_takes_the_unchecked_for_healthy(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with scripted(CHECK=None) as server:
        settings = {**OFTEN, "timeout": 3600, "startup_timeout": 0.05}
        async with checked(at(server.port), kind="grpc", **settings) as endpoint:
            assert endpoint.available
    assert "1 endpoints are not checked yet after 0.05 s" in caplog.text


async def test_no_more_checks_than_allowed_are_under_way() -> None:
    async with scripted(CHECK=None) as server:
        address = Address("127.0.0.1", server.port)
        settings = HealthSettings.model_validate({**ONCE, "kind": "grpc", "max_concurrent_checks": 2})
        checker = HealthChecker([Endpoint(f"Server-{name}", address) for name in "ABCDE"], settings)
        starting = asyncio.get_running_loop().create_task(checker.start())
        try:
            await eventually(lambda: server.asked[CHECK] == 2, "two checks")
            await settled(lambda: server.asked[CHECK], "the checks", calm=0.1)
            assert server.asked[CHECK] == 2
        finally:
            await checker.stop()
            starting.cancel()


async def test_every_passed_check_is_passed_on() -> None:
    passed: list[Endpoint] = []
    async with (
        scripted(CHECK=SERVING) as server,
        checked(at(server.port), kind="grpc", on_success=passed.append) as endpoint,
    ):
        await eventually(lambda: len(passed) > 3, "successes")
        assert set(passed) == {endpoint}


async def test_a_lost_watch_is_taken_up_again() -> None:
    async with scripted(CHECK=SERVING, WATCH=NOT_SERVING) as server:  # a unary answer ends the watch at once
        server.answers[WATCH] = SERVING
        async with checked(at(server.port)) as endpoint:
            await eventually(lambda: server.asked[WATCH] > 3, "watches")
            assert endpoint.available


async def test_a_stopped_server_is_blocked_and_back_after_it_continues() -> None:
    async with (
        backend_process("--id", "Server-A") as (process, address),
        checked(at(Address.parse(address).port), **{**SHORT, "timeout": 0.5}) as endpoint,
    ):
        assert endpoint.available
        os.kill(process.pid, signal.SIGSTOP)
        await becomes(endpoint, available=False)
        assert endpoint.reason == "health check failed: no answer within 0.5 s"
        os.kill(process.pid, signal.SIGCONT)
        await becomes(endpoint, available=True)


# Through the proxy.


async def _server_of(client: grpc.aio.Channel, key: str) -> str:
    call = client.unary_unary(UNARY)(b"body", metadata=(("x-chat-id", key),))
    assert await call == b"body"
    return await server_of(call)


async def test_chats_of_a_stopped_server_are_served_elsewhere_and_go_home_when_it_continues(tmp_path: Path) -> None:
    async with (
        backend_process("--id", "Server-A") as (_, address),
        backend_process("--id", "Server-B") as (stopped, stopped_address),
    ):
        config = toml({"Server-A": address, "Server-B": stopped_address}, health={**SHORT, "timeout": 0.5})
        async with proxy_process(tmp_path, config) as proxy, channel(proxy.address) as client:
            stub = chat_pb2_grpc.ChatServiceStub(client)
            chat = chat_pb2.ChatRequest(chat_id=proxy.key_of("Server-B"), message="hello")
            assert (await stub.PostMessage(chat)).server_id == "Server-B"
            os.kill(stopped.pid, signal.SIGSTOP)
            await eventually(lambda: "Server-B" in proxy.log(), "the hang's being noticed")
            assert "is unhealthy: health check failed: no answer within 0.5 s" in proxy.log()
            assert (await stub.PostMessage(chat, timeout=PATIENCE)).server_id == "Server-A"
            os.kill(stopped.pid, signal.SIGCONT)
            await eventually(lambda: "is healthy again" in proxy.log(), "its return")
            assert (await stub.PostMessage(chat)).server_id == "Server-B"
            assert len(proxy.log().splitlines()) == 2, "one line per flip"


async def test_a_server_that_begins_to_drain_gets_no_new_chats_and_finishes_what_it_has(tmp_path: Path) -> None:
    drains = asyncio.Event()

    def watch(end: asyncio.Event) -> Script:
        async def script(_call: object, context: Context) -> None:
            await context.write(SERVING)
            await end.wait()
            await context.write(NOT_SERVING)

        return script

    async with echo_servers("Server-A", "Server-B") as servers:
        for server, end in zip(servers, (asyncio.Event(), drains), strict=True):
            server.scripts.update({CHECK: _answering(SERVING), WATCH: watch(end)})
        config = toml(addresses(*servers), health=WATCHED)
        async with proxy_process(tmp_path, config) as proxy, channel(proxy.address) as client:
            key = proxy.key_of("Server-B")
            running = client.stream_stream("/any.Service/Bidi")(metadata=(("x-chat-id", key),))
            await running.write(b"1")
            assert await running.read() == b"1"
            await eventually(lambda: any(call.method == WATCH for call in servers[1].calls), "the watch")
            servers[1].scripts[CHECK] = _answering(NOT_SERVING)
            drains.set()
            await eventually(lambda: "Server-B" in proxy.log(), "the news")
            assert "says NOT_SERVING" in proxy.log()
            assert await _server_of(client, key) == "Server-A"
            await running.write(b"2")
            assert await running.read() == b"2"
            await running.done_writing()
            assert await running.code() is grpc.StatusCode.OK


async def test_a_reference_server_that_restarts_is_passed_over_until_it_is_back(tmp_path: Path) -> None:
    async with (
        backend_process("--id", "Server-A") as (_, address),
        backend_process("--id", "Server-B") as (draining, draining_address),
    ):
        config = toml({"Server-A": address, "Server-B": draining_address}, health=WATCHED)
        async with proxy_process(tmp_path, config) as proxy, channel(proxy.address) as client:
            stub = chat_pb2_grpc.ChatServiceStub(client)
            keys = [f"chat-{number}" for number in range(20)]

            async def post() -> set[str]:
                requests = (chat_pb2.ChatRequest(chat_id=key, message="hello") for key in keys)
                return {answer.server_id for answer in await asyncio.gather(*map(stub.PostMessage, requests))}

            assert await post() == {"Server-A", "Server-B"}
            draining.send_signal(signal.SIGTERM)
            await eventually(lambda: "is unhealthy: says NOT_SERVING" in proxy.log(), "the news")
            assert await post() == {"Server-A"}
            await draining.wait()
            assert await post() == {"Server-A"}
            flags = ("--address", draining_address)  # the later one counts
            async with backend_process("--id", "Server-B", *flags):
                async with asyncio.timeout(PATIENCE):
                    while await post() != {"Server-A", "Server-B"}:
                        pass
                assert "Server-B" in proxy.log()
                assert "is healthy again" in proxy.log()


async def test_the_listener_waits_for_the_first_round_so_that_no_call_goes_to_a_server_that_is_down(
    tmp_path: Path,
) -> None:
    async with echo_servers("Server-A", "Server-B") as servers:
        for server in servers:
            server.scripts[CHECK] = _answering(SERVING if server.id == "Server-A" else NOT_SERVING)
        config = toml(addresses(*servers), health={"kind": "grpc", **ONCE})
        async with proxy_process(tmp_path, config) as proxy, channel(proxy.address) as client:
            assert await _server_of(client, proxy.key_of("Server-B")) == "Server-A"


async def test_health_can_be_asked_at_another_address(tmp_path: Path) -> None:
    async with echo_servers("Server-A", "Server-B") as servers, scripted(CHECK=SERVING) as sidecar:
        endpoint = f'[[endpoints]]\nid = "Server-B"\naddress = "{servers[1].address}"\n'
        endpoint += f'check_address = "127.0.0.1:{sidecar.port}"\n'
        config = toml(addresses(servers[0]), health={**OFTEN, "kind": "grpc", "service": "named"}) + endpoint
        servers[0].scripts[CHECK] = _answering(SERVING)
        async with proxy_process(tmp_path, config) as proxy, channel(proxy.address) as client:
            key = proxy.key_of("Server-B")
            assert await _server_of(client, key) == "Server-B"
            assert sidecar.requests == {health_pb2.HealthCheckRequest(service="named").SerializeToString()}
            sidecar.answers[CHECK] = NOT_SERVING
            await eventually(lambda: "Server-B" in proxy.log(), "the news")
            assert await _server_of(client, key) == "Server-A"
            assert not [call for call in servers[1].calls if call.method != UNARY]


def _answering(answer: bytes) -> Any:
    async def script(_call: object, context: Context) -> None:
        await context.read()
        await context.write(answer)

    return script
