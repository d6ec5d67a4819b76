"""Sessions that follow their chats when servers have no store in common.

A proxy that sends a chat to another server than before says so, in the metadata `x-districhat-previous-owner` of the
first request. The server then asks that peer for the session, before it applies the message.

What if ...
- the named server is none of the configured peers: nobody is asked. The metadata names, it does not point.
- it is dead or hangs: the message is applied to what is here, after `timeout`. A large session may take longer, as long
  as its parts keep coming; the caller's deadline bounds that. The peer is not asked for `retry_after`
  seconds then, whatever chat moves, so that one hanging peer does not slow them all; the chats that wait for it are
  remembered, and asked for with their next message after that.
- two proxies disagree, and both servers took messages meanwhile: sessions are united, not replaced. What one has and
  the other has not goes to the end, in its order, each message once by its id; so nothing is lost or doubled, whoever
  asks whom how often.
- the server crashes half way: what it has by then is a beginning of what it asked for, and it asks again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import unquote

import grpc
import grpc.aio
from districhat import chat_pb2, chat_pb2_grpc

from backend.cache.locks import ChatLocks
from backend.errors import ForbiddenError, StoreError
from backend.session import Message

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from backend.cache.hierarchical import HierarchicalCache

_log = logging.getLogger(__name__)

PREVIOUS_OWNER: Final = "x-districhat-previous-owner"
"""Metadata of a proxy: the id of the server that had the chat before. A proxy lets no client write it."""
PEER: Final = "x-districhat-peer"
"""Metadata of a server that calls another: its id. No proxy lets it through, so no client behind one can use it."""

_PAGE: Final = 32
"""Messages read from the store at a time; each may have 4 MiB."""
_PART_BYTES: Final = 1 << 20
"""Bytes of messages in one part, more only if a single one has more."""
_MAX_PART: Final = 16 << 20
"""Bytes of a part that are accepted: a message of 4 MiB, its reply and what is around them."""
_MAX_SESSION: Final = 256 << 20
"""Bytes of a session that are fetched: it is in memory until it is complete."""
_MAX_OWED: Final = 100_000
"""Chats remembered that still wait for a peer, at about 200 bytes each. The longest waiting is forgotten."""
_FOR_GOOD: Final = frozenset({grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.PERMISSION_DENIED})
"""Answers of a peer that will be the same next time: it is an old server, or does not know this one."""
_CHANNEL_OPTIONS: Final = (
    ("grpc.max_receive_message_length", _MAX_PART),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
)

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class Peers:
    """The servers this one knows, `addresses` by id, and what goes between them.

    `timeout`: seconds for the next part of a session to come from a peer; `retry_after`: seconds in which a peer that
    failed is not asked again. Closed by whoever made it.
    """

    def __init__(
        self,
        server_id: str,
        addresses: Mapping[str, str],
        cache: HierarchicalCache,
        *,
        fetch: bool = True,
        timeout: float = 2.0,
        retry_after: float = 5.0,
    ) -> None:
        self._id = server_id
        self._addresses = {id_: address for id_, address in addresses.items() if id_ != server_id}
        self._cache = cache
        self._fetch = fetch
        self._timeout = timeout
        self._retry_after = retry_after
        self._now = asyncio.get_running_loop().time
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._failed: dict[str, float] = {}
        """Peer -> when it may be asked again."""
        self._owed: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        """Chat -> the peers that may have messages of it, and could not be asked."""
        self._ended: set[str] = set()
        """Chats that ended while `bring` was at them: what it brings is not wanted any more."""
        self._locks = ChatLocks()
        self.fetched = 0
        """Sessions of which something came from a peer."""
        self.failures = 0
        """Peers that were asked and could not answer."""

    async def close(self) -> None:
        """Closes the connections to the peers."""
        for channel in self._channels.values():
            await channel.close()

    # The server that the chat came to.

    def expects(self, chat_id: str, previous_owner: str) -> bool:
        """Whether `bring` has something to do, or an earlier message of the chat waits in it. Quick: asked with every
        message.
        """
        return bool(previous_owner) or chat_id in self._owed or chat_id in self._locks.held

    async def bring(self, chat_id: str, previous_owner: str) -> None:
        """Gets what the previous owner has of the session and this server has not, if it can, and what others still
        owe. `previous_owner` may be empty, unknown, or this server itself: then nothing new is asked for. Raises
        StoreError if it cannot be stored.
        """
        if not self._fetch:
            return
        async with self._locks.holding(chat_id):
            self._ended.discard(chat_id)
            peers = dict.fromkeys(self._owed.pop(chat_id, ()))
            if previous_owner in self._addresses:
                peers[previous_owner] = None
            try:
                for peer in tuple(peers):
                    if self._now() >= self._failed.get(peer, 0.0) and await self._bring_from(chat_id, peer):
                        del peers[peer]
            finally:
                if peers and chat_id not in self._ended:
                    self._owe(chat_id, tuple(peers))
                self._ended.discard(chat_id)

    async def _bring_from(self, chat_id: str, peer: str) -> bool:
        """Whether there is nothing more to ask of the peer."""
        try:
            async with asyncio.timeout(self._timeout) as patience:
                messages, is_rest = await self._ask(chat_id, peer, patience)
        except (grpc.aio.AioRpcError, TimeoutError, _TooLargeError) as error:
            return self._failed_for_good(peer, error)
        if chat_id in self._ended:
            return True
        self.fetched += await self._cache.absorb(chat_id, messages, whole=not is_rest) > 0
        return True

    def _failed_for_good(self, peer: str, error: Exception) -> bool:
        """Count a peer that could not answer. Returns whether it never will, for this chat."""
        self.failures += 1
        why = str(error) or "no answer in time"
        for_good = isinstance(error, _TooLargeError)
        if isinstance(error, grpc.aio.AioRpcError):
            why = error.details() or error.code().name
            for_good = error.code() in _FOR_GOOD
        if for_good:
            _log.warning("a session that moved here stays without what %s has: %s", peer, why)
        else:
            self._failed[peer] = self._now() + self._retry_after
            _log.warning("a session that moved here lacks what %s has, until that can be asked: %s", peer, why)
        return for_good

    def _owe(self, chat_id: str, peers: tuple[str, ...]) -> None:
        self._owed[chat_id] = peers
        if len(self._owed) > _MAX_OWED:
            self._owed.popitem(last=False)

    async def _ask(self, chat_id: str, peer: str, patience: asyncio.Timeout) -> tuple[list[Message], bool]:
        """What the peer has, and whether that is the rest of what is here (else it may be all of the session). Each
        part that comes renews `patience`: a session that takes longer than that would else never arrive.
        """
        here = await self._cache.written(chat_id, recent=1)
        request = chat_pb2.FetchSessionRequest(chat_id=chat_id)
        if here is not None and here.last.message_id:
            request.have_length = here.length
            request.have_message_id = here.last.message_id
        messages: list[Message] = []
        is_rest = False
        size = 0
        call = self._stub(peer).FetchSession(request, metadata=((PEER, self._id),))
        now = asyncio.get_running_loop().time
        try:
            async for part in call:
                patience.reschedule(now() + self._timeout)
                size += part.ByteSize()
                if size > _MAX_SESSION:
                    raise _TooLargeError
                if not messages:
                    is_rest = part.after == request.have_length
                messages += map(_from_wire, part.messages)
        finally:
            call.cancel()
        return messages, is_rest

    # The server that the chat came from.

    async def hand_over(
        self, request: chat_pb2.FetchSessionRequest, context: grpc.aio.ServicerContext[_Request, _Response]
    ) -> AsyncIterator[chat_pb2.SessionPart]:
        """The messages of the session after those the peer has; all, if the sessions differ up to there. Raises
        ForbiddenError for whoever is no peer, and StoreError.

        That the message at the same place has the same id is enough to say that all before it are the same: a server
        that has a message has, from when it came, all that was before it.
        """
        await self.check(context)
        cache, chat_id = self._cache, request.chat_id
        session = await cache.written(chat_id, recent=1)
        if session is None:
            return
        length, epoch = session.length, session.epoch
        after = 0
        if 0 < request.have_length <= length:
            there = await cache.written(chat_id, recent=1, until=request.have_length)
            if there is not None and there.last.message_id == request.have_message_id != "":
                after = request.have_length
        part = chat_pb2.SessionPart(after=after)
        size = 0
        while after < length:
            until = min(after + _PAGE, length)
            page = await cache.written(chat_id, recent=until - after, until=until)
            if page is None or page.epoch != epoch:
                raise StoreError("the session was ended meanwhile")
            for message in page.recent:
                stored = _to_wire(message)
                if size and size + stored.ByteSize() > _PART_BYTES:
                    yield part
                    part, size = chat_pb2.SessionPart(after=part.after + len(part.messages)), 0
                part.messages.append(stored)
                size += stored.ByteSize()
            after = until
        if size:
            yield part

    async def check(self, context: grpc.aio.ServicerContext[_Request, _Response]) -> None:
        """Raises ForbiddenError if the caller is none of the configured peers: by what it says, and by its address."""
        peer = peer_of(context)
        address = self._addresses.get(peer)
        if address is None:
            raise ForbiddenError("only for configured peers")
        host, _, port = address.rpartition(":")
        found = []
        with contextlib.suppress(OSError):
            found = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), int(port))
        caller = _host(context.peer())
        if caller not in {str(target[0]) for *_, target in found}:
            raise ForbiddenError(f"{caller} is not {peer}")

    # The end of a chat.

    def forget(self, chat_id: str) -> None:
        """The chat ends: what peers owe of it, and what is on its way, shall not bring it back."""
        self._owed.pop(chat_id, None)
        if chat_id in self._locks.held:
            self._ended.add(chat_id)

    async def end_everywhere(self, chat_id: str) -> list[str]:
        """Ends the chat at all peers. Returns those, with the reason, where it may be left."""
        self.forget(chat_id)
        peers = list(self._addresses)
        results = await asyncio.gather(*(self._end_at(peer, chat_id) for peer in peers))
        self.forget(chat_id)  # also what was asked for before the last of them had ended it
        return [f"{peer}: {why}" for peer, why in zip(peers, results, strict=True) if why]

    async def _end_at(self, peer: str, chat_id: str) -> str:
        request = chat_pb2.EndChatRequest(chat_id=chat_id)
        try:
            await self._stub(peer).EndChat(request, metadata=((PEER, self._id),), timeout=self._timeout)
        except grpc.aio.AioRpcError as error:
            return error.details() or error.code().name
        return ""

    def _stub(self, peer: str) -> chat_pb2_grpc.ChatServiceAsyncStub:
        channel = self._channels.get(peer)
        if channel is None:
            channel = grpc.aio.insecure_channel(self._addresses[peer], options=_CHANNEL_OPTIONS)
            self._channels[peer] = channel
        return chat_pb2_grpc.ChatServiceStub(channel)


class _TooLargeError(Exception):
    """The peer's session is larger than one that is fetched."""

    def __str__(self) -> str:
        return f"its session has more than {_MAX_SESSION >> 20} MiB"


def peer_of(context: grpc.aio.ServicerContext[_Request, _Response]) -> str:
    """The id of the server that says it is calling; empty if it is none."""
    return metadata_of(context, PEER)


def metadata_of(context: grpc.aio.ServicerContext[_Request, _Response], name: str) -> str:
    """The first entry of that name in a call's metadata; empty if there is none."""
    for key, value in context.invocation_metadata() or ():
        if key == name and isinstance(value, str):
            return value
    return ""


def _host(peer: str) -> str:
    """The address in what gRPC says of a caller: `ipv4:10.0.0.1:50051`, `ipv6:%5B::1%5D:50051`."""
    kind, _, rest = unquote(peer).partition(":")
    host = rest.rpartition(":")[0].strip("[]") if kind in {"ipv4", "ipv6"} else ""
    return host.removeprefix("::ffff:")


def _to_wire(message: Message) -> chat_pb2.StoredMessage:
    return chat_pb2.StoredMessage(
        text=message.text,
        sender_id=message.sender_id,
        timestamp=message.timestamp,
        message_id=message.message_id,
        reply=message.reply,
    )


def _from_wire(stored: chat_pb2.StoredMessage) -> Message:
    reply = stored.reply if stored.HasField("reply") else None
    return Message(stored.text, stored.sender_id, stored.timestamp, stored.message_id, reply)
