"""Which chat goes where through a given proxy: asked of the proxy itself, so that no peer's hash need be known."""

from __future__ import annotations

import grpc
from districhat import chat_pb2

from bench.errors import BenchError

_CANDIDATES = 200
_TIMEOUT = 5.0


def request(chat_id: str) -> bytes:
    """The message of the benchmark for one chat, about 110 bytes: what a user types, and who and when."""
    message = chat_pb2.ChatRequest(
        chat_id=chat_id,
        message="A message of ordinary length, as a person would type it into a chat.",
        sender_id="user-0042",
        timestamp=1_700_000_000,
        message_id="m-000001",
    )
    return message.SerializeToString()


def chats_by_server(port: int, method: str, ids: tuple[str, ...], header: str | None) -> dict[str, str]:
    """One chat for each server id, such that the proxy on `port` takes it there: {server id: chat id}.

    Asks a real gRPC client's way, so it also proves that calls through this proxy end with an OK and a response that
    can be read. BenchError if a call fails, or if 200 chats leave a server without one.
    """
    found: dict[str, str] = {}
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, chat_pb2.ChatResponse] = channel.unary_unary(
            method, response_deserializer=chat_pb2.ChatResponse.FromString
        )
        for number in range(_CANDIDATES):
            chat_id = f"chat-{number:03}"
            metadata = ((header, chat_id),) if header else ()
            try:
                response = call(request(chat_id), timeout=_TIMEOUT, wait_for_ready=True, metadata=metadata)
            except grpc.RpcError as error:
                raise BenchError(f"a first call for {chat_id} failed: {error}") from error
            found.setdefault(response.server_id, chat_id)
            if found.keys() == set(ids):
                return {server_id: found[server_id] for server_id in ids}
    raise BenchError(f"{_CANDIDATES} chats reached only {sorted(found)} of {list(ids)}")
