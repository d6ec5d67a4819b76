"""The whole configuration of the proxy: TOML file and environment, checked in one place.

`Settings` is a plain value: made directly, it reads neither file nor environment. `load_settings` is the one place that
reads both. What it found is validated strictly (`virtual_nodes = "100"` is a mistake, as is `weight = true`), which is
why variables, text by nature, are first read as what their key expects.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from pathlib import PurePath
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from proxy.admin.call_records import DecisionSettings
from proxy.admin.logs import LogSettings
from proxy.admin.settings import AdminSettings
from proxy.admin.tracing_settings import TracingSettings
from proxy.balancing.hashing import vnodes_for_weight
from proxy.balancing.settings import MAX_RING, RingSettings
from proxy.cluster.address import Address
from proxy.cluster.outlier import OutlierSettings
from proxy.cluster.settings import EndpointSettings
from proxy.config_problems import key_path, problems_of, shown, unknown_key
from proxy.control.settings import HealthSettings
from proxy.errors import ConfigError
from proxy.forwarding.failback import FailbackSettings
from proxy.forwarding.settings import LimitSettings, MetricsSettings, RetrySettings, RouteSettings, hidden
from proxy.transport.settings import ListenerSettings, UpstreamSettings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from pydantic.fields import FieldInfo

ENV_PREFIX = "DISTRICHAT_"
_DELIMITER = "__"
_NOT_OURS = f"{ENV_PREFIX}BACKEND_"  # the reference server's variables
_TOO_DEEP = "cannot be read: lists or tables are nested too deeply"


class Settings(BaseModel):
    """What `districhat serve` runs with. Immutable; a reload makes a new one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    listener: ListenerSettings = ListenerSettings()
    ring: RingSettings = RingSettings()
    endpoints: tuple[EndpointSettings, ...] = Field(min_length=1)
    routes: tuple[RouteSettings, ...] = ()
    retry: RetrySettings = RetrySettings()
    failback: FailbackSettings = FailbackSettings()
    limits: LimitSettings = LimitSettings()
    outlier: OutlierSettings = OutlierSettings()
    upstream: UpstreamSettings = UpstreamSettings()
    health: HealthSettings = HealthSettings()
    admin: AdminSettings = AdminSettings()
    metrics: MetricsSettings = MetricsSettings()
    decisions: DecisionSettings = DecisionSettings()
    log: LogSettings = LogSettings()
    tracing: TracingSettings = TracingSettings()

    @field_validator("endpoints")
    @classmethod
    def _ids_are_unique(cls, value: tuple[EndpointSettings, ...]) -> tuple[EndpointSettings, ...]:
        if duplicates := _duplicates(endpoint.id for endpoint in value):
            raise ValueError("; ".join(f"[{index}].id: {text}" for index, text in duplicates.items()))
        return value


def load_settings(path: Path | None, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of the TOML file at `path` (None: no file), overridden by `DISTRICHAT_SECTION__KEY` variables.

    Tables of the two are merged key by key; a list (endpoints, routes) is given by a variable only whole, as JSON.
    `environ` stands for the process's environment, which is read when it is None.

    Raises ConfigError with every problem there is, except that a file that cannot be read or parsed is the only one.
    """
    environment = _Environment(os.environ if environ is None else environ)
    data = _merged(_read(path) if path is not None else {}, environment.values())
    try:
        # As JSON, because strict validation of Python objects would refuse dicts and lists where models and tuples
        # are wanted. Dates, which TOML has and no setting takes, become what none takes, either.
        text = json.dumps(data, default=_as_json)
        settings = Settings.model_validate_json(text, strict=True)
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":  # the only way in which what was dumped just now can be
            raise ConfigError([f"{path or 'the environment'}: {_TOO_DEEP}"]) from error
        found = problems_of(error, Settings, data, environment.variables)
    else:
        found = {}
    for index, text in _duplicate_ids(data).items():
        found.pop("endpoints", None)  # the same, said less precisely
        found.setdefault(key_path(("endpoints", index, "id")), text)
    if not found:
        found = _nameless(settings) | _contradictions(settings)
    problems = [f"{key}: {text}" for key, text in found.items()] + environment.problems
    if problems:
        raise ConfigError(problems)
    return settings


def _as_json(value: object) -> object:
    """Secrets and paths are what the environment's text was read as."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return str(value) if isinstance(value, PurePath) else [[str(value)]]


class _Schema(Settings, BaseSettings):
    """The keys as pydantic-settings wants to see them. Never instantiated."""

    model_config = SettingsConfigDict(strict=True)  # makes the source read "1.5" as a number before validation


class _Environment(EnvSettingsSource):
    """What the environment says, with a note of which variable said it."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.problems: list[str] = []
        """Variables that no key answers to, as lines."""
        self.variables: dict[str, str] = {}
        """Dotted path of every accepted variable (`listener.address`) to its name."""
        self._values: dict[str, str] = {}
        for name, value in environ.items():
            if name.upper().startswith(ENV_PREFIX) and not name.upper().startswith(_NOT_OURS):
                self._take(name, value)
        super().__init__(_Schema, env_prefix=ENV_PREFIX, env_nested_delimiter=_DELIMITER)

    def values(self) -> dict[str, object]:
        """The settings it holds, nested like the file's. Raises ConfigError for what cannot be held."""
        try:
            return self()
        except RecursionError as error:
            raise ConfigError([f"the environment: {_TOO_DEEP}"]) from error

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: object) -> object:
        """Keeps what is not JSON as it is, so that validation reports it with all else."""
        try:
            decoded: object = super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value
        return decoded

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name.lower(): value for name, value in self._values.items()}

    def _take(self, name: str, value: str) -> None:
        path = name[len(ENV_PREFIX) :].lower().replace(_DELIMITER, ".")
        section = path.partition(".")[0]
        sections = list(Settings.model_fields)
        if section not in sections:
            # Without "__" it may be anybody's: Kubernetes sets DISTRICHAT_SERVICE_HOST and DISTRICHAT_PORT for a
            # service of this name. Only what is a misspelt section beyond doubt is refused then.
            if "." in path or difflib.get_close_matches(path, sections, n=1, cutoff=0.85):
                self.problems.append(f"{path}: {unknown_key(section, sections)} (from {name})")
        elif not _is_unicode(value):
            self.problems.append(f"{path}: must be UTF-8 text (from {name})")
        else:
            self._values[name] = value
            self.variables[path] = name


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # bytes that were not UTF-8 arrive as lone surrogates
        return False
    return True


def _read(path: Path) -> dict[str, object]:
    try:
        text = path.read_bytes().decode("utf-8-sig")  # some editors begin a file with a byte order mark
        return tomllib.loads(text)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise ConfigError([f"{path}: cannot be read: {reason}"]) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError([f"{path}:{line}: not UTF-8 text"]) from error
    except tomllib.TOMLDecodeError as error:
        # Python 3.11 gives the place only inside the message.
        message = str(error)
        place = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", message)
        line = int(place[1]) if place and place[1] else max(1, len(text.splitlines()))
        column = f" (column {place[2]})" if place and place[2] else ""
        reason = message[: place.start()] if place else message
        raise ConfigError([f"{path}:{line}: not valid TOML: {reason}{column}"]) from error
    except RecursionError as error:
        raise ConfigError([f"{path}: {_TOO_DEEP}"]) from error
    except ValueError as error:
        # Python reads no integer of more digits than this (sys.set_int_max_str_digits).
        raise ConfigError([f"{path}: cannot be read: a number of thousands of digits"]) from error


def _merged(below: Mapping[str, object], above: Mapping[str, object]) -> dict[str, object]:
    """`above` over `below`; tables are merged, everything else is replaced."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _nameless(settings: Settings) -> dict[str, str]:
    """What to say about each endpoint that TLS would have no name to verify for."""
    tls = settings.upstream.tls
    if tls is None or tls.server_name is not None or tls.allowed_servers:
        return {}
    return {
        key_path(("endpoints", index, "server_name")): "is required: a unix socket has no host that a certificate names"
        for index, endpoint in enumerate(settings.endpoints)
        if endpoint.tls and endpoint.server_name is None and Address.parse(endpoint.address).path
    }


def _contradictions(settings: Settings) -> dict[str, str]:
    """What to say about settings that are fine each by itself."""
    found = {}
    if settings.log.slow_calls and not settings.metrics.enabled:
        found["log.slow_calls"] = "needs metrics.enabled: without, calls are not timed"
    listener = Address.parse(settings.listener.address)
    if settings.admin.address and _meet(Address.parse(settings.admin.address), listener):
        found["admin.address"] = "is the listener's: give it a port of its own"
    for index, endpoint in enumerate(settings.endpoints):
        if _meet(Address.parse(endpoint.address), listener):
            where = key_path(("endpoints", index, "address"))
            found[where] = "is the listener's: every call would come back for ever"
    for index, before in hidden(settings.routes).items():
        found[key_path(("routes", index, "method"))] = f"is never reached: routes[{before}] takes its calls"
    points = sum(vnodes_for_weight(endpoint.weight, settings.ring.virtual_nodes) for endpoint in settings.endpoints)
    if points > MAX_RING:
        found["ring.virtual_nodes"] = (
            f"makes {points:,} points with the weights there are, more than {MAX_RING:,}: lower it, or the weights"
        )
    return found


def _meet(address: Address, listener: Address) -> bool:
    """Whether who connects to `address` reaches the listener, as far as that can be said without asking anybody."""
    if address.path or not address.port:
        return address == listener and bool(address.path)
    here = address.host in _LOOPBACK | _ALL
    return address == listener or (address.port == listener.port and here and listener.host in _ALL)


_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_ALL = frozenset({"0.0.0.0", "::", "*"})


def _duplicates(ids: Iterable[object]) -> dict[int, str]:
    """What to say about each position whose id stood before."""
    first: dict[object, int] = {}
    duplicates: dict[int, str] = {}
    for index, id_ in enumerate(ids):
        if isinstance(id_, str) and first.setdefault(id_, index) != index:
            duplicates[index] = f"duplicate id {shown(id_)}, it is already endpoints[{first[id_]}]"
    return duplicates


def _duplicate_ids(data: Mapping[str, object]) -> dict[int, str]:
    """Of unvalidated data: so that duplicates are reported even when something else is wrong as well."""
    endpoints = data.get("endpoints")
    if not isinstance(endpoints, list):
        return {}
    return _duplicates(endpoint.get("id") if isinstance(endpoint, dict) else None for endpoint in endpoints)
