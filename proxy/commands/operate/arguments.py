"""The command line of the commands that ask a running proxy. Loads what runs them only when they run."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - it has no other name
    AddCommand = Callable[..., argparse.ArgumentParser]

NAMES = frozenset({"status", "top", "explain", "plan", "drain", "undrain", "reload"})


def add(commands: Commands, add_command: AddCommand, json: argparse.ArgumentParser) -> None:
    """Add the commands. `add_command(commands, name, summary, *parents)` makes one."""
    where = _where()

    def command(name: str, summary: str, wrong: str = "") -> argparse.ArgumentParser:
        parser = add_command(commands, name, summary, where, json)
        parser.epilog = _exit_status(wrong)
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        return parser

    command("status", "the state of a running proxy and of each server", "it is not ready, or a server is out")
    top = command("top", "rates and latencies of each server, live; with --json a line each time")
    top.add_argument(
        "--interval", type=_positive, default=2.0, metavar="SECONDS", help="between two looks (default: 2)"
    )
    top.add_argument("--count", type=_count, default=0, metavar="N", help="end after N looks (default: at Ctrl-C)")
    explain = command("explain", "where a call with this key would go now, and why", "it would be refused")
    explain.add_argument("key", metavar="KEY", help="a chat id")
    explain.add_argument("--hex", action="store_true", help="KEY is given in hexadecimal digits: keys are bytes")
    _add_plan(command)
    drain = command("drain", "have new calls walk past a server; it finishes those that it has", _DRAIN_WRONG)
    drain.add_argument("id", metavar="ID", help="of the server")
    drain.add_argument("--reason", default="", metavar="TEXT", help="for the others who look at it")
    drain.add_argument("--force", action="store_true", help="also if no other server is available")
    drain.add_argument("--wait", action="store_true", help="return when it has no call left: it can be stopped then")
    drain.add_argument(
        "--timeout", type=_positive, default=0.0, metavar="SECONDS", help="of --wait (default: as long as it takes)"
    )
    undrain = command("undrain", "take back a drain")
    undrain.add_argument("id", metavar="ID", help="of the server")
    command("reload", "have the proxy read its configuration again, as on SIGHUP")


def _add_plan(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    plan = command("plan", "what a change of the servers would move, before it is made; nothing is changed")
    plan.add_argument(
        "change",
        choices=("add", "remove", "reweight"),
        help="add a server, remove one (a drain moves the same), or give one another weight",
    )
    plan.add_argument("ids", nargs="+", metavar="ID[=WEIGHT]", help="of the servers; the weight for add and reweight")


_DRAIN_WRONG = "it is the last server that is available, or still had calls at the end of --timeout"


def _exit_status(wrong: str) -> str:
    """The end of a command's help. `wrong`: what its status 1 says; empty: it has none."""
    lines = ["exit status:", "  0  all well"]
    if wrong:
        lines.append(f"  1  {wrong}")
    return "\n".join([*lines, "  2  a mistake on the command line, in the configuration or in the token", _UNREACHABLE])


_UNREACHABLE = "  3  the proxy cannot be reached"


def run(arguments: argparse.Namespace) -> int:
    """Run the command. Raises CommandError and ConfigError."""
    # Imports inside, see the module's docstring.
    # ruff: noqa: PLC0415
    from proxy.commands.operate.client import AdminClient
    from proxy.commands.operate.where import Options, find

    options = Options(arguments.admin, arguments.token, arguments.token_file, arguments.config)
    client = AdminClient(*find(options))
    as_json = arguments.json
    match arguments.command:
        case "status":
            from proxy.commands.operate.status import status

            return status(client, as_json=as_json)
        case "top":
            from proxy.commands.operate.top import top

            return top(client, interval=arguments.interval, count=arguments.count, as_json=as_json)
        case "explain":
            from proxy.commands.operate.explain import explain, key_of

            return explain(client, key_of(arguments.key, in_hex=arguments.hex), as_json=as_json)
        case "plan":
            from proxy.commands.operate.plan import plan

            return plan(client, arguments.change, arguments.ids, as_json=as_json)
        case "drain":
            from proxy.commands.operate.drain import drain

            if arguments.timeout and not arguments.wait:
                raise ConfigError(["--timeout: is how long --wait waits: give both, or neither"])
            return drain(
                client,
                arguments.id,
                reason=arguments.reason,
                force=arguments.force,
                wait=arguments.wait,
                timeout=arguments.timeout,
                as_json=as_json,
            )
        case "undrain":
            from proxy.commands.operate.drain import undrain

            return undrain(client, arguments.id, as_json=as_json)
        case _:
            from proxy.commands.operate.reload import reload

            return reload(client, as_json=as_json)


def _where() -> argparse.ArgumentParser:
    where = argparse.ArgumentParser(add_help=False)
    group = where.add_argument_group(
        "which proxy",
        "Without these: DISTRICHAT_ADMIN__ADDRESS and DISTRICHAT_ADMIN__TOKEN, else\n"
        "[admin] of ./districhat.toml, else 127.0.0.1:9901 without a token.",
    )
    group.add_argument("--admin", metavar="HOST:PORT", help="its admin server")
    group.add_argument(
        "--config", type=Path, metavar="FILE", help="its configuration, for address and token in [admin]"
    )
    group.add_argument("--token", metavar="TOKEN", help="the token; others on this machine can see it here")
    group.add_argument("--token-file", type=Path, metavar="FILE", help="a file with the token, and nothing else")
    return where


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.05 <= value <= 86_400:
        raise argparse.ArgumentTypeError(f"must be a number of seconds from 0.05 to 86400, got {text!r}")
    return value
