"""One reference server, from its start to the end of its drain: everything is put together here."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from typing import TYPE_CHECKING

import grpc.aio
from districhat import chat_pb2_grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from backend.cache.hierarchical import HierarchicalCache
from backend.engine import EchoEngine, ReplyEngine
from backend.errors import ConfigError, StoreError
from backend.health import CHAT_SERVICE, HealthService
from backend.maintenance import Maintenance
from backend.peers import Peers
from backend.service import ChatService
from backend.settings import split_address
from backend.store.base import StoreOptions
from backend.store.url import open_store

if TYPE_CHECKING:
    from backend.settings import BackendSettings, EngineSettings
    from backend.store.base import SessionStore

_log = logging.getLogger(__name__)

_WRITE_RETRY = 0.2
"""Seconds between attempts to write what write-back holds, when a server ends while its store is away."""


class ChatServer:
    """A server that listens and serves. Made by `start`; ended by `drain`, by whoever started it."""

    def __init__(self, settings: BackendSettings, store: SessionStore, engine: ReplyEngine) -> None:
        self._settings = settings
        self._store = store
        self._engine = engine
        self._leaving, self._draining = asyncio.Event(), asyncio.Event()
        cache = settings.cache
        write_back = settings.store.durability == "write_back"
        ttl = cache.session_ttl or None
        self._cache = HierarchicalCache(
            cache.l1_capacity,
            cache.l2_capacity,
            store=store,
            l1_bytes=cache.l1_bytes or None,
            l2_bytes=cache.l2_bytes or None,
            recent_messages=cache.recent_messages,
            session_ttl=ttl,
            unwritten_limit=settings.store.max_unwritten if write_back else None,
            dedupe_window=settings.store.dedupe_window,
        )
        self._maintenance = Maintenance(
            self._cache,
            store,
            write_interval=settings.store.write_interval if write_back else None,
            session_ttl=ttl,
        )
        moves = settings.moves
        self._peers = Peers(
            settings.id,
            moves.peers,
            self._cache,
            fetch=moves.fetch,
            timeout=moves.timeout,
            retry_after=moves.retry_after,
        )
        # Without it two servers could share a port, each getting some of the connections.
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        service = ChatService(settings.id, self._cache, engine, self._peers, self._leaving, self._draining)
        chat_pb2_grpc.add_ChatServiceServicer_to_server(service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(HealthService(self._leaving), self._server)
        reflection.enable_server_reflection((CHAT_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        self.address = settings.address
        """`host:port` it listens on, with the real port."""
        self.lost = 0
        """Messages that were acknowledged and are in no store, after the drain (write-back)."""

    @classmethod
    async def start(cls, settings: BackendSettings, *, engine: ReplyEngine | None = None) -> ChatServer:
        """Opens the store, then listens. `engine`: None for the one the settings describe.

        Raises ConfigError, its line naming `store.url`, `engine.kind` or `address`, if one of them is not possible.
        """
        store_settings = settings.store
        options = StoreOptions(
            dedupe_window=store_settings.dedupe_window, session_ttl=settings.cache.session_ttl or None
        )
        engine = engine or _make_engine(settings.engine)
        try:
            store = await open_store(
                store_settings.url,
                options,
                busy_timeout=store_settings.busy_timeout,
                synchronous=store_settings.synchronous,
                answer_timeout=store_settings.timeout,
            )
        except StoreError as error:
            await engine.close()
            raise ConfigError([f"store.url: {error}"]) from error
        self = cls(settings, store, engine)
        try:
            await self._listen()
        except BaseException:
            await self._close()
            raise
        return self

    async def drain(self) -> None:
        """Says NOT_SERVING, serves on while that news travels, then takes no more calls, lets those that run finish
        within the grace, writes what write-back holds, and closes the store.

        A second call cuts the notice short and waits for the same end.
        """
        if self._leaving.is_set():
            self._draining.set()
        else:
            _log.info("%s draining, at most %g s", self._settings.id, self._settings.drain.grace)
            self._leaving.set()
            # gRPC cancels calls that reach a server between its stop and the client's hearing of it.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.drain.notice):
                    await self._draining.wait()
            self._draining.set()
        await self._server.stop(self._settings.drain.grace)
        await self._close()
        _log.info("%s stopped", self._settings.id)

    async def _close(self) -> None:
        await self._maintenance.stop()
        await self._peers.close()
        await self._engine.close()
        deadline = asyncio.get_running_loop().time() + self._settings.drain.grace
        while True:
            try:
                await self._cache.write_out()
            except StoreError as error:
                if asyncio.get_running_loop().time() < deadline:
                    await asyncio.sleep(_WRITE_RETRY)
                    continue
                self.lost = self._cache.statistics().unwritten
                _log.error("%d acknowledged messages could not be written and are LOST: %s", self.lost, error)
            break
        await self._store.close()

    async def _listen(self) -> None:
        host, port = split_address(self._settings.address)
        await _check_bindable(self._settings.address)
        try:
            port = self._server.add_insecure_port(self._settings.address)
        except RuntimeError as error:
            raise ConfigError([f"address: {self._settings.address}: {error}"]) from error
        await self._server.start()
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _make_engine(settings: EngineSettings) -> ReplyEngine:
    """Raises ConfigError if the engine's extra is not installed."""
    if settings.kind == "echo":
        return EchoEngine(settings.token_delay)
    try:
        from backend.openai_engine import OpenAIEngine  # noqa: PLC0415 - an optional extra
    except ModuleNotFoundError as error:
        raise ConfigError([f"engine.kind: {error}: install the extra districhat[openai]"]) from error
    return OpenAIEngine(
        settings.url,
        settings.model,
        api_key=settings.api_key,
        system_prompt=settings.system_prompt,
        timeout=settings.timeout,
        max_reply=settings.max_reply,
    )


async def _check_bindable(address: str) -> None:
    """Binds and lets go at once: gRPC would not say why it cannot, and logs lines of its own about it.

    Raises ConfigError with the reason. A host with several addresses needs one that can be bound, and none in use.
    """
    host, port = split_address(address)
    reasons: list[OSError] = []
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise ConfigError([f"address: {address}: {error.strerror}"]) from error
    for family, kind, protocol, _, target in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(target)
        except OSError as error:
            reasons.append(error)
    if len(reasons) == len(found) or any(reason.errno == errno.EADDRINUSE for reason in reasons):
        raise ConfigError([f"address: {address}: {reasons[0].strerror}"])
