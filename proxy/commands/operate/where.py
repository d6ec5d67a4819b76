"""Where the admin API is, and with which token to ask it."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from proxy.cluster.address import Address
from proxy.commands.config import DEFAULT_FILE
from proxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT: Final = "127.0.0.1:9901"
ADDRESS: Final = "DISTRICHAT_ADMIN__ADDRESS"
TOKEN: Final = "DISTRICHAT_ADMIN__TOKEN"  # noqa: S105 - the name of it

_HERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""What a server that listens on all interfaces is reached by from its own machine."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says about it; None: nothing."""

    admin: str | None = None
    token: str | None = None
    token_file: Path | None = None
    config: Path | None = None


def find(options: Options, environ: Mapping[str, str] = os.environ) -> tuple[Address, str]:
    """Address and token ("": none): from the options, else the environment, else [admin] of the configuration (that of
    `--config`, or ./districhat.toml if there is one), else the default port of this machine, without a token.

    Of the configuration only [admin] is looked at: a mistake elsewhere in it is no reason not to ask the proxy. Raises
    ConfigError.
    """
    known = options.admin is not None or ADDRESS in environ
    configured = _admin_table(options.config, needed=not known)
    address = _address(options, environ, configured)
    return address, _token(options, environ, configured)


def _address(options: Options, environ: Mapping[str, str], configured: Mapping[str, object]) -> Address:
    if options.admin is not None:
        said_by, text = "--admin", options.admin
    elif ADDRESS in environ:
        said_by, text = ADDRESS, environ[ADDRESS]
    else:
        said_by, text = "admin.address", str(configured.get("address", DEFAULT) or "")
    if not text:
        raise ConfigError([f"{said_by}: is empty: this proxy has no admin server; set an address and restart it"])
    text = text.removeprefix("http://").removesuffix("/")
    try:
        address = Address.parse(text)
    except ValueError as error:
        raise ConfigError([f"{said_by}: {error}"]) from error
    if address.path:
        raise ConfigError([f"{said_by}: the admin server has no unix sockets: expected host:port, got {text!r}"])
    if not address.port:
        raise ConfigError([f"{said_by}: give the port itself, as the proxy's log names it, with --admin HOST:PORT"])
    return Address(_HERE.get(address.host, address.host), address.port)


def _token(options: Options, environ: Mapping[str, str], configured: Mapping[str, object]) -> str:
    if options.token is not None:
        said_by, token = "--token", options.token
    elif options.token_file is not None:
        said_by = "--token-file"
        token = _read(options.token_file, said_by).decode("utf-8", "replace").strip()
    elif environ.get(TOKEN):
        said_by, token = TOKEN, environ[TOKEN]
    else:
        said_by, token = "admin.token", str(configured.get("token", ""))
    if not (token.isascii() and (token.isprintable() or not token)):
        raise ConfigError([f"{said_by}: a token is printable ASCII"])
    return token


def _admin_table(option: Path | None, *, needed: bool) -> Mapping[str, object]:
    """[admin] of the file. `needed`: nothing else says where the proxy is, so a file that is no TOML is a mistake, even
    if nobody has named it.
    """
    file = option if option is not None else DEFAULT_FILE
    if option is None and not file.exists():
        return {}
    try:
        table = tomllib.loads(_read(file, str(file)).decode()).get("admin", {})
    except ValueError as error:  # not TOML, or not UTF-8
        if option is None and not needed:
            return {}
        raise ConfigError(
            [f"{file}: not valid TOML ({error}); say where the proxy is with --admin HOST:PORT"]
        ) from error
    return table if isinstance(table, dict) else {}


def _read(file: Path, name: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError([f"{name}: cannot be read: {(error.strerror or type(error).__name__).lower()}"]) from error
