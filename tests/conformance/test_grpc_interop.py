"""gRPC's own interop tests through a proxy process: Go's client and server, and Python's (C-core's)."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest

from tests.conformance.interop import GO, PATIENCE, Command, interop_client, interop_server, python_program
from tests.conformance.table import Row
from tests.conformance.tools import go_tool
from tests.support.proxy_process import proxy_process, toml

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

CASES = (
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "cancel_after_begin",
    "cancel_after_first_response",
    "timeout_on_sleeping_server",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
)
"""The cases that need no credentials."""
ORCA_CASES = ("orca_per_rpc", "orca_oob")
"""A server's load in trailers, and by a stream of its own: of Go's server only. (Go's client has one case more,
`pick_first_unary`, which asks servers of a test cluster for their names.)"""
WITH_ORCA = '--service_config_json={"loadBalancingConfig":[{"test_backend_metrics_load_balancer":{}}]}'
"""Without that policy in the client the cases fail with no proxy too."""

SOAK_CALLS = 20_000
SOAK_CHANNELS = 1_000
SOAK_THREADS = 8


async def all_pass(
    command: Command, port: int, cases: Sequence[str], *more: str, env: dict[str, str] | None = None
) -> None:
    """Every case succeeds."""
    failed = {}
    for case in cases:
        status, output = await interop_client(command, port, case, *more, env=env)
        if status:
            failed[case] = output
    assert not failed


@pytest.fixture
def go_client() -> Command:
    return (go_tool("client"),)


@pytest.fixture
def go_server() -> Command:
    return (go_tool("server"),)


@pytest.mark.slow
async def test_go_client_and_server(
    tmp_path: Path, go_client: Command, go_server: Command, record: Callable[[Row], None]
):
    async with (
        interop_server(go_server) as address,
        proxy_process(tmp_path, toml({"go": address})) as proxy,
    ):
        await all_pass(go_client, proxy.port, CASES)
        await all_pass(go_client, proxy.port, ORCA_CASES, WITH_ORCA)
    record(Row("gRPC interop, Go client, Go server", GO, len(CASES) + len(ORCA_CASES)))


@pytest.mark.slow
async def test_python_client_and_go_server(tmp_path: Path, go_server: Command, record: Callable[[Row], None]):
    client, env = python_program("client")
    async with (
        interop_server(go_server) as address,
        proxy_process(tmp_path, toml({"go": address})) as proxy,
    ):
        await all_pass(client, proxy.port, CASES, env=env)
    record(Row("gRPC interop, Python client, Go server", f"grpcio {version('grpcio')}, {GO}", len(CASES)))


@pytest.mark.slow
async def test_go_client_and_python_server(tmp_path: Path, go_client: Command, record: Callable[[Row], None]):
    server, env = python_program("server")
    async with (
        interop_server(server, env) as address,
        proxy_process(tmp_path, toml({"python": address})) as proxy,
    ):
        await all_pass(go_client, proxy.port, CASES)
    record(Row("gRPC interop, Go client, Python server", f"{GO}, grpcio {version('grpcio')}", len(CASES)))


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_soak(tmp_path: Path, go_client: Command, go_server: Command, record: Callable[[Row], None]):
    """Messages of 32 KiB, so that flow control has something to do, over two servers."""
    common = (
        f"--soak_num_threads={SOAK_THREADS}",
        "--soak_max_failures=0",
        "--soak_per_iteration_max_acceptable_latency_ms=30000",
        f"--soak_overall_timeout_seconds={PATIENCE:.0f}",
        "--soak_request_size=32768",
        "--soak_response_size=32768",
    )
    async with (
        interop_server(go_server) as one,
        interop_server(go_server) as two,
        proxy_process(tmp_path, toml({"one": one, "two": two})) as proxy,
    ):
        for case, iterations in (("rpc_soak", SOAK_CALLS), ("channel_soak", SOAK_CHANNELS)):
            status, output = await interop_client(
                go_client, proxy.port, case, *common, f"--soak_iterations={iterations}"
            )
            assert status == 0, output[-3000:]
            assert f"{iterations} / {iterations} iterations" in output, output[-3000:]
    record(Row("gRPC interop, Go soak", GO, 2))
