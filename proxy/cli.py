"""The `districhat` command: what can be asked for, and how it ends.

Exit status: 0 all well, 1 the command ran and found something wrong, 2 a mistake in the configuration or on the command
line, 3 the proxy cannot be reached (commands that ask a running one), 130 interrupted. Each command imports its own
module only when it runs, so that `serve` does not load the tables of `ring` or the gRPC client of `demo`, and a bad
configuration is told without loading the data path.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import sys
from pathlib import Path

from proxy import hangup
from proxy.build_kind import COMPILED
from proxy.commands import output
from proxy.commands.operate import arguments as operate
from proxy.errors import CommandError, ConfigError

_EPILOG = """\
examples:
  districhat demo                               see chats stick, a server die, and every message still succeed
  districhat demo --store redis                 the same with sessions in a Redis
  districhat serve --config config/minimal.toml
  districhat serve --takeover                   replace the running proxy without a failed call
  districhat check --config proxy.toml          every mistake in it, with its key
  districhat ring locate chat-007               who owns a chat, and who takes over
  districhat ring share --json                  how even the load is

of a running proxy, by its [admin] address:
  districhat status                             every server at a glance
  districhat top                                rates and latencies, live
  districhat explain chat-007                   where a call would go now, and why
  districhat plan add gpu-4=2.0                 which chats would move, before they do
  districhat drain gpu-2 --wait                 before it is stopped; districhat undrain gpu-2

exit status: 0 all well, 1 something is wrong, 2 a mistake in the configuration or on the command line, 3 the proxy
cannot be reached, 130 interrupted

Without --config the commands read ./districhat.toml. Any setting can be overridden by the environment:
  DISTRICHAT_LISTENER__ADDRESS=0.0.0.0:50050 districhat serve --config proxy.toml
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command (`argv` without the program's name; None: the process's) and return its exit status.

    Exits by SystemExit only where argparse does: `--help`, `--version`, and mistakes on the command line.
    """
    output.prepare_streams()
    parser = _parser()
    arguments = parser.parse_args(argv)
    status = 0
    try:
        status = _run(arguments)
        sys.stdout.flush()
    except ConfigError as error:
        return _failed(arguments, error.problems, 2)
    except CommandError as error:
        return _failed(arguments, str(error).splitlines(), error.exit_status)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader (`| head`) has what it wanted
        output.give_stdout_up()
    except OSError as error:
        if error.errno not in output.FULL:
            raise
        output.give_stdout_up()
        output.say(f"cannot write to stdout: {str(error.strerror).lower()}")
        return status if arguments.command == "serve" else 1
    return status


def _failed(arguments: argparse.Namespace, problems: list[str], status: int) -> int:
    """Say what is wrong: on stderr, and for programs on stdout, too."""
    for problem in problems:
        output.say(problem)
    if getattr(arguments, "json", False):
        print(json.dumps({"problems": problems}, ensure_ascii=False))
    return status


def _run(arguments: argparse.Namespace) -> int:
    # Imports inside, see the module's docstring.
    # ruff: noqa: PLC0415
    if arguments.command == "serve":
        hangup.note_from_now_on()  # what follows takes a good part of a second
        from proxy.commands.serve import serve

        return serve(arguments.config, take_over=arguments.takeover)
    if arguments.command == "check":
        from proxy.commands.check import check

        return check(arguments.config, as_json=arguments.json)
    if arguments.command == "ring":
        from proxy.commands.ring import locate, share

        if arguments.question == "locate":
            return locate(arguments.config, arguments.chat_ids, as_json=arguments.json)
        return share(arguments.config, as_json=arguments.json)
    if arguments.command in operate.NAMES:
        return operate.run(arguments)
    if arguments.serve:
        from proxy.commands.demo.stay import serve_until_stopped

        return serve_until_stopped(port=50050 if arguments.port is None else arguments.port, store=arguments.store)
    from proxy.commands.demo.scenario import Scenario
    from proxy.commands.demo.simulation import run

    scenario = Scenario(messages=arguments.messages, chats=arguments.chats, kill_after=arguments.kill_after)
    return run(scenario, delay=arguments.delay, port=arguments.port or 0, store=arguments.store)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="districhat",
        description="A sticky gRPC proxy: every chat stays with the server that holds its session.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = importlib.metadata.version("districhat") + (" (compiled)" if COMPILED else "")
    parser.add_argument("--version", action="version", version=f"districhat {version}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    config = argparse.ArgumentParser(add_help=False)
    config.add_argument("--config", type=Path, metavar="FILE", help="TOML file (default: ./districhat.toml)")
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument(
        "--json", action="store_true", help='for programs: one JSON object on stdout, {"problems": [...]} of a failure'
    )

    serve = _command(commands, "serve", "run the proxy until SIGTERM or Ctrl-C; SIGHUP reloads the file", config)
    serve.add_argument(
        "--takeover",
        action="store_true",
        help="take the port from the proxy that listens on it, which then finishes its calls and exits: a restart "
        "without a refused connection or a failed call (Linux)",
    )
    _command(commands, "check", "say whether a configuration is valid, or everything wrong with it", config, as_json)
    ring = _command(commands, "ring", "ask the ring about owners and shares")
    questions = ring.add_subparsers(dest="question", metavar="QUESTION", required=True)
    locate = _command(questions, "locate", "the owner of each chat, and who takes over, in ring order", config, as_json)
    locate.add_argument("chat_ids", nargs="+", type=_chat_id, metavar="CHAT_ID")
    _command(questions, "share", "the share of the ring each server owns, and peak/mean", config, as_json)
    operate.add(commands, _command, as_json)
    _add_demo(commands)
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    *parents: argparse.ArgumentParser,
) -> argparse.ArgumentParser:
    description = f"{summary[0].upper()}{summary[1:]}."
    return commands.add_parser(name, help=summary, description=description, parents=list(parents))


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = _command(commands, "demo", "the simulation: three real servers, one is killed, every message succeeds")
    demo.add_argument("--messages", type=_count, default=50, metavar="N", help="messages to send (default: 50)")
    demo.add_argument("--chats", type=_count, default=25, metavar="N", help="chats, taken in turn (default: 25)")
    demo.add_argument(
        "--store",
        type=_store,
        default="sqlite",
        metavar="STORE",
        help="where the servers keep sessions: sqlite (default), redis (one is started, and ended), or "
        "redis://HOST:PORT/DB, one that is there, with an empty database",
    )
    demo.add_argument("--delay", type=_seconds, default=0.0, metavar="SECONDS", help="pause after each message")
    demo.add_argument(
        "--kill-after",
        type=_count_or_none,
        default=10,
        metavar="N",
        help="messages before Server-B gets SIGKILL (default: 10; 0: it lives)",
    )
    demo.add_argument(
        "--port",
        type=_base_port,
        metavar="BASE",
        help="the proxy's port, the servers take the three after it (default: free ports; with --serve 50050)",
    )
    demo.add_argument(
        "--serve", action="store_true", help="send nothing: keep servers and proxy up until Ctrl-C, for other clients"
    )


def _store(text: str) -> str:
    if text not in ("sqlite", "redis") and not text.startswith("redis://"):
        raise argparse.ArgumentTypeError(f"must be sqlite, redis or redis://HOST:PORT/DB, got {text!r}")
    return text


def _chat_id(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError("a chat id is UTF-8 text") from error
    return text


def _count(text: str) -> int:
    value = _count_or_none(text)
    if value == 0:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _count_or_none(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"must be a number of seconds from 0 to 3600, got {text!r}")
    return value


def _base_port(text: str) -> int:
    value = _count_or_none(text)
    if value > 65_532:
        raise argparse.ArgumentTypeError(f"must leave room for three more ports below 65536, got {text!r}")
    return value
