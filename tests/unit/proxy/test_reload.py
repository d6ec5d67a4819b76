"""What a reload finds different, what it applies, and what it leaves."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import ConfigError
from proxy.reload import Change, Reloader, among, differences, held_back, keeping
from proxy.settings import Settings, load_settings
from tests.support.polling import eventually

ENDPOINTS = [{"id": "A", "address": "10.0.0.1:1"}, {"id": "B", "address": "10.0.0.2:1"}]


def settings(**tables: object) -> Settings:
    return Settings.model_validate({"endpoints": ENDPOINTS, **tables})


def changes(old: Settings, new: Settings) -> list[str]:
    return [str(change) for change in differences(old, new)]


def test_the_same_settings_differ_in_nothing() -> None:
    assert not changes(settings(), settings())


def test_each_key_that_differs_is_named_with_both_values() -> None:
    new = settings(limits={"max_calls": 7}, retry={"panic": "fail_fast"})
    assert changes(settings(), new) == ["retry.panic: try_all -> fail_fast", "limits.max_calls: 100000 -> 7"]


def test_servers_go_by_their_ids_whatever_their_order() -> None:
    new = settings(endpoints=[{**ENDPOINTS[1], "weight": 2.0}, ENDPOINTS[0]])
    assert changes(settings(), new) == ["endpoints[B].weight: 1.0 -> 2.0"]


def test_servers_that_come_and_go_are_named() -> None:
    found = changes(settings(), settings(endpoints=[ENDPOINTS[0], {"id": "C", "address": "10.0.0.3:1"}]))
    assert found == ["endpoints[C].address: 10.0.0.3:1 (new)", "endpoints[B].address: 10.0.0.2:1 -> (gone)"]


def test_of_a_new_server_what_is_no_default_is_named_too() -> None:
    server = {"id": "C", "address": "10.0.0.3:1", "weight": 2.0, "tls": False}
    assert changes(settings(), settings(endpoints=[*ENDPOINTS, server])) == [
        "endpoints[C].address: 10.0.0.3:1 (new)",
        "endpoints[C].weight: 2.0 (new)",
        "endpoints[C].tls: false (new)",
    ]


def test_a_default_that_comes_back_is_a_change() -> None:
    heavy = settings(endpoints=[{**ENDPOINTS[0], "weight": 2.0}, ENDPOINTS[1]])
    assert changes(heavy, settings()) == ["endpoints[A].weight: 2.0 -> 1.0"]


def test_routes_go_by_their_place() -> None:
    route = {"method": "/a.B/C", "key": {"field": "1"}}
    found = changes(settings(routes=[route]), settings(routes=[{**route, "key": {"field": "2"}}]))
    assert found == ["routes[0].key.field: 1 -> 2"]
    assert "routes[0].method: /a.B/C (new)" in changes(settings(), settings(routes=[route]))


@given(st.integers(1, 10**9), st.sampled_from(["127.0.0.1:1", "0.0.0.0:2"]))
def test_what_needs_a_restart_stays_and_all_else_is_new(calls: int, address: str) -> None:
    old = settings()
    new = settings(limits={"max_calls": calls}, listener={"address": address, "drain_grace": 1.0})
    effective = keeping(old, new)
    assert effective.listener.address == old.listener.address
    assert effective.listener.drain_grace == 1.0
    assert effective.limits == new.limits
    assert not [each for each in differences(old, effective) if among(each.key, held_back(old, new))]


def test_servers_that_a_new_tls_is_for_wait_with_it_for_the_restart() -> None:
    """They would be connected to in cleartext."""
    old = settings()
    later = [*ENDPOINTS, {"id": "C", "address": "10.0.0.3:1", "tls": True}]
    new = settings(endpoints=later, upstream={"tls": {"ca": Path("ca.pem")}}, limits={"max_calls": 7})
    effective = keeping(old, new)
    assert effective.endpoints == old.endpoints
    assert effective.upstream.tls == old.upstream.tls
    assert effective.limits.max_calls == 7
    held = held_back(old, new)
    assert among("endpoints[C].tls", held)
    assert not among("limits.max_calls", held)


class Applied:
    """Notes what it was given."""

    def __init__(self) -> None:
        self.settings: list[Settings] = []

    async def __call__(self, settings: Settings) -> int:
        self.settings.append(settings)
        return 41 + len(self.settings)


FILE = '[listener]\naddress = "127.0.0.1:1"\n[limits]\nmax_calls = {calls}\n[[endpoints]]\nid = "A"\naddress = "h:1"\n'


def write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "proxy.toml"
    write(path, FILE.format(calls=5))
    return path


async def test_a_reload_applies_what_the_file_says_now(file: Path) -> None:
    applied = Applied()
    reloader = Reloader(file, load_settings(file, {}), applied)
    write(file, FILE.format(calls=6))
    done = await reloader.reload()
    assert done.applied == (Change("limits.max_calls", "5", "6"),)
    assert done.version == 42
    assert applied.settings[-1].limits.max_calls == reloader.settings.limits.max_calls == 6
    assert not (await reloader.reload()).applied, "the second finds what the first left"


async def test_what_needs_a_restart_is_said_each_time_and_not_applied(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    applied = Applied()
    reloader = Reloader(file, load_settings(file, {}), applied)
    write(file, FILE.format(calls=6).replace("127.0.0.1:1", "127.0.0.1:2"))
    for _ in range(2):
        done = await reloader.reload()
        assert done.needs_restart == (Change("listener.address", "127.0.0.1:1", "127.0.0.1:2"),)
        assert applied.settings[-1].listener.address == "127.0.0.1:1"
    assert caplog.text.count("listener.address: 127.0.0.1:1 -> 127.0.0.1:2: needs a restart") == 2


async def test_a_bad_file_changes_nothing(file: Path) -> None:
    applied = Applied()
    reloader = Reloader(file, load_settings(file, {}), applied)
    write(file, FILE.format(calls=-1) + "[nonsense]\n")
    with pytest.raises(ConfigError) as refused:
        await reloader.reload()
    assert {problem.partition(":")[0] for problem in refused.value.problems} == {"limits.max_calls", "nonsense"}
    assert not applied.settings


async def test_signals_are_followed_and_mistakes_logged(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    applied = Applied()
    reloader = Reloader(file, load_settings(file, {}), applied)
    reloader.want()
    following = asyncio.ensure_future(reloader.follow())
    await eventually(lambda: len(applied.settings) == 1, "the first reload")
    write(file, "[")
    reloader.want()
    await eventually(lambda: "nothing is changed" in caplog.text, "the refusal")
    write(file, FILE.format(calls=9))
    reloader.want()
    await eventually(lambda: len(applied.settings) == 2, "the next one")
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
