"""The servers behind the proxies: three nghttpd, each answering every call with one prepared response.

nghttpd answers a POST like a GET, with a file, and knows its content type by the file name's extension only. gRPC
clients insist on `application/grpc`, so the method of the benchmark has an extension: `/chat.ChatService/PostMessage`
`.grpc`. The trailers come from `--trailer`. Each server has a directory of its own, so that its response names it.
"""

from __future__ import annotations

import contextlib
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from districhat import chat_pb2

from bench.process import Process, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

METHOD = "/chat.ChatService/PostMessage.grpc"
COUNT = 3
_READY_WITHIN = 10.0


@dataclass(frozen=True)
class Backends:
    """Running servers, in the order of their ids."""

    addresses: tuple[str, ...]
    ids: tuple[str, ...]
    reply_size: int
    """Bytes of DATA in every answer, the same for all."""
    processes: tuple[Process, ...]


def framed(message: bytes) -> bytes:
    """A gRPC message on the wire: not compressed, its length, itself."""
    return struct.pack(">BI", 0, len(message)) + message


def reply(server_id: str) -> bytes:
    """The response of one server as DATA bytes: about 100."""
    response = chat_pb2.ChatResponse(
        success=True,
        server_id=server_id,
        cache_location=chat_pb2.CACHE_L1,
        message_count=42,
        reply="An answer of ordinary length to a message of ordinary length, in one sentence.",
    )
    return framed(response.SerializeToString())


@contextlib.contextmanager
def running(nghttpd: str, directory: Path, cpus: frozenset[int]) -> Iterator[Backends]:
    """Three servers on free loopback ports, ended on the way out."""
    types = directory / "mime.types"
    types.write_text("application/grpc grpc\n", encoding="utf-8")
    ids = tuple(f"bench-{number}" for number in range(1, COUNT + 1))
    with contextlib.ExitStack() as stack:
        ports, processes = [], []
        for server_id in ids:
            port = free_port()
            file = directory / server_id / METHOD.removeprefix("/")
            file.parent.mkdir(parents=True)
            file.write_bytes(reply(server_id))
            command = [
                *(nghttpd, "--no-tls", "--address", "127.0.0.1"),
                *("--htdocs", str(directory / server_id), "--mime-types-file", str(types)),
                *("--trailer", "grpc-status: 0"),
                # The default of 100 could make a proxy with one connection per backend queue: 256 calls on 3.
                *("--max-concurrent-streams", "1000"),
                str(port),
            ]
            process = stack.enter_context(Process(server_id, command, cpus, directory / f"{server_id}.log"))
            process.wait_ready(port, None, _READY_WITHIN)
            ports.append(port)
            processes.append(process)
        yield Backends(
            addresses=tuple(f"127.0.0.1:{port}" for port in ports),
            ids=ids,
            reply_size=len(reply(ids[0])),
            processes=tuple(processes),
        )
