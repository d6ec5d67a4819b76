"""The web server of the admin API."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from proxy.admin.api import Api
from proxy.admin.dashboard import Dashboard
from proxy.admin.guard import errors, guard
from proxy.admin.ports import AdminPort
from proxy.admin.ring_view import RingViews
from proxy.admin.settings import AdminSettings
from proxy.cluster.address import Address
from proxy.transport.reactor import reason

log = logging.getLogger(__name__)

MAX_BODY: Final = 65_536
"""Bytes of the longest request body."""
MAX_LINE: Final = 65_536
"""Bytes of a request's first line: a key of 4 KiB is twice as long in hexadecimal, and a plan may name many servers."""
LAST_WORDS: Final = 1.0
"""Seconds that running requests get at the end."""
TRY_AGAIN: Final = 1.0
"""Seconds between two tries to get a port that is taken."""


def application(proxy: AdminPort, settings: AdminSettings, views: RingViews) -> web.Application:
    """All of it, for a server or for a test."""
    dashboard = Dashboard()
    app = web.Application(middlewares=[errors, guard(settings, dashboard.paths)], client_max_size=MAX_BODY)
    app.add_routes(dashboard.routes())
    app.add_routes(Api(proxy, views, max_watchers=settings.max_watchers).routes())
    return app


def _is_no_garbage(record: logging.LogRecord) -> bool:
    """Who sends what is no HTTP is told so, with 400; in the log, each line of a port scanner would be a traceback."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


_http_log = logging.getLogger(f"{__name__}.http")
_http_log.addFilter(_is_no_garbage)


class AdminServer:
    """Listens from `start` until `stop`."""

    def __init__(self, proxy: AdminPort, settings: AdminSettings, views: RingViews) -> None:
        self._proxy = proxy
        self._settings = settings
        self._views = views
        self._runner: web.AppRunner | None = None
        self._trying: asyncio.Task[None] | None = None
        self.address: Address | None = None
        """Where it listens; None: it does not."""

    async def start(self, *, patient: bool) -> None:
        """Listen, if an address is set. A port that is taken is an OSError; `patient`: it is waited for instead, in the
        background, as the proxy must not fail for it.
        """
        if not self._settings.address:
            return
        app = application(self._proxy, self._settings, self._views)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            shutdown_timeout=LAST_WORDS,
            max_line_size=MAX_LINE,
            logger=_http_log,
        )
        await self._runner.setup()
        try:
            await self._listen(self._runner)
        except OSError as error:
            if not patient:
                await self.stop()
                raise
            log.warning("the admin server waits for %s: %s", self._settings.address, reason(error))
            self._trying = asyncio.get_running_loop().create_task(self._keep_trying(self._runner), name="admin port")

    async def _listen(self, runner: web.AppRunner) -> None:
        address = Address.parse(self._settings.address)
        site = web.TCPSite(runner, address.host, address.port)
        try:
            await site.start()
        except OSError:
            await site.stop()
            raise
        host, port = runner.addresses[0][:2]
        self.address = Address(host, port)
        log.info("admin server on http://%s", self.address)

    async def _keep_trying(self, runner: web.AppRunner) -> None:
        while self.address is None:
            await asyncio.sleep(TRY_AGAIN)
            try:
                await self._listen(runner)
            except OSError:
                continue

    async def stop(self) -> None:
        """Listen no more. Event streams end, other requests get a moment. May be called twice or without `start`."""
        if self._trying is not None:
            self._trying.cancel()
            await asyncio.gather(self._trying, return_exceptions=True)
            self._trying = None
        self._proxy.events.close()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()
        self.address = None
