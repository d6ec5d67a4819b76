"""`districhat-backend`: the command that runs one reference server until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from backend.errors import ConfigError
from backend.server import ChatServer
from backend.settings import ENV_PREFIX, load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backend.settings import BackendSettings

_FLAGS = {
    "id": ("id",),
    "address": ("address",),
    "store": ("store", "url"),
    "l1": ("cache", "l1_capacity"),
    "l2": ("cache", "l2_capacity"),
}
"""Flag to key path."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a server; returns when it has drained. `argv`: without the command's name, None for the process's own.

    Prints one line on stdout once it listens: `districhat-backend ID ready on HOST:PORT`. A second signal cuts
    the drain's notice short. Returns 0 after a drain, 1 if acknowledged messages could not be written then, 2 if it
    cannot start as configured, with one line per problem on stderr. Raises SystemExit for `--help` and for unknown
    flags, as argparse does.
    """
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        return uvloop.run(_serve(load_settings(arguments.config, _given(arguments))))
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return 2


async def _serve(settings: BackendSettings) -> int:
    loop = asyncio.get_running_loop()
    stop, again = asyncio.Event(), asyncio.Event()

    def signalled() -> None:
        (again if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    server = await ChatServer.start(settings)
    print(f"districhat-backend {settings.id} ready on {server.address}", flush=True)
    await stop.wait()
    drain, hurry = loop.create_task(server.drain()), loop.create_task(again.wait())
    await asyncio.wait((drain, hurry), return_when=asyncio.FIRST_COMPLETED)
    if not drain.done():
        await server.drain()  # a second signal: the notice is over
    hurry.cancel()
    await drain
    return 1 if server.lost else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="districhat-backend",
        description="A chat server that keeps sessions in two levels of memory over a store.",
        epilog=f"Flags come before environment variables ({ENV_PREFIX}CACHE__L1_CAPACITY=5), these before the file.",
    )
    version = f"districhat-backend {importlib.metadata.version('districhat')}"
    parser.add_argument("--version", action="version", version=version)
    parser.add_argument("--id", help="the server's name (Server-A)")
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="where to listen (127.0.0.1:50051); port 0: any free one"
    )
    parser.add_argument(
        "--store",
        metavar="URL",
        help="memory: (the default), redis://HOST:PORT/DB, or sqlite:///PATH: sqlite:///var/chats.db is /var/chats.db, "
        "sqlite:///./chats.db is here",
    )
    parser.add_argument("--l1", metavar="N", help="sessions in L1 (5)")
    parser.add_argument("--l2", metavar="N", help="sessions in L2 (20)")
    parser.add_argument("--config", metavar="FILE", type=Path, help="a TOML file; config/backend.toml shows every key")
    return parser


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The flags that were given, nested like the settings."""
    given: dict[str, Any] = {}
    for flag, (*groups, key) in _FLAGS.items():
        value = getattr(arguments, flag)
        if value is not None:
            table = given
            for group in groups:
                table = table.setdefault(group, {})
            table[key] = value
    return given
