"""Who may ask the admin API."""

from __future__ import annotations

from http import HTTPStatus

import pytest
from pydantic import ValidationError

from proxy.admin.settings import AdminSettings
from proxy.errors import ConfigError
from proxy.settings import load_settings

TOKEN = "correct-horse-battery-staple"


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN, "Bearer é"]
)
async def test_without_the_token_it_is_401(world, connect, header):
    client = await connect(world, token=TOKEN)
    headers = {} if header is None else {"Authorization": header}
    for path in ("/api/endpoints", "/api/config", "/metrics", "/nothing"):
        response = await client.get(path, headers=headers)
        assert response.status == HTTPStatus.UNAUTHORIZED
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert response.content_type == "application/problem+json"
    response = await client.post("/api/endpoints/B/drain", json={}, headers=headers)
    assert response.status == HTTPStatus.UNAUTHORIZED
    assert world.proxy.cluster.snapshot.by_id["B"].available


async def test_with_the_token_all_is_open_under_any_name(world, connect):
    client = await connect(world, token=TOKEN)
    headers = {"Authorization": f"bearer {TOKEN}", "Host": "proxy.example:9901"}
    assert (await client.get("/api/endpoints", headers=headers)).status == HTTPStatus.OK


async def test_probes_need_no_token(world, connect):
    client = await connect(world, token=TOKEN)
    assert (await client.get("/livez")).status == HTTPStatus.OK
    assert (await client.get("/readyz")).status == HTTPStatus.OK


@pytest.mark.parametrize("host", ["evil.example", "evil.example:9901", "127.0.0.1.evil.example", ""])
async def test_a_foreign_name_is_refused_where_no_token_is_set(world, connect, host):
    """DNS rebinding: the page's own name resolves to 127.0.0.1, so the browser lets it read what it gets."""
    client = await connect(world)
    assert (await client.get("/api/config", headers={"Host": host})).status == HTTPStatus.FORBIDDEN


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9901", "127.0.0.1:1", "[::1]:9901", "proxy.lan:80"])
async def test_our_own_names_are_not(world, connect, host):
    client = await connect(world, allowed_hosts=["proxy.lan"])
    assert (await client.get("/api/config", headers={"Host": host})).status == HTTPStatus.OK


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
async def test_what_a_foreign_page_can_send_by_itself_steers_nothing(world, connect, content_type):
    client = await connect(world)
    response = await client.post("/api/endpoints/B/drain", data=b"{}", headers={"Content-Type": content_type})
    assert response.status == HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    assert world.proxy.cluster.snapshot.by_id["B"].available


async def test_a_post_from_another_origin_is_refused_and_from_our_own_page_not(world, connect):
    client = await connect(world)
    own = f"http://{client.host}:{client.port}"
    for origin, status in (("http://evil.example", HTTPStatus.FORBIDDEN), ("null", HTTPStatus.FORBIDDEN), (own, 200)):
        response = await client.post("/api/endpoints/B/drain", json={}, headers={"Origin": origin})
        assert response.status == status


async def test_answers_are_not_kept_sniffed_or_framed(world, connect):
    client = await connect(world)
    for path in ("/api/config", "/api/nothing"):
        headers = (await client.get(path)).headers
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"


@pytest.mark.parametrize("address", ["0.0.0.0:9901", "[::]:9901", "10.0.0.1:9901", "proxy.example:9901"])
def test_an_address_that_others_can_reach_needs_a_token(address):
    with pytest.raises(ValidationError, match="set a token"):
        AdminSettings(address=address)
    assert AdminSettings(address=address, token=TOKEN).address == address


@pytest.mark.parametrize("address", ["127.0.0.1:0", "127.8.8.8:1", "[::1]:9901", "localhost:9901", "", False])
def test_loopback_and_nothing_need_none(address):
    assert AdminSettings(address=address).address == (address or "")


@pytest.mark.parametrize("token", ["short", "with space in the middle", "ünicode-ünicode-ünicode"])
def test_a_weak_token_is_refused_and_not_printed(token):
    environ = {"DISTRICHAT_ENDPOINTS": '[{"id": "a", "address": "h:1"}]', "DISTRICHAT_ADMIN__TOKEN": token}
    with pytest.raises(ConfigError) as caught:
        load_settings(None, environ)
    [line] = caught.value.problems
    assert line.startswith("admin.token: a token ")
    assert token not in line
