"""`grpc.health.v1` of a server that is serving until it drains, and never serves again.

With no other change to tell, this is smaller than the library's servicer, and does what that cannot: its watches run
for ever, so that the server's stop would wait for them until the grace is over. Here a watch ends after it has told
NOT_SERVING.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
from districhat import chat_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

if TYPE_CHECKING:
    import asyncio

    from grpc.aio import ServicerContext

    _Context = ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]

CHAT_SERVICE = chat_pb2.DESCRIPTOR.services_by_name["ChatService"].full_name


class HealthService(health_pb2_grpc.HealthServicer):
    """Answers for "" (the whole server) and "chat.ChatService". `leaving` is set once and for all."""

    def __init__(self, leaving: asyncio.Event) -> None:
        self._leaving = leaving

    async def Check(  # noqa: N802 - the generated name
        self, request: health_pb2.HealthCheckRequest, context: _Context
    ) -> health_pb2.HealthCheckResponse:
        """The state now. Any other service than the two: grpc-status NOT_FOUND."""
        response = self._state(request.service)
        if response.status == response.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return response

    async def Watch(  # noqa: N802 - the generated name
        self, request: health_pb2.HealthCheckRequest, context: _Context
    ) -> None:
        """The state now and, if that was SERVING, once more when the server drains; then grpc-status 0."""
        first = self._state(request.service)
        await context.write(first)
        await self._leaving.wait()
        if (last := self._state(request.service)) != first:
            await context.write(last)

    def _state(self, service: str) -> health_pb2.HealthCheckResponse:
        if service not in {"", CHAT_SERVICE}:
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        if self._leaving.is_set():
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING)
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
