"""The files of certificates: new ones, bad ones, and when each ends."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest

from tests.support.admin import admin_of, samples
from tests.support.grpc_server import echo_servers
from tests.support.polling import eventually, eventually_answers
from tests.support.proxy_process import Table, toml
from tests.support.secure_proxy import secure_channel, secure_proxy, served_by
from tests.support.tls import Authority, Certificate
from tests.support.tools import run

if TYPE_CHECKING:
    from pathlib import Path

UNARY = "/any.Service/Unary"
BIDI = "/any.Service/Bidi"
OFTEN = 0.05
"""Seconds between two looks at the files."""


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
    command = (sys.executable, "-m", "proxy")
    for verb in ("serve", "check"):
        status, out, err = await run(*command, verb, "--config", str(config))
        assert (status, out) == (2, "")
        assert all(f"{key}: {text}" in err for key, text in problems.items())
        assert "Traceback" not in err
    status, out, _ = await run(*command, "check", "--json", "--config", str(config))
    assert status == 2
    assert {each["key"]: each["problem"] for each in json.loads(out)["problems"]} == problems
