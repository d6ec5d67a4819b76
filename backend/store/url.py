"""From the text of the setting to a store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from backend.errors import StoreError
from backend.store.memory import MemoryStore
from backend.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from backend.store.base import SessionStore, StoreOptions

MEMORY_URL = "memory:"
_SQLITE_SCHEME = "sqlite://"
_REDIS_SCHEME = "redis://"
_KINDS = f"{MEMORY_URL}, {_SQLITE_SCHEME}/PATH or {_REDIS_SCHEME}HOST:PORT/DB"


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where a Redis or Valkey is, and who we are there."""

    host: str
    port: int = 6379
    database: int = 0
    username: str | None = None
    password: str | None = None

    def __str__(self) -> str:
        """Without the password: it is for messages."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"redis {host}:{self.port}/{self.database}"


def parse_store_url(url: str) -> Path | RedisAddress | None:
    """The file of an SQLite URL, the address in a Redis one, None for `memory:`. Raises ValueError for anything else.

    `sqlite:///var/chats.db` and `sqlite:////var/chats.db` are both /var/chats.db; `sqlite:///./chats.db` is relative to
    the working directory. The path is taken as it is: there is no %-decoding and there are no options.
    `redis://[[USER]:PASSWORD@]HOST[:PORT][/DB]`, with port 6379 and database 0 unless said otherwise.
    """
    if url == MEMORY_URL:
        return None
    if url.startswith(_REDIS_SCHEME):
        return _redis_address(url)
    path = url.removeprefix(_SQLITE_SCHEME)
    if path == url or not path.startswith("/"):
        raise ValueError(f"must be {_KINDS}, not {url!r}")
    relative = path.lstrip("/")
    if not relative or path.endswith("/") or "\0" in path:
        raise ValueError(f"names no file: {url!r}")
    return Path(relative) if relative.startswith(("./", "../")) else Path("/") / relative


def _redis_address(url: str) -> RedisAddress:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"is no Redis URL ({error})") from None  # it may hold a password, so it is not repeated
    database = parts.path.removeprefix("/") or "0"
    if not host or port == 0 or parts.query or parts.fragment or not (database.isascii() and database.isdigit()):
        raise ValueError(f"must be {_REDIS_SCHEME}HOST:PORT/DB")
    return RedisAddress(host, port or 6379, int(database), parts.username or None, parts.password)


async def open_store(
    url: str,
    options: StoreOptions,
    *,
    busy_timeout: float = 5.0,
    synchronous: Literal["normal", "full"] = "full",
    answer_timeout: float = 2.0,
) -> SessionStore:
    """The store at `url` (see `parse_store_url`). Raises StoreError if it cannot be used.

    `busy_timeout`, `synchronous`: see `SqliteStore.open`; `answer_timeout`: see `RedisStore.open`.
    """
    where = parse_store_url(url)
    if where is None:
        return MemoryStore(options)
    if isinstance(where, Path):
        return await SqliteStore.open(where, options, busy_timeout=busy_timeout, synchronous=synchronous)
    try:
        from backend.store.redis import RedisStore  # noqa: PLC0415 - an optional extra
    except ModuleNotFoundError as error:
        raise StoreError(f"{error}: install the extra districhat[redis]") from error
    return await RedisStore.open(where, options, answer_timeout=answer_timeout)
