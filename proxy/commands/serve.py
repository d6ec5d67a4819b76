"""`districhat serve`: runs the proxy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.commands import config
from proxy.settings import load_settings

if TYPE_CHECKING:
    from pathlib import Path


def serve(config_file: Path | None, *, take_over: bool) -> int:
    """Run until a signal ends it, or a successor takes its port. `take_over`: be such a successor.

    Raises ConfigError for bad settings, a port in use among them.
    """
    path = config.find(config_file)
    settings = load_settings(path)
    from proxy import server  # noqa: PLC0415 - the data path is loaded only once the settings are known to be good
    from proxy.transport.tls import Tls  # noqa: PLC0415 - as above

    Tls(settings.listener.tls, settings.upstream.tls)  # so that all that is wrong with the files is said at once

    return server.serve(settings, path, take_over=take_over)
