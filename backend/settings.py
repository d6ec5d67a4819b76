"""The settings of the reference server, and where they come from.

Strongest first: flags of the command, environment variables, the TOML file, the defaults here. A variable is
`DISTRICHAT_BACKEND_` and the key path with `__` for the dot: `DISTRICHAT_BACKEND_CACHE__L1_CAPACITY=5`.

Nothing is guessed: an unknown key, a value of another type or out of range is refused with its key path.
"""

from __future__ import annotations

import os
import re
import tomllib
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from backend.errors import ConfigError
from backend.store.url import MEMORY_URL, parse_store_url

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ENV_PREFIX = "DISTRICHAT_BACKEND_"
# What Kubernetes puts into every pod beside a Service named `districhat-backend`; no setting of ours looks like it.
_KUBERNETES_NAMES = re.compile(r"(SERVICE_HOST|SERVICE_PORT|PORT)(_|$)")


_SECRET = frozenset({"store.url", "engine.api_key"})
"""Keys whose values may hold a password, and are not repeated."""

_PATTERNS = {"id": "must be a name without spaces", "engine.url": "must be an http:// or https:// URL"}
"""What is wrong with a text that does not match its key's pattern."""


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[IPv6]:port`; the host without brackets. Raises ValueError."""
    match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^:\[\]]+)):([0-9]{1,5})", address)
    if match is None or int(match[3]) > 65535:
        raise ValueError("must be host:port or [IPv6]:port with a port of at most 65535")
    return match[1] or match[2], int(match[3])


def _address(value: str) -> str:
    split_address(value)
    return value


def _store_url(value: str) -> str:
    parse_store_url(value)
    return value


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CacheSettings(_Group):
    """The levels in memory."""

    l1_capacity: int = Field(default=5, ge=0)
    """Sessions in L1, which stands for GPU memory. 0: no L1."""
    l2_capacity: int = Field(default=20, ge=0)
    """Sessions in L2, which stands for RAM. 0: no L2."""
    l1_bytes: int = Field(default=0, ge=0)
    """Bytes of sessions in L1 besides. 0: no limit. A session larger than all of a level passes it by."""
    l2_bytes: int = Field(default=0, ge=0)
    """The same of L2."""
    recent_messages: int = Field(default=50, ge=2)
    """Messages of a session held in memory. The engine sees no further back; the store keeps all."""
    session_ttl: float = Field(default=0.0, ge=0)
    """Seconds without a new message after which a session ends by itself, everywhere. 0: never."""


class StoreSettings(_Group):
    """Where every message goes before it is acknowledged."""

    url: Annotated[str, AfterValidator(_store_url)] = MEMORY_URL
    """`memory:`, `sqlite:///PATH` or `redis://HOST:PORT/DB` (see `parse_store_url`). In memory, sessions end with the
    process: the default leaves no file behind and finds no surprising one; a cluster needs a store its servers
    share, or `[moves]`."""
    durability: Literal["write_through", "write_back"] = "write_through"
    """`write_through`: a message is acknowledged when the store has it. `write_back`: when memory has it, and written
    when its session leaves memory, at a drain, and after `write_interval` at the latest; a crash loses the rest."""
    write_interval: float = Field(default=1.0, gt=0, le=3600)
    """Seconds between the writes of `write_back`: how much a crash loses."""
    max_unwritten: int = Field(default=10_000, ge=1)
    """Messages that `write_back` holds unwritten; beyond it they are written through."""
    dedupe_window: int = Field(default=1024, ge=1, le=1_000_000)
    """Messages of a chat, from the last one back, whose ids are known: one that comes again within is not applied
    again. The same on all servers of a store."""
    busy_timeout: float = Field(default=5.0, ge=0)
    """Seconds to wait while another server writes to the file."""
    synchronous: Literal["normal", "full"] = "full"
    """Of an SQLite file: `normal` survives the death of the server, `full` also a power failure, for a disk sync per
    commit, which messages that arrive together share."""
    timeout: float = Field(default=2.0, gt=0, le=60)
    """Seconds that Redis may take to answer; after that the call fails with UNAVAILABLE."""


def _peers(value: dict[str, str]) -> dict[str, str]:
    for id_, address in value.items():
        if not re.fullmatch(r"\S+", id_):
            raise ValueError(f"{id_!r} is no id of a server")
        try:
            split_address(address)
        except ValueError as error:
            raise ValueError(f"{id_}: {error}, not {address!r}") from None
    return value


class MoveSettings(_Group):
    """Sessions that follow their chats where servers have no store in common."""

    fetch: bool = True
    """Ask the peer that had a chat before for its session. Without peers nobody is asked."""
    timeout: float = Field(default=2.0, gt=0, le=60)
    """Seconds a peer may take for the next part of a session. The first message of a moved chat waits for the whole."""
    retry_after: float = Field(default=5.0, ge=0)
    """Seconds in which a peer that did not answer is not asked again."""
    peers: Annotated[dict[str, str], AfterValidator(_peers)] = {}
    """Id and address of the servers to ask, and to answer to. This server's own entry is passed over, so that all
    may have the same table."""


class EngineSettings(_Group):
    """What makes the replies."""

    kind: Literal["echo", "openai"] = "echo"
    """`echo` says what it sees of the session; `openai` asks an OpenAI-compatible HTTP endpoint."""
    token_delay: float = Field(default=0.0, ge=0)
    """Seconds before each token of an echo: makes a stream look like a language model's."""
    url: str = Field(default="", pattern=r"^(https?://\S+)?$")
    """The endpoint's root, such as `http://127.0.0.1:8000/v1`."""
    model: str = ""
    """The model's name there."""
    api_key: str = Field(default="", repr=False)
    """Sent as a bearer token, if not empty. Better in the environment than in a file."""
    system_prompt: str = ""
    """Before every conversation, if not empty."""
    timeout: float = Field(default=30.0, gt=0)
    """Seconds for the endpoint's connect, and for each next piece of a reply."""
    max_reply: int = Field(default=262_144, ge=1, le=1_000_000)
    """Characters after which a reply is cut off."""

    @model_validator(mode="after")
    def _has_an_endpoint(self) -> Self:
        if self.kind == "openai" and not (self.url and self.model):
            raise ValueError('kind = "openai" needs url and model')
        return self


class DrainSettings(_Group):
    """The end."""

    notice: float = Field(default=0.3, ge=0)
    """Seconds after SIGTERM or SIGINT in which the server says NOT_SERVING but still takes calls: gRPC cancels those
    that reach a server between its stop and their sender's hearing of it."""
    grace: float = Field(default=10.0, ge=0)
    """Seconds for running calls after that. Those that take longer are cancelled."""


class BackendSettings(_Group):
    """Everything a server is started with. Immutable."""

    id: str = Field(default="Server-A", pattern=r"^\S+$")
    """The server's name in answers and statistics, without spaces; the proxy's ring hashes the same name."""
    address: Annotated[str, AfterValidator(_address)] = "127.0.0.1:50051"
    """Where to listen, `host:port`. Port 0: any free one, said in the ready line."""
    cache: CacheSettings = CacheSettings()
    store: StoreSettings = StoreSettings()
    moves: MoveSettings = MoveSettings()
    engine: EngineSettings = EngineSettings()
    drain: DrainSettings = DrainSettings()

    @model_validator(mode="after")
    def _writes_before_a_session_ends(self) -> Self:
        ttl = self.cache.session_ttl
        if self.store.durability == "write_back" and 0 < ttl <= 2 * self.store.write_interval:
            raise ValueError(f"cache.session_ttl: must be more than twice store.write_interval, not {ttl:g}")
        return self


def load_settings(file: Path | None, flags: Mapping[str, Any]) -> BackendSettings:
    """The settings from all sources.

    `file`: a TOML file, None for none. `flags`: what the command line says, nested like the settings, strings allowed
    for numbers. Raises ConfigError with every problem found.
    """
    from_file = {} if file is None else _read_toml(file)
    try:
        # Alone and strictly first: TOML has types, so "5" for a number is a mistake there, as it is not elsewhere.
        BackendSettings.model_validate(from_file, strict=True)
    except ValidationError as error:
        raise ConfigError([_line(problem["loc"], problem) for problem in error.errors()]) from error
    if unknown := _unknown_variables():
        raise ConfigError([f"{name}: unknown setting in the environment" for name in unknown])

    class Sources(BackendSettings, BaseSettings):
        model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_nested_delimiter="__")

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the names are the library's
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, init_kwargs=from_file)

    try:
        return Sources(**flags)
    except ValidationError as error:
        raise ConfigError([_line(problem["loc"], problem) for problem in error.errors()]) from error
    except SettingsError as error:
        raise ConfigError([f"{ENV_PREFIX}*: {error}"]) from error


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"config: {file}: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"config: {file}: not UTF-8 text"]) from error
    except ValueError as error:
        raise ConfigError([f"config: {file}: {error}"]) from error


def _unknown_variables() -> list[str]:
    """Variables that name no setting. The library looks for names it knows, and would not see these."""
    return [
        name
        for name in sorted(os.environ)
        if name.upper().startswith(ENV_PREFIX)
        and not _KUBERNETES_NAMES.match(key := name[len(ENV_PREFIX) :].upper())
        and key.lower().split("__")[0] not in BackendSettings.model_fields
    ]


def _line(location: tuple[int | str, ...], problem: Mapping[str, Any]) -> str:
    key = ".".join(map(str, location))
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown setting"
    if problem["type"] == "model_type":
        return f"{key}: must be a table, not {problem['input']!r}"
    text = str(problem["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    if problem["type"] == "string_pattern_mismatch":
        text = _PATTERNS[key]
    elif problem["type"].endswith("_parsing"):
        text = text.partition(", ")[0]  # what follows says that a text is none
    if not key:
        return text  # of settings that do not go together, which it names
    if key in _SECRET or isinstance(problem["input"], dict):  # a table may hold a secret, too
        return f"{key}: {text}"
    return f"{key}: {text}" if repr(problem["input"]) in text else f"{key}: {text}, not {problem['input']!r}"
