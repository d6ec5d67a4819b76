"""Which configuration a command works with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.errors import ConfigError
from proxy.settings import ENV_PREFIX, Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_FILE = Path("districhat.toml")


def find(option: Path | None, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The file of `--config`, else ./districhat.toml, else None when the environment alone names the endpoints.

    Raises ConfigError when there is nothing to read. Whether the file can be read is for `load_settings` to say.
    """
    if option is not None:
        return option
    if DEFAULT_FILE.exists():
        return DEFAULT_FILE
    if f"{ENV_PREFIX}ENDPOINTS" in environ:
        return None
    raise ConfigError([f"--config: no configuration: give --config FILE, or put a {DEFAULT_FILE} into this directory"])


def load(option: Path | None) -> Settings:
    """The settings a command runs with. Raises ConfigError."""
    return load_settings(find(option))
