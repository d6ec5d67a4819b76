"""The kinds of check: each asks one server one question.

They run on channels of grpcio, apart from the data path: a server may have its health on another port, and a check
must not depend on whether the data path's connections are in order.

A channel lives only as long as the checks on it are answered. grpcio's own reconnecting is of no use here: a check made
in its back-off fails without having tried, and would see a server's return late; and a connection that a partition has
cut revives only when the kernel retransmits, which after an hour's silence takes minutes. (Envoy, too, closes a health
check's connection when the check times out.)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Final, NamedTuple

import grpc
import grpc.aio
from districhat import chat_pb2
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from proxy.cluster.address import Address
from proxy.cluster.health import Sign
from proxy.control.channel import EndpointChannel
from proxy.control.settings import HealthSettings, Kind
from proxy.transport.reactor import connection, reason
from proxy.transport.tls import EndpointTls

MAX_REASON: Final = 100
"""Characters of a server's own words that are passed on; a page of HTML should not fill the log."""

NOT_THERE: Final = (
    grpc.StatusCode.UNIMPLEMENTED,
    # Servers that demand credentials for every method demand them for this one: a statement about us, not about it.
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
)
"""With these a server answers a question that it is no use to ask."""

# Called by their paths, with bytes: to a stub, an answer that is not what it should be is None and a log line.
_CHECK: Final = "/grpc.health.v1.Health/Check"
_WATCH: Final = "/grpc.health.v1.Health/Watch"
_CHAT_CHECK: Final = "/chat.ChatService/HealthCheck"

_FIRST: Final[Kind] = "grpc_watch"
_NEXT: Final[Mapping[Kind, Kind]] = {"grpc_watch": "chat", "chat": "tcp"}
"""What `auto` tries first, and after what."""


class Answer(NamedTuple):
    """What a check gave."""

    sign: Sign
    why: str = ""
    """For people; empty if it passed."""


class _NotThereError(Exception):
    """The server cannot be asked this. Its text is what it said."""


class Probe:
    """Asks one server. At most one check at a time; `watch` may run beside it."""

    def __init__(self, address: Address, settings: HealthSettings, tls: EndpointTls | None = None) -> None:
        """`tls`: None: cleartext."""
        self._address = address
        self._settings = settings
        self._tls = tls
        self._channel = EndpointChannel(address, tls, settings.timeout, "districhat-health")
        self._request = health_pb2.HealthCheckRequest(service=settings.service).SerializeToString()
        self._found: Kind = _FIRST
        """What `auto` has come to."""

    @property
    def watchable(self) -> bool:
        """Whether it is of use to `watch` a server that has just passed."""
        return self._settings.kind == "grpc_watch" or (self._settings.kind == "auto" and self._found == "grpc_watch")

    async def check(self) -> Answer:
        """Check it once, within the timeout. After a check without an answer the connection is closed (which ends a
        `watch`), and `auto` starts afresh: another server may come up there.
        """
        try:
            async with asyncio.timeout(self._settings.timeout):
                answer = await self._check()
        except TimeoutError:
            answer = self._too_late()
        except (OSError, ValueError) as error:  # ValueError: a host name that cannot be one
            answer = Answer(Sign.FAILED, reason(error)[:MAX_REASON])
        if answer.sign is Sign.FAILED:
            await self.close()
        return answer

    async def _check(self) -> Answer:
        kind = self._settings.kind
        if kind != "auto":
            try:
                return await self._ask(kind)
            except _NotThereError as error:
                return Answer(Sign.FAILED, str(error))
        while (kind := self._found) != "tcp":
            try:
                return await self._ask(kind)
            except _NotThereError:
                self._found = _NEXT[kind]
        return await self._ask(kind)

    async def _ask(self, kind: Kind) -> Answer:
        """Raises _NotThereError; not for `tcp`."""
        if kind == "tcp":
            await self._channel.close()
            return await self._tcp()
        return await (self._chat() if kind == "chat" else self._grpc())

    async def _grpc(self) -> Answer:
        try:
            return _status(await self._call(_CHECK, self._request))
        except grpc.aio.AioRpcError as error:
            # A server that does not know the service we were told to ask about is not the right one. But one that
            # knows nothing of itself as a whole has just left that out.
            if error.code() is grpc.StatusCode.NOT_FOUND and not self._settings.service:
                raise _NotThereError(self._words(error)) from error
            return self._failure(error)

    async def _chat(self) -> Answer:
        try:
            response = chat_pb2.HealthResponse.FromString(await self._call(_CHAT_CHECK, b""))
        except grpc.aio.AioRpcError as error:
            return self._failure(error)
        except DecodeError:
            return _NONSENSE
        return Answer(Sign.PASSED) if response.healthy else Answer(Sign.REFUSED, "says that it is not healthy")

    async def _call(self, method: str, request: bytes) -> bytes:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = (await self._channel.connected()).unary_unary(method)
        return await call(request, timeout=self._settings.timeout)

    async def _tcp(self) -> Answer:
        await self._connect()
        return Answer(Sign.PASSED)

    async def _connect(self) -> None:
        """Connect, and close at once. Raises OSError or ValueError."""
        tls = self._tls
        loop = asyncio.get_running_loop()
        transport = await connection(loop, self._address, asyncio.Protocol(), tls.secured if tls is not None else None)
        try:
            objection = tls.tls.objection(transport.get_extra_info("ssl_object")) if tls is not None else None
            if objection is not None:
                raise ConnectionError(objection)
        finally:
            transport.close()

    async def watch(self) -> AsyncGenerator[Answer, None]:
        """What the server says of itself, now and at each change, until it ends that; it is told to when this is
        closed. Raises AioRpcError if it cannot be watched, or not any longer.
        """
        try:
            channel = await self._channel.connected()
        except (OSError, ValueError):
            return  # the next check says why
        start: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(_WATCH)
        call = start(self._request)
        try:
            async for response in call:
                yield _status(response)
        finally:
            call.cancel()

    async def close(self) -> None:
        """Close the connection, which ends a `watch`, and forget what `auto` has come to. The next check begins
        afresh.
        """
        self._found = _FIRST
        await self._channel.close()

    def _failure(self, error: grpc.aio.AioRpcError) -> Answer:
        if error.code() in NOT_THERE:
            raise _NotThereError(self._words(error)) from error
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return self._too_late()
        if self._channel.objection:
            return Answer(Sign.FAILED, self._channel.objection[:MAX_REASON])
        return Answer(Sign.FAILED, self._words(error))

    def _too_late(self) -> Answer:
        return Answer(Sign.FAILED, f"no answer within {self._settings.timeout:g} s")

    @staticmethod
    def _words(error: grpc.aio.AioRpcError) -> str:
        """`UNAVAILABLE: connection refused`, of which C-core makes four times as much."""
        details = (error.details() or "no details").removesuffix(_CERTIFICATE_FINE)
        cause = details.rpartition(": ")[2].rstrip("]").lower()
        text = f"{error.code().name}: {cause}"[:MAX_REASON]
        return "".join(character if character.isprintable() else " " for character in text)


_CERTIFICATE_FINE: Final = ": Invalid certificate verification context: OK"
"""What C-core adds to every failed handshake that failed for another reason than a certificate (1.85)."""

_NONSENSE: Final = Answer(Sign.FAILED, "the answer makes no sense")


def _status(data: bytes) -> Answer:
    try:
        response = health_pb2.HealthCheckResponse.FromString(data)
    except DecodeError:
        return _NONSENSE
    if response.status == response.SERVING:
        return Answer(Sign.PASSED)
    known = response.status in health_pb2.HealthCheckResponse.ServingStatus.values()
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status) if known else str(response.status)
    return Answer(Sign.REFUSED, f"says {name}")
