from __future__ import annotations

from pathlib import Path

import pytest

from backend.store.url import sqlite_path


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("memory:", None),
        ("sqlite:///var/chats.db", Path("/var/chats.db")),
        ("sqlite:////var/chats.db", Path("/var/chats.db")),
        ("sqlite:///./chats.db", Path("chats.db")),
        ("sqlite:///../chats.db", Path("../chats.db")),
        ("sqlite:///a b%20?c#d", Path("/a b%20?c#d")),
    ],
)
def test_url_names_a_file_or_memory(url: str, path: Path | None) -> None:
    assert sqlite_path(url) == path


@pytest.mark.parametrize("url", ["", "memory", "sqlite:", "sqlite://", "sqlite://host/a.db", "/a.db", "redis://a/0"])
def test_anything_else_is_refused_with_what_is_possible(url: str) -> None:
    with pytest.raises(ValueError, match="must be memory: or sqlite:///PATH, not"):
        sqlite_path(url)


@pytest.mark.parametrize("url", ["sqlite:///", "sqlite:////", "sqlite:///var/", "sqlite:///a\0b"])
def test_a_url_without_a_file_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="names no file"):
        sqlite_path(url)
