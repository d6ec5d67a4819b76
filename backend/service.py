"""`chat.ChatService`: from the wire to the cache and the engine, and back.

A call that finds the server draining gets UNAVAILABLE and has changed nothing; one that runs already is finished. A
conversation (`Chat`) would never finish by itself, so it ends between two messages: all that was answered is stored,
and the client goes on with another server.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from districhat import chat_pb2, chat_pb2_grpc

from backend.cache.levels import CacheLevel
from backend.errors import CallError, DrainingError, InvalidRequestError
from backend.peers import PREVIOUS_OWNER, metadata_of, peer_of
from backend.session import Message

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from grpc.aio import ServicerContext

    from backend.cache.hierarchical import HierarchicalCache
    from backend.engine import ReplyEngine
    from backend.peers import Peers
    from backend.session import Session

    _ChatContext = ServicerContext[chat_pb2.ChatRequest, chat_pb2.ChatResponse]

_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")

MAX_ID_BYTES = 4096
"""The most UTF-8 bytes of a chat id and of a message id: they are keys, in memory and in the store's indexes."""

REQUEST_ID = "x-request-id"
"""Metadata that proxies add to a call that they may send again."""

_LOCATIONS = {
    CacheLevel.L1: chat_pb2.CACHE_L1,
    CacheLevel.L2: chat_pb2.CACHE_L2,
    CacheLevel.DISK: chat_pb2.CACHE_DISK,
    CacheLevel.MISS: chat_pb2.CACHE_MISS,
}


class ChatService(chat_pb2_grpc.ChatServiceServicer):
    """Serves the calls. `leaving` is set once, when the server wants no new chats, and `draining` when it takes
    no more calls.

    Failures end a call with a grpc-status and a message: INVALID_ARGUMENT for an empty or oversized id, UNAVAILABLE
    while draining or when the store cannot answer for the message, INTERNAL when the engine has no reply (UNAVAILABLE
    if it may have one when the call is repeated), PERMISSION_DENIED for who asks for a session and is no peer.
    """

    def __init__(
        self,
        server_id: str,
        cache: HierarchicalCache,
        engine: ReplyEngine,
        peers: Peers,
        leaving: asyncio.Event,
        draining: asyncio.Event,
    ) -> None:
        self._server_id = server_id
        self._cache = cache
        self._engine = engine
        self._peers = peers
        self._leaving = leaving
        self._draining = draining
        self._started = asyncio.get_running_loop().time()
        # Messages without an id of their own get one, so that a store can be asked again when its answer was lost.
        prefix = f"{server_id}:{secrets.token_hex(8)}:"
        self._ids = (f"{prefix}{number}" for number in itertools.count(1))

    async def PostMessage(  # noqa: N802 - the generated name
        self, request: chat_pb2.ChatRequest, context: _ChatContext
    ) -> chat_pb2.ChatResponse:
        """Appends the message and answers when it is safe in the store and the reply is complete."""
        async with _failures_end(context):
            return await self._answer(request, _request_id(context), metadata_of(context, PREVIOUS_OWNER))
        raise AssertionError  # `abort` always raises

    async def StreamReply(  # noqa: N802 - the generated name
        self, request: chat_pb2.ChatRequest, context: ServicerContext[chat_pb2.ChatRequest, chat_pb2.ReplyChunk]
    ) -> AsyncIterator[chat_pb2.ReplyChunk]:
        """Appends the message, then sends the reply as it is made. The last chunk has what PostMessage would answer."""
        async with _failures_end(context):
            previous_owner = metadata_of(context, PREVIOUS_OWNER)
            session, response = await self._apply(request, _request_id(context), previous_owner)
            tokens = []
            async with aclosing(self._reply(session)) as reply:
                async for token in reply:
                    tokens.append(token)
                    yield chat_pb2.ReplyChunk(token=token)
            response.reply = "".join(tokens)
            await self._keep_reply(session, response.reply)
            yield chat_pb2.ReplyChunk(response=response)

    async def Chat(  # noqa: N802 - the generated name
        self,
        request_iterator: AsyncIterator[chat_pb2.ChatRequest],  # noqa: ARG002 - read through the context
        context: _ChatContext,
    ) -> AsyncIterator[chat_pb2.ChatResponse]:
        """Answers each message like PostMessage, one after another. They may belong to different chats."""
        async with _failures_end(context):
            draining = asyncio.get_running_loop().create_task(self._draining.wait())
            previous_owner = metadata_of(context, PREVIOUS_OWNER)
            try:
                while (request := await self._next_request(context, draining)) is not None:
                    yield await self._answer(request, previous_owner=previous_owner)
                    previous_owner = ""  # it is that of the chat that the stream was routed by
            finally:
                draining.cancel()

    async def GetCacheStats(  # noqa: N802 - the generated name
        self,
        request: chat_pb2.StatsRequest,  # noqa: ARG002 - a server can only speak for itself, and says who it is
        context: ServicerContext[chat_pb2.StatsRequest, chat_pb2.StatsResponse],  # noqa: ARG002
    ) -> chat_pb2.StatsResponse:
        """The statistics of the server asked, whichever the request names; also while draining."""
        statistics = self._cache.statistics()
        l1, l2 = self._cache.levels.l1, self._cache.levels.l2
        return chat_pb2.StatsResponse(
            server_id=self._server_id,
            l1_size=len(l1.residents),
            l1_capacity=l1.capacity,
            l2_size=len(l2.residents),
            l2_capacity=l2.capacity,
            total_requests=statistics.requests,
            cache_hits=statistics.hits,
            cache_misses=statistics.misses,
            l1_chats=l1.chats(),
            l2_chats=l2.chats(),
            l1_hits=statistics.l1_hits,
            l2_hits=statistics.l2_hits,
            disk_hits=statistics.disk_hits,
            demotions=statistics.demotions,
            promotions=statistics.promotions,
            evictions=statistics.evictions,
            l1_misses=statistics.requests - statistics.l1_hits,
            l2_misses=statistics.requests - statistics.l1_hits - statistics.l2_hits,
            l1_bytes=l1.bytes,
            l2_bytes=l2.bytes,
            l1_max_bytes=l1.max_bytes or 0,
            l2_max_bytes=l2.max_bytes or 0,
            l1_too_large=l1.too_large,
            l2_too_large=l2.too_large,
            duplicates=statistics.duplicates,
            conflicts=statistics.conflicts,
            expired=statistics.expired,
            ended=statistics.ended,
            unwritten=statistics.unwritten,
            fetched=self._peers.fetched,
            fetch_failures=self._peers.failures,
        )

    async def EndChat(  # noqa: N802 - the generated name
        self,
        request: chat_pb2.EndChatRequest,
        context: ServicerContext[chat_pb2.EndChatRequest, chat_pb2.EndChatResponse],
    ) -> chat_pb2.EndChatResponse:
        """Frees the session here and, unless it is a peer that asks, at all peers. A second call finds none."""
        async with _failures_end(context):
            if self._draining.is_set():
                raise DrainingError
            _check_ids(request.chat_id)
            if peer_of(context):
                await self._peers.check(context)
                self._peers.forget(request.chat_id)
                left: list[str] = []
            else:
                left = await self._peers.end_everywhere(request.chat_id)
            count = await self._cache.end(request.chat_id)
            return chat_pb2.EndChatResponse(
                success=not left, server_id=self._server_id, error_message="; ".join(left), message_count=count
            )
        raise AssertionError  # `abort` always raises

    async def FetchSession(  # noqa: N802 - the generated name
        self,
        request: chat_pb2.FetchSessionRequest,
        context: ServicerContext[chat_pb2.FetchSessionRequest, chat_pb2.SessionPart],
    ) -> AsyncIterator[chat_pb2.SessionPart]:
        """Hands a session over to the peer that its chat has moved to; also while draining."""
        async with _failures_end(context):
            async for part in self._peers.hand_over(request, context):
                yield part

    async def HealthCheck(  # noqa: N802 - the generated name
        self,
        request: chat_pb2.HealthRequest,  # noqa: ARG002
        context: ServicerContext[chat_pb2.HealthRequest, chat_pb2.HealthResponse],  # noqa: ARG002
    ) -> chat_pb2.HealthResponse:
        """Healthy until the server wants to go."""
        uptime = asyncio.get_running_loop().time() - self._started
        return chat_pb2.HealthResponse(
            healthy=not self._leaving.is_set(), server_id=self._server_id, uptime_seconds=int(uptime)
        )

    async def _next_request(self, context: _ChatContext, draining: asyncio.Task[bool]) -> chat_pb2.ChatRequest | None:
        """The next message of a conversation, None at its end. Raises DrainingError if the drain comes first."""
        # Never cancelled, as the transport fills its buffer: left alone, it ends with the call.
        read = asyncio.get_running_loop().create_task(_read(context))
        await asyncio.wait((read, draining), return_when=asyncio.FIRST_COMPLETED)
        if not read.done():
            read.add_done_callback(_forget)
            raise DrainingError
        return read.result()

    async def _answer(
        self, request: chat_pb2.ChatRequest, request_id: str = "", previous_owner: str = ""
    ) -> chat_pb2.ChatResponse:
        session, response = await self._apply(request, request_id, previous_owner)
        async with aclosing(self._reply(session)) as reply:
            response.reply = "".join([token async for token in reply])
        response.reply = await self._keep_reply(session, response.reply)
        return response

    async def _reply(self, session: Session) -> AsyncGenerator[str, None]:
        """The reply to the last message: the stored one, or a new one. To be closed, so that the engine stops."""
        message = session.last
        if message.reply is not None:
            yield message.reply
            return
        tokens = self._engine.reply(session, message)
        try:
            async for token in tokens:
                yield token
        finally:
            if (close := getattr(tokens, "aclose", None)) is not None:
                await close()

    async def _keep_reply(self, session: Session, reply: str) -> str:
        """The reply that a repetition of the message gets too."""
        if not self._engine.keeps_replies or session.last.reply is not None:
            return reply
        return await self._cache.set_reply(session, reply)

    async def _apply(
        self, request: chat_pb2.ChatRequest, request_id: str, previous_owner: str
    ) -> tuple[Session, chat_pb2.ChatResponse]:
        """Stores the message, once for its `message_id`, or for the call's `request_id` if it has none.

        Returns the session after it, and the response but for the reply.
        """
        if self._draining.is_set():
            raise DrainingError
        chat_id = request.chat_id
        _check_ids(chat_id, request.message_id)
        if self._peers.expects(chat_id, previous_owner):
            await self._peers.bring(chat_id, previous_owner)
        key = request.message_id or (f"{REQUEST_ID}:{request_id}" if request_id else next(self._ids))
        session, level, duplicate = await self._cache.add_message(
            chat_id, Message(request.message, request.sender_id, request.timestamp, key)
        )
        response = chat_pb2.ChatResponse(
            success=True,
            server_id=self._server_id,
            cache_location=_LOCATIONS[level],
            message_count=session.length,
            duplicate=duplicate,
        )
        return session, response


def _check_ids(chat_id: str, message_id: str = "") -> None:
    if not chat_id:
        raise InvalidRequestError("chat_id must not be empty")
    for name, value in (("chat_id", chat_id), ("message_id", message_id)):
        if len(value.encode()) > MAX_ID_BYTES:
            raise InvalidRequestError(f"{name} must not be longer than {MAX_ID_BYTES} bytes")


def _request_id(context: ServicerContext[chat_pb2.ChatRequest, _Answer]) -> str:
    """The `x-request-id` of a call: the same on every attempt of it. Empty if it has none, or an unusable one."""
    for name, value in context.invocation_metadata() or ():
        if name == REQUEST_ID and isinstance(value, str) and len(value) <= MAX_ID_BYTES // 2:
            return value
    return ""


async def _read(context: _ChatContext) -> chat_pb2.ChatRequest | None:
    request: object = await context.read()
    return request if isinstance(request, chat_pb2.ChatRequest) else None


def _forget(read: asyncio.Task[chat_pb2.ChatRequest | None]) -> None:
    if not read.cancelled():
        read.exception()


@asynccontextmanager
async def _failures_end(context: ServicerContext[_Request, _Answer]) -> AsyncIterator[None]:
    """Turns a CallError of the block into the end of the call."""
    try:
        yield
    except CallError as error:
        await context.abort(error.code, str(error))
