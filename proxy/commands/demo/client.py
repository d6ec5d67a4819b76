"""A plain grpcio client, as any user of the chat service would write it. It knows only the proxy's address."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

import grpc
from districhat import chat_pb2, chat_pb2_grpc

from proxy.commands.demo.ledger import Answer
from proxy.errors import DistriChatError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

REQUEST_TIMEOUT = 10.0  # seconds; what the original's smart client allowed

_LEVELS = {
    chat_pb2.CACHE_L1: "L1 hit",
    chat_pb2.CACHE_L2: "L2 hit",
    chat_pb2.CACHE_DISK: "disk",
    chat_pb2.CACHE_MISS: "miss",
}


class CallFailedError(DistriChatError):
    """A call got no answer, or one that says it failed. The text is for people."""


class ChatClient:
    """A client of the chat service at `address`. A context manager: it closes its connection."""

    def __init__(self, address: str) -> None:
        # Nothing may hide a failure of the proxy: no retries of grpcio's own, no HTTP proxy of the environment between.
        options = [("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0)]
        self._channel = grpc.insecure_channel(address, options)
        self._stub = chat_pb2_grpc.ChatServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def post(self, chat_id: str, message: str, message_id: str) -> Answer:
        """Send one message. Raises CallFailedError."""
        request = chat_pb2.ChatRequest(
            chat_id=chat_id,
            message=message,
            sender_id="demo",
            timestamp=int(datetime.now(UTC).timestamp()),
            message_id=message_id,
        )
        try:
            response = self._stub.PostMessage(request, timeout=REQUEST_TIMEOUT)
        except grpc.RpcError as error:
            raise CallFailedError(_reason(error)) from error
        if not response.success:
            raise CallFailedError(f"{response.server_id or 'the server'} says: {response.error_message}")
        level = _LEVELS.get(response.cache_location, "unknown")
        return Answer(response.server_id, level, response.message_count)

    def cache_statistics(self, server_id: str) -> chat_pb2.StatsResponse:
        """The cache of one server, named by its id. Raises CallFailedError, also when another server answers."""
        try:
            response = self._stub.GetCacheStats(chat_pb2.StatsRequest(server_id=server_id), timeout=REQUEST_TIMEOUT)
        except grpc.RpcError as error:
            raise CallFailedError(_reason(error)) from error
        if response.server_id != server_id:
            raise CallFailedError(f"{response.server_id} answered for {server_id}")
        return response


def _reason(error: grpc.RpcError) -> str:
    call = cast("grpc.Call", error)  # which every error of a call is, though its type does not say so
    return f"{call.code().name}: {call.details()}"
