from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from backend.errors import ConfigError
from backend.settings import ENV_PREFIX, BackendSettings, load_settings, split_address

EXAMPLE = Path(__file__).parents[3] / "config" / "backend.toml"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(ENV_PREFIX):
            monkeypatch.delenv(name)


NO_ADDRESS = "must be host:port or [IPv6]:port with a port of at most 65535"
TTL = "cache.session_ttl: must be more than twice store.write_interval, not 2"


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "backend.toml"
    file.write_text(text, encoding="utf-8")
    return file


def problems(file: Path | None, **flags: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_settings(file, flags)
    return caught.value.problems


def test_the_example_file_has_every_key_with_its_default() -> None:
    assert tomllib.loads(EXAMPLE.read_text(encoding="utf-8")) == BackendSettings().model_dump()
    assert load_settings(EXAMPLE, {}).model_dump() == BackendSettings().model_dump()


def test_flags_beat_variables_and_these_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, 'id = "file"\naddress = "file:1"\n[cache]\nl1_capacity = 1\nl2_capacity = 1\n')
    monkeypatch.setenv("DISTRICHAT_BACKEND_ID", "variable")
    monkeypatch.setenv("DISTRICHAT_BACKEND_CACHE__L1_CAPACITY", "2")
    settings = load_settings(file, {"cache": {"l1_capacity": "3"}})
    assert (settings.id, settings.address) == ("variable", "file:1")
    assert (settings.cache.l1_capacity, settings.cache.l2_capacity) == (3, 1)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        BackendSettings().cache.l1_capacity = 6


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("colour = 1", ["colour: unknown setting"]),
        ("[cache]\nl3_capacity = 1", ["cache.l3_capacity: unknown setting"]),
        ("[cache]\nl1_capacity = 'five'", ["cache.l1_capacity: should be a valid integer, not 'five'"]),
        ("[cache]\nl1_capacity = '5'", ["cache.l1_capacity: should be a valid integer, not '5'"]),
        ("[cache]\nl1_capacity = true", ["cache.l1_capacity: should be a valid integer, not True"]),
        ("[cache]\nl1_capacity = -1", ["cache.l1_capacity: should be greater than or equal to 0, not -1"]),
        ("[cache]\nrecent_messages = 1", ["cache.recent_messages: should be greater than or equal to 2, not 1"]),
        ("cache = 5", ["cache: must be a table, not 5"]),
        ("[drain]\ngrace = inf", ["drain.grace: should be a finite number, not inf"]),
        ("[store]\nsynchronous = 'off'", ["store.synchronous: should be 'normal' or 'full', not 'off'"]),
        (
            "[store]\nurl = 'mysql://x'",
            ["store.url: must be memory:, sqlite:///PATH or redis://HOST:PORT/DB, not 'mysql://x'"],
        ),
        ("[store]\ndurability = 'none'", ["store.durability: should be 'write_through' or 'write_back', not 'none'"]),
        ("[store]\ndedupe_window = 0", ["store.dedupe_window: should be greater than or equal to 1, not 0"]),
        (
            "[store]\nurl = 'redis://:secret@a:x'",
            ["store.url: is no Redis URL (Port could not be cast to integer value as 'x')"],
        ),
        ("[engine]\nkind = 'openai'", ['engine: kind = "openai" needs url and model']),
        ("[engine]\nkind = 'openai'\napi_key = 'secret'", ['engine: kind = "openai" needs url and model']),
        ("[engine]\nurl = 'ftp://a'", ["engine.url: must be an http:// or https:// URL, not 'ftp://a'"]),
        ("[moves.peers]\na = 'x'", [f"moves.peers: a: {NO_ADDRESS}, not 'x'"]),
        ("[store]\ndurability = 'write_back'\n[cache]\nsession_ttl = 2", [TTL]),
        ("id = ''", ["id: must be a name without spaces, not ''"]),
        (
            "address = 'nowhere'",
            ["address: must be host:port or [IPv6]:port with a port of at most 65535, not 'nowhere'"],
        ),
        (
            "id = 1\n[engine]\ntoken_delay = -1",
            [
                "id: should be a valid string, not 1",
                "engine.token_delay: should be greater than or equal to 0, not -1",
            ],
        ),
    ],
)
def test_each_mistake_is_one_line_with_its_key(tmp_path: Path, text: str, lines: list[str]) -> None:
    assert problems(write(tmp_path, text)) == lines


def test_a_file_that_is_no_toml_is_named_with_the_place(tmp_path: Path) -> None:
    (line,) = problems(write(tmp_path, "id = \n"))
    assert line.startswith(f"config: {tmp_path}/backend.toml: ")
    assert "line 1" in line


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe")
    (line,) = problems(tmp_path / "a.toml")
    assert line.endswith("a.toml: not UTF-8 text")


def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    assert problems(tmp_path / "none.toml") == [f"config: {tmp_path}/none.toml: No such file or directory"]
    assert problems(tmp_path) == [f"config: {tmp_path}: Is a directory"]


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("DISTRICHAT_BACKEND_COLOUR", "1", "DISTRICHAT_BACKEND_COLOUR: unknown setting in the environment"),
        ("DISTRICHAT_BACKEND_COLOUR__RED", "1", "DISTRICHAT_BACKEND_COLOUR__RED: unknown setting in the environment"),
        ("DISTRICHAT_BACKEND_CACHE__L3_CAPACITY", "1", "cache.l3_capacity: unknown setting"),
    ],
)
def test_a_variable_that_names_no_setting_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, line: str
) -> None:
    monkeypatch.setenv(name, value)
    assert problems(None) == [line]


def test_a_variable_with_a_wrong_value_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTRICHAT_BACKEND_CACHE__L2_CAPACITY", "many")
    (line,) = problems(None)
    assert line.startswith("cache.l2_capacity: should be a valid integer")
    monkeypatch.setenv("DISTRICHAT_BACKEND_CACHE", "many")
    (line,) = problems(None)
    assert '"cache"' in line


def test_what_kubernetes_puts_into_every_pod_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_GRPC", "PORT", "PORT_50051_TCP_ADDR"):
        monkeypatch.setenv(ENV_PREFIX + name, "tcp://10.0.0.1:50051")
    assert load_settings(None, {}).model_dump() == BackendSettings().model_dump()


@pytest.mark.parametrize(
    ("address", "parts"),
    [("localhost:0", ("localhost", 0)), ("[::1]:65535", ("::1", 65535)), ("0.0.0.0:80", ("0.0.0.0", 80))],
)
def test_address_is_split_into_host_and_port(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize(
    "address", ["", ":80", "host", "host:", "host:65536", "host:-1", "::1:80", "[]:80", "a:\u0661"]
)
def test_anything_else_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        split_address(address)
