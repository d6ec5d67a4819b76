from __future__ import annotations

from pathlib import Path

import pytest

from backend.store.url import RedisAddress, parse_store_url


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("memory:", None),
        ("sqlite:///var/chats.db", Path("/var/chats.db")),
        ("sqlite:////var/chats.db", Path("/var/chats.db")),
        ("sqlite:///./chats.db", Path("chats.db")),
        ("sqlite:///../chats.db", Path("../chats.db")),
        ("sqlite:///a b%20?c#d", Path("/a b%20?c#d")),
        ("redis://cache", RedisAddress("cache")),
        ("redis://10.0.0.9:6380/3", RedisAddress("10.0.0.9", 6380, 3)),
        ("redis://[::1]:6380", RedisAddress("::1", 6380)),
        ("redis://:secret@cache/1", RedisAddress("cache", 6379, 1, None, "secret")),
        ("redis://ann:secret@cache/", RedisAddress("cache", 6379, 0, "ann", "secret")),
    ],
)
def test_url_names_a_file_a_redis_or_memory(url: str, where: Path | RedisAddress | None) -> None:
    assert parse_store_url(url) == where


@pytest.mark.parametrize("url", ["", "memory", "sqlite:", "sqlite://", "sqlite://host/a.db", "/a.db", "rediss://a/0"])
def test_anything_else_is_refused_with_what_is_possible(url: str) -> None:
    with pytest.raises(ValueError, match="must be memory:, sqlite:///PATH or redis://HOST:PORT/DB, not"):
        parse_store_url(url)


@pytest.mark.parametrize("url", ["sqlite:///", "sqlite:////", "sqlite:///var/", "sqlite:///a\0b"])
def test_a_url_without_a_file_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="names no file"):
        parse_store_url(url)


@pytest.mark.parametrize(
    "url",
    [
        *("redis://", "redis://:6379", "redis://a:0", "redis://a:x", "redis://a:99999", "redis://a/x", "redis://a/-1"),
        *("redis://a/0?b=c", "redis://a/0#d", "redis://a/\u0661"),
    ],
)
def test_a_redis_url_is_refused_if_anything_in_it_is_wrong(url: str) -> None:
    with pytest.raises(ValueError, match=r"Redis|redis://HOST:PORT/DB"):
        parse_store_url(url)


def test_a_password_is_in_no_message() -> None:
    address = parse_store_url("redis://ann:secret@cache:6380/1")
    assert str(address) == "redis cache:6380/1"
    with pytest.raises(ValueError, match="Redis") as caught:
        parse_store_url("redis://ann:secret@cache:x")
    assert "secret" not in str(caught.value)
