"""The servers behind the proxies: three nghttpd, each answering every call with one prepared response, small or large;
for token streams, three of `bench.token_server`.

nghttpd answers a POST like a GET, with a file, and knows its content type by the file name's extension only. gRPC
clients insist on `application/grpc`, so the method of the benchmark has an extension: `/chat.ChatService/PostMessage`
`.grpc`. The trailers come from `--trailer`. Each server has a directory of its own, so that its response names it.
"""

from __future__ import annotations

import contextlib
import struct
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from districhat import chat_pb2

from bench.process import Process, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

METHODS = "/chat.ChatService/*"
METHOD = "/chat.ChatService/PostMessage.grpc"
LARGE_METHOD = "/chat.ChatService/PostLargeMessage.grpc"
TOKENS_METHOD = "/chat.ChatService/StreamTokens"
COUNT = 3
LARGE = 524_288
"""Bytes of the text in a large message."""
TOKENS = 200
"""Messages in one token stream."""
WINDOW_BITS = 20
"""nghttpd's windows are 1 MiB a stream, 16 times as much a connection: with the protocol's default of 64 KiB a large
request would measure round trips."""
_READY_WITHIN = 10.0


@dataclass(frozen=True)
class Backends:
    """Running servers, in the order of their ids."""

    addresses: tuple[str, ...]
    ids: tuple[str, ...]
    reply_sizes: dict[str, int]
    """Bytes of DATA in an answer, by method, the same for all servers."""
    processes: tuple[Process, ...]


def token(server_id: str) -> bytes:
    """One message of a token stream as DATA bytes: about 30."""
    return framed(chat_pb2.ChatResponse(success=True, server_id=server_id, reply="token ").SerializeToString())


def framed(message: bytes) -> bytes:
    """A gRPC message on the wire: not compressed, its length, itself."""
    return struct.pack(">BI", 0, len(message)) + message


def reply(server_id: str, text_size: int | None = None) -> bytes:
    """The response of one server as DATA bytes: about 100, or a little over `text_size`."""
    text = "An answer of ordinary length to a message of ordinary length, in one sentence."
    response = chat_pb2.ChatResponse(
        success=True,
        server_id=server_id,
        cache_location=chat_pb2.CACHE_L1,
        message_count=42,
        reply=text if text_size is None else "x" * text_size,
    )
    return framed(response.SerializeToString())


@contextlib.contextmanager
def running(nghttpd: str, directory: Path, cpus: frozenset[int]) -> Iterator[Backends]:
    """Three nghttpd on free loopback ports, ended on the way out."""
    types = directory / "mime.types"
    types.write_text("application/grpc grpc\n", encoding="utf-8")
    replies = {METHOD: None, LARGE_METHOD: LARGE}

    def command(server_id: str, port: int) -> list[str]:
        for method, text_size in replies.items():
            file = directory / server_id / method.removeprefix("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(reply(server_id, text_size))
        return [
            *(nghttpd, "--no-tls", "--address", "127.0.0.1"),
            *("--htdocs", str(directory / server_id), "--mime-types-file", str(types)),
            *("--trailer", "grpc-status: 0"),
            # The default of 100 could make a proxy with one connection per backend queue: 256 calls on 3.
            *("--max-concurrent-streams", "1000"),
            *("--window-bits", str(WINDOW_BITS), "--connection-window-bits", str(WINDOW_BITS + 4)),
            str(port),
        ]

    sizes = {method: len(reply(_ids()[0], text_size)) for method, text_size in replies.items()}
    with _running(command, sizes, directory, cpus) as backends:
        yield backends


@contextlib.contextmanager
def running_tokens(directory: Path, cpus: frozenset[int]) -> Iterator[Backends]:
    """Three `bench.token_server` on free loopback ports, ended on the way out."""

    def command(server_id: str, port: int) -> list[str]:
        return [sys.executable, "-m", "bench.token_server", str(port), server_id]

    with _running(command, {TOKENS_METHOD: TOKENS * len(token(_ids()[0]))}, directory, cpus) as backends:
        yield backends


def _ids() -> tuple[str, ...]:
    return tuple(f"bench-{number}" for number in range(1, COUNT + 1))


@contextlib.contextmanager
def _running(
    command: Callable[[str, int], list[str]], reply_sizes: dict[str, int], directory: Path, cpus: frozenset[int]
) -> Iterator[Backends]:
    with contextlib.ExitStack() as stack:
        ports, processes = [], []
        for server_id in _ids():
            port = free_port()
            process = stack.enter_context(
                Process(server_id, command(server_id, port), cpus, directory / f"{server_id}.log")
            )
            process.wait_ready(port, None, _READY_WITHIN)
            ports.append(port)
            processes.append(process)
        yield Backends(
            addresses=tuple(f"127.0.0.1:{port}" for port in ports),
            ids=_ids(),
            reply_sizes=reply_sizes,
            processes=tuple(processes),
        )
