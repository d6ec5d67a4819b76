"""From the text of the setting to a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from backend.store.memory import MemoryStore
from backend.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from backend.store.base import SessionStore

MEMORY_URL = "memory:"
_SQLITE_SCHEME = "sqlite://"


def sqlite_path(url: str) -> Path | None:
    """The file of an SQLite URL; None for `memory:`. Raises ValueError for anything else.

    `sqlite:///var/chats.db` and `sqlite:////var/chats.db` are both /var/chats.db; `sqlite:///./chats.db` is relative to
    the working directory. The path is taken as it is: there is no %-decoding and there are no options.
    """
    if url == MEMORY_URL:
        return None
    path = url.removeprefix(_SQLITE_SCHEME)
    if path == url or not path.startswith("/"):
        raise ValueError(f"must be {MEMORY_URL} or {_SQLITE_SCHEME}/PATH, not {url!r}")
    relative = path.lstrip("/")
    if not relative or path.endswith("/") or "\0" in path:
        raise ValueError(f"names no file: {url!r}")
    return Path(relative) if relative.startswith(("./", "../")) else Path("/") / relative


async def open_store(url: str, *, busy_timeout: float, synchronous: Literal["normal", "full"]) -> SessionStore:
    """The store at `url` (see `sqlite_path`); the rest as in `SqliteStore.open`, which also says the errors."""
    path = sqlite_path(url)
    if path is None:
        return MemoryStore()
    return await SqliteStore.open(path, busy_timeout=busy_timeout, synchronous=synchronous)
