"""DistriChat itself, as `districhat serve` runs it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from bench.peers.base import Peer

if TYPE_CHECKING:
    from bench.peers.base import Setup


def _command(setup: Setup) -> list[str]:
    config = setup.directory / "proxy.toml"
    config.write_text(configuration(setup), encoding="utf-8")
    return [sys.executable, "-m", "proxy", "serve", "--config", str(config)]


def configuration(setup: Setup) -> str:
    """Defaults, plus a route for the benchmark's method that does what the built-in one of PostMessage does."""
    endpoints = "".join(
        f'\n[[endpoints]]\nid = "bench-{number}"\naddress = "{address}"\n'
        for number, address in enumerate(setup.backends, 1)
    )
    route = f'\n[[routes]]\nmethod = "{setup.method}"\nkey = {{ field = "1" }}\ntimeout = 10.0\n'
    return f'[listener]\naddress = "127.0.0.1:{setup.port}"\n{endpoints}{route}'


PEER = Peer(
    name="districhat",
    about="this project: `districhat serve`, default settings, chat id read from the message",
    command=_command,
    calls=40_000,
    ready=" ready on ",
    packages=("districhat", "ngh2", "uvloop"),
)
