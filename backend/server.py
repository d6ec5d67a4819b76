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
from backend.service import ChatService
from backend.settings import split_address
from backend.store.url import open_store

if TYPE_CHECKING:
    from backend.settings import BackendSettings
    from backend.store.base import SessionStore

_log = logging.getLogger(__name__)


class ChatServer:
    """A server that listens and serves. Made by `start`; ended by `drain`, by whoever started it."""

    def __init__(
        self,
        settings: BackendSettings,
        server: grpc.aio.Server,
        store: SessionStore,
        leaving: asyncio.Event,
        draining: asyncio.Event,
    ) -> None:
        self._settings = settings
        self._server = server
        self._store = store
        self._leaving = leaving
        self._draining = draining
        self.address = settings.address
        """`host:port` it listens on, with the real port."""

    @classmethod
    async def start(cls, settings: BackendSettings, *, engine: ReplyEngine | None = None) -> ChatServer:
        """Opens the store, then listens. `engine`: None for the one the settings describe.

        Raises ConfigError, its line naming `store.url` or `address`, if either is not possible.
        """
        try:
            store = await open_store(
                settings.store.url,
                busy_timeout=settings.store.busy_timeout,
                synchronous=settings.store.synchronous,
            )
        except StoreError as error:
            raise ConfigError([f"store.url: {error}"]) from error
        leaving, draining = asyncio.Event(), asyncio.Event()
        # Without it two servers could share a port, each getting some of the connections.
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self = cls(settings, server, store, leaving, draining)
        cache = HierarchicalCache(
            settings.cache.l1_capacity,
            settings.cache.l2_capacity,
            store=store,
            recent_messages=settings.cache.recent_messages,
        )
        service = ChatService(settings.id, cache, engine or EchoEngine(settings.engine.token_delay), leaving, draining)
        chat_pb2_grpc.add_ChatServiceServicer_to_server(service, server)
        health_pb2_grpc.add_HealthServicer_to_server(HealthService(leaving), server)
        reflection.enable_server_reflection((CHAT_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        try:
            await self._listen()
        except BaseException:
            await store.close()
            raise
        return self

    async def drain(self) -> None:
        """Says NOT_SERVING, serves on while that news travels, then takes no more calls, lets those that run finish
        within the grace, and closes the store.

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
        await self._store.close()
        _log.info("%s stopped", self._settings.id)

    async def _listen(self) -> None:
        host, port = split_address(self._settings.address)
        await _check_bindable(self._settings.address)
        try:
            port = self._server.add_insecure_port(self._settings.address)
        except RuntimeError as error:
            raise ConfigError([f"address: {self._settings.address}: {error}"]) from error
        await self._server.start()
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


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
