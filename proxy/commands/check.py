"""`districhat check`: is a configuration valid, and if not, everything that is wrong with it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from proxy.balancing.hashing import vnodes_for_weight
from proxy.commands import config
from proxy.errors import ConfigError
from proxy.forwarding.settings import BUILT_IN_ROUTES
from proxy.settings import load_settings
from proxy.transport.tls import Tls

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.settings import Settings


def check(config_file: Path | None, *, as_json: bool) -> int:
    """Print one line about valid settings and return 0; otherwise raise ConfigError.

    As JSON the verdict goes to stdout either way, and the status of invalid settings, 2, is returned.
    """
    try:
        path = config.find(config_file)
        settings = load_settings(path)
        Tls(settings.listener.tls, settings.upstream.tls)  # for what it finds wrong with the files
    except ConfigError as error:
        if not as_json:
            raise
        problems = [dict(zip(("key", "problem"), line.split(": ", 1), strict=True)) for line in error.problems]
        print(json.dumps({"valid": False, "problems": problems}, indent=2))
        return 2
    name = str(path) if path else "environment"
    if as_json:
        print(json.dumps({"valid": True, "config": name} | _facts(settings), indent=2))
    else:
        print(f"{name}: valid: {_summary(settings)}")
    return 0


def _virtual_nodes(settings: Settings) -> int:
    return sum(vnodes_for_weight(endpoint.weight, settings.ring.virtual_nodes) for endpoint in settings.endpoints)


def _facts(settings: Settings) -> dict[str, object]:
    return {
        "listener": settings.listener.address,
        "endpoints": [endpoint.model_dump() for endpoint in settings.endpoints],
        "virtual_nodes": _virtual_nodes(settings),
        "routes": [route.method for route in settings.routes],
        "built_in_routes": [route.method for route in BUILT_IN_ROUTES],
    }


def _summary(settings: Settings) -> str:
    endpoints, routes, points = len(settings.endpoints), len(settings.routes), _virtual_nodes(settings)
    return (
        f"{endpoints} endpoint{'s' * (endpoints != 1)} with {points} virtual node{'s' * (points != 1)}, "
        f"{routes} route{'s' * (routes != 1)} of its own before {len(BUILT_IN_ROUTES)} built in, "
        f"listener {settings.listener.address}"
    )
