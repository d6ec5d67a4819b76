"""The server that attackers' calls go to, as a process of its own: `python -m tests.attack.victim`.

Prints its address, and ends when stdin does. The end of a method's name says what it does: `Hold` never answers, `Big`
answers with 256 KiB, anything else with an empty message. It takes 8 KiB of metadata.
"""

from __future__ import annotations

import asyncio
import sys

import ngh2
import uvloop

OK = [(b":status", b"200"), (b"content-type", b"application/grpc")]
MAX_METADATA = 8192


class Victim(asyncio.Protocol):
    """One connection of the proxy."""

    def __init__(self) -> None:
        self.engine = ngh2.Connection(
            ngh2.Role.SERVER,
            ngh2.Configuration(stream_reset_rate_limit=(2**31, 2**31), glitch_rate_limit=(2**31, 2**31)),
        )
        self.engine.initiate_connection(
            {ngh2.Setting.MAX_CONCURRENT_STREAMS: 100_000, ngh2.Setting.MAX_HEADER_LIST_SIZE: MAX_METADATA}
        )
        self.paths: dict[int, bytes] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.flush()

    def data_received(self, data: bytes) -> None:
        self.engine.receive_data(data)
        for event in self.engine.events():
            if isinstance(event, ngh2.RequestReceived):
                self.paths[event.stream_id] = dict(event.headers)[b":path"]
            elif isinstance(event, ngh2.StreamClosed):
                self.paths.pop(event.stream_id, None)
            if getattr(event, "end_stream", False):
                self.answer(event.stream_id)  # type: ignore[attr-defined]
        self.flush()

    def answer(self, sid: int) -> None:
        path = self.paths.get(sid, b"Hold")
        if not path.endswith(b"Hold"):
            self.engine.send_response(sid, OK)
            self.engine.send_data(sid, bytes(262_144) if path.endswith(b"Big") else bytes(5))
            self.engine.send_trailers(sid, [(b"grpc-status", b"0")])

    def flush(self) -> None:
        data = self.engine.data_to_send()
        self.engine.events()
        if data:
            self.transport.write(data)  # type: ignore[attr-defined]


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Victim, "127.0.0.1", 0)
    print(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    uvloop.run(main())
