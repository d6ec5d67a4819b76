"""Active health checks: asks every server again and again, and has calls walk past those that do not answer well.

One task per endpoint. It checks, tells `Endpoint.block` when that makes a difference, and sleeps; each sleep is
shortened by chance, so that endpoints are not checked in step. Beside it one task per watched endpoint reads what the
server says of itself, so that a server that begins to drain gets no call more.

Regular checks go on while a server is watched: one that hangs says nothing. And the watch is given up as soon as the
server says that it does not serve, since a stock server's graceful stop would wait for our stream until its grace is
over; that it serves again is found by the next check.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Protocol

import grpc.aio

from proxy.cluster.address import Address
from proxy.cluster.endpoint import Cause, Endpoint
from proxy.cluster.health import HealthState, Sign
from proxy.control.probe import NOT_THERE, Answer, Probe
from proxy.control.settings import HealthSettings
from proxy.transport.tls import EndpointTls

log = logging.getLogger(__name__)


class Asker(Protocol):
    """What a check needs of `Probe`, where it is specified."""

    @property
    def watchable(self) -> bool:
        """Whether it is of use to `watch`."""

    async def check(self) -> Answer:
        """Check once."""

    def watch(self) -> AsyncGenerator[Answer, None]:
        """What the server says of itself."""

    async def close(self) -> None:
        """Close the connection."""


class HealthChecker:
    """Checks the endpoints from `start` until `stop`. Needs an event loop only between the two."""

    def __init__(
        self,
        endpoints: Iterable[Endpoint],
        settings: HealthSettings,
        *,
        addresses: Mapping[str, Address] | None = None,
        secured: Mapping[str, EndpointTls] | None = None,
        on_success: Callable[[Endpoint], object] | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`addresses`: by id, of endpoints that are checked elsewhere than where they serve. `secured`: by id, of those
        that are checked over TLS. `on_success` is called after every passed check; while it flips, after the flip.
        `chance`: numbers from 0 up to, not including, 1.
        """
        self._on_success = on_success or _nobody
        self._chance = chance
        self._settings = settings
        self._slots = asyncio.Semaphore(settings.max_concurrent_checks)
        self._targets: dict[Endpoint, tuple[Address, EndpointTls | None]] = {}
        self._checks: dict[Endpoint, EndpointCheck] = {}
        self._tasks: dict[Endpoint, asyncio.Task[None]] = {}
        self.results: Counter[tuple[str, Sign]] = Counter()
        """Checks by endpoint and what they gave."""
        self._add({each: _target(each, addresses or {}, secured or {}) for each in endpoints})

    def _add(self, targets: Mapping[Endpoint, tuple[Address, EndpointTls | None]]) -> list[EndpointCheck]:
        added = []
        if self._settings.kind != "off":
            for endpoint, (address, tls) in targets.items():
                self._targets[endpoint] = address, tls
                probe = Probe(address, self._settings, tls)
                check = EndpointCheck(
                    endpoint, probe, self._settings, self._slots, self._on_success, self._chance, self.results
                )
                self._checks[endpoint] = check
                added.append(check)
        return added

    async def start(self) -> None:
        """Begin. Returns when every endpoint has been checked once, at the latest after `startup_timeout`; whoever has
        not been checked by then is taken for healthy until it is.
        """
        await self._begin(list(self._checks.values()))

    async def configure(
        self,
        endpoints: Iterable[Endpoint],
        settings: HealthSettings,
        addresses: Mapping[str, Address],
        secured: Mapping[str, EndpointTls],
    ) -> None:
        """Once started: check these endpoints by these settings from now on. The checks of those that stay go on as
        they are, unless the settings have changed. Returns as `start` does, for the endpoints that are new.
        """
        wanted = {endpoint: _target(endpoint, addresses, secured) for endpoint in endpoints}
        changed = settings != self._settings
        await self._end([each for each in self._checks if changed or wanted.get(each) != self._targets[each]])
        ids = {endpoint.id for endpoint in wanted}
        for key in [key for key in self.results if key[0] not in ids]:
            del self.results[key]
        if changed:
            self._settings = settings
            self._slots = asyncio.Semaphore(settings.max_concurrent_checks)
        if settings.kind == "off":
            for endpoint in wanted:
                endpoint.unblock(Cause.HEALTH)
        await self._begin(self._add({each: wanted[each] for each in wanted if each not in self._checks}))

    async def _begin(self, checks: Sequence[EndpointCheck]) -> None:
        loop = asyncio.get_running_loop()
        for check in checks:
            name = f"health check of {check.endpoint.id}"
            self._tasks[check.endpoint] = loop.create_task(check.run(), name=name)
        patience = self._settings.startup_timeout
        try:
            async with asyncio.timeout(patience):
                for check in checks:
                    await check.checked.wait()
        except TimeoutError:
            if patience:
                late = sum(not check.checked.is_set() for check in checks)
                log.warning("%d endpoints are not checked yet after %g s", late, patience)

    async def _end(self, endpoints: Sequence[Endpoint]) -> None:
        tasks = [self._tasks.pop(each) for each in endpoints if each in self._tasks]
        for endpoint in endpoints:
            del self._checks[endpoint], self._targets[endpoint]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def stop(self) -> None:
        """Check no more, and close the connections. May be called twice, and without `start`. What the checks have
        said against endpoints stands.
        """
        await self._end(list(self._checks))


class EndpointCheck:
    """The checks of one endpoint."""

    def __init__(
        self,
        endpoint: Endpoint,
        probe: Asker,
        settings: HealthSettings,
        slots: asyncio.Semaphore,
        on_success: Callable[[Endpoint], object],
        chance: Callable[[], float],
        results: Counter[tuple[str, Sign]],
    ) -> None:
        """`slots`: shared by all endpoints; each check under way holds one. `results`: counts what checks gave."""
        self._results = results
        self.endpoint = endpoint
        self.checked = asyncio.Event()
        """There is a first result."""
        self._probe = probe
        self._settings = settings
        self._slots = slots
        self._on_success = on_success
        self._chance = chance
        self._state = HealthState(settings.unhealthy_threshold, settings.healthy_threshold)
        self._watch: asyncio.Task[None] | None = None
        self._unwatchable = False
        """The server has no `Watch`."""
        self._told = 0
        """Times the watch has said something."""
        self._stirred = asyncio.Event()
        """The watch has ended: a check should look into that."""

    async def run(self) -> None:
        """Check until cancelled."""
        interval = self._settings.interval
        # The first checks are made all at once; the second ones are spread over the whole interval.
        pause = interval * self._chance()
        try:
            while True:
                try:
                    await self._check()
                except Exception:  # a bug of ours must not end the checks, nor speak against a server
                    log.exception("the health check of %s failed to check", self.endpoint.id)
                self.checked.set()
                await self._pause(pause)
                pause = interval * self._shortening()
        finally:
            await self._unwatch()
            await self._probe.close()

    def _shortening(self) -> float:
        return 1.0 - self._settings.interval_jitter_percent / 100.0 * self._chance()

    async def _pause(self, interval: float) -> None:
        """Until the next check: `interval`, but `unhealthy_interval` from the moment on from which all is not well."""
        if self._state.calm:
            try:
                async with asyncio.timeout(interval):
                    await self._stirred.wait()
            except TimeoutError:
                return
        self._stirred.clear()
        await asyncio.sleep(self._settings.unhealthy_interval * self._shortening())

    async def _check(self) -> None:
        async with self._slots:
            told = self._told
            answer = await self._probe.check()
        self._results[self.endpoint.id, answer.sign] += 1
        if answer.sign is Sign.FAILED:
            await self._unwatch()
            self._unwatchable = False  # whatever comes up there may have one
        elif told != self._told:
            return  # the watch has spoken meanwhile: what the check heard may be older
        self._observe(answer)
        if answer.sign is Sign.PASSED:
            self._on_success(self.endpoint)
            if self._state.healthy:
                self._start_watch()

    def _observe(self, answer: Answer) -> None:
        """Let the endpoint and the log know, as far as it makes a difference."""
        endpoint = self.endpoint
        flipped = self._state.observe(answer.sign)
        if self._state.healthy:
            endpoint.unblock(Cause.HEALTH)
            if flipped:
                log.info("%s (%s) is healthy again", endpoint.id, endpoint.address)
            return
        if answer.sign is not Sign.PASSED:
            why = answer.why if answer.sign is Sign.REFUSED else f"health check failed: {answer.why}"
            endpoint.block(Cause.HEALTH, why)
            if flipped:
                log.warning("%s (%s) is unhealthy: %s", endpoint.id, endpoint.address, why)

    # The watch.

    def _start_watch(self) -> None:
        """Unless it runs, or cannot."""
        if self._probe.watchable and not self._unwatchable and (self._watch is None or self._watch.done()):
            name = f"health watch of {self.endpoint.id}"
            self._watch = asyncio.get_running_loop().create_task(self._follow(), name=name)

    async def _follow(self) -> None:
        try:
            async with aclosing(self._probe.watch()) as answers:
                async for answer in answers:
                    self._told += 1
                    self._observe(answer)
                    if answer.sign is not Sign.PASSED:
                        break
        except grpc.aio.AioRpcError as error:
            self._unwatchable = error.code() in NOT_THERE
        except Exception:  # as above
            log.exception("the health watch of %s failed to watch", self.endpoint.id)
        if not self._unwatchable:
            self._stirred.set()  # it has bad news, or is lost, as when the server goes

    async def _unwatch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)


def _target(
    endpoint: Endpoint, addresses: Mapping[str, Address], secured: Mapping[str, EndpointTls]
) -> tuple[Address, EndpointTls | None]:
    """Where and how it is checked."""
    return addresses.get(endpoint.id, endpoint.address), secured.get(endpoint.id)


def _nobody(_endpoint: Endpoint) -> None:
    """Nobody wants to know."""
