"""Which chat goes where through a given proxy: asked of the proxy itself, so that no peer's hash need be known."""

from __future__ import annotations

import grpc
from districhat import chat_pb2

from bench.errors import BenchError

_CANDIDATES = 200
_TIMEOUT = 5.0


def request(chat_id: str, text_size: int | None = None) -> bytes:
    """The message of the benchmark for one chat, about 110 bytes: what a user types, and who and when.

    `text_size`: with so many bytes of text instead.
    """
    text = "A message of ordinary length, as a person would type it into a chat."
    message = chat_pb2.ChatRequest(
        chat_id=chat_id,
        message=text if text_size is None else "x" * text_size,
        sender_id="user-0042",
        timestamp=1_700_000_000,
        message_id="m-000001",
    )
    return message.SerializeToString()


def chats_by_server(
    port: int, method: str, ids: tuple[str, ...], header: str | None, root: bytes | None = None, *, stream: bool = False
) -> dict[str, str]:
    """One chat for each server id, such that the proxy on `port` takes it there: {server id: chat id}.

    With `root`, the PEM certificate of its authority, over TLS. `stream`: only the first message is waited for.

    Asks a real gRPC client's way, so it also proves that calls through this proxy end with an OK and a response that
    can be read. BenchError if a call fails, or if 200 chats leave a server without one.
    """
    found: dict[str, str] = {}
    with _channel(f"127.0.0.1:{port}", root) as channel:
        call: grpc.UnaryStreamMultiCallable[bytes, chat_pb2.ChatResponse] = channel.unary_stream(
            method, response_deserializer=chat_pb2.ChatResponse.FromString
        )
        for number in range(_CANDIDATES):
            chat_id = f"chat-{number:03}"
            metadata = ((header, chat_id),) if header else ()
            try:
                responses = call(request(chat_id), timeout=_TIMEOUT, wait_for_ready=True, metadata=metadata)
                response = next(responses)
                if stream:
                    responses.cancel()
                else:
                    list(responses)  # so that its status is looked at
            except grpc.RpcError as error:
                raise BenchError(f"a first call for {chat_id} failed: {error}") from error
            found.setdefault(response.server_id, chat_id)
            if found.keys() == set(ids):
                return {server_id: found[server_id] for server_id in ids}
    raise BenchError(f"{_CANDIDATES} chats reached only {sorted(found)} of {list(ids)}")


def _channel(address: str, root: bytes | None) -> grpc.Channel:
    if root is None:
        return grpc.insecure_channel(address)
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(root))
