"""The checks of an endpoint, with a server that is a script."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from proxy.cluster.address import Address
from proxy.cluster.endpoint import Cause, Endpoint
from proxy.cluster.health import Sign
from proxy.control.health import EndpointCheck, HealthChecker
from proxy.control.probe import Answer
from proxy.control.settings import HealthSettings
from tests.support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

PASSED = Answer(Sign.PASSED)
FAILED = Answer(Sign.FAILED, "connection refused")
REFUSED = Answer(Sign.REFUSED, "says NOT_SERVING")
SOON = {"interval": 0.01, "unhealthy_interval": 0.01}
NEVER = {"interval": 3600.0}
"""No second check while all is well."""


class FakeProbe:
    """Answers by script, then for ever as it did last."""

    def __init__(self, *answers: Answer | Exception, watchable: bool = False) -> None:
        self.answers = list(answers)
        self.watchable = watchable
        self.checks = 0
        self.under_way = 0
        self.most = 0
        self.closed = 0
        self.gate: asyncio.Event | None = None
        """Checks wait for it, if there is one."""
        self.news: asyncio.Queue[Answer] = asyncio.Queue()
        self.watches = 0
        self.watching = 0

    async def check(self) -> Answer:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            if self.gate is not None:
                await self.gate.wait()
        finally:
            self.under_way -= 1
        self.checks += 1
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def watch(self) -> AsyncGenerator[Answer, None]:
        self.watches += 1
        self.watching += 1
        try:
            while True:
                yield await self.news.get()
        finally:
            self.watching -= 1

    async def close(self) -> None:
        self.closed += 1


def endpoint() -> Endpoint:
    return Endpoint("Server-A", Address("127.0.0.1", 1))


@asynccontextmanager
async def checking(
    probe: FakeProbe,
    *,
    slots: asyncio.Semaphore | None = None,
    on_success: Callable[[Endpoint], object] = lambda _: None,
    **settings: Any,
) -> AsyncIterator[EndpointCheck]:
    """A check that runs."""
    values = HealthSettings.model_validate({**SOON, **settings})
    slots = slots or asyncio.Semaphore(64)
    check = EndpointCheck(endpoint(), probe, values, slots, on_success, lambda: 0.5, Counter())
    task = asyncio.get_running_loop().create_task(check.run())
    try:
        yield check
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert probe.closed >= 1
        assert probe.watching == 0


async def test_each_flip_is_logged_once_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    script = [PASSED, FAILED, FAILED, PASSED, FAILED, FAILED, FAILED, FAILED, PASSED, PASSED, PASSED]
    probe = FakeProbe(*script)
    async with checking(probe):
        await eventually(lambda: probe.checks > len(script))
    ours = [(record.levelname, record.getMessage()) for record in caplog.records if record.name.startswith("proxy")]
    assert ours == [
        ("WARNING", "Server-A (127.0.0.1:1) is unhealthy: health check failed: connection refused"),
        ("INFO", "Server-A (127.0.0.1:1) is healthy again"),
    ]


async def test_the_endpoint_is_blocked_for_the_latest_reason_and_only_by_its_own_cause() -> None:
    probe = FakeProbe(REFUSED, FAILED)
    async with checking(probe) as check:
        await check.checked.wait()
        assert check.endpoint.reason == "says NOT_SERVING"
        check.endpoint.block(Cause.EJECTED, "ejected")
        await eventually(lambda: "connection refused" in check.endpoint.reason)
        probe.answers = [PASSED]
        await eventually(lambda: not check.endpoint.blocked_by(Cause.HEALTH))
        assert check.endpoint.reason == "ejected"


async def test_every_success_is_passed_on_and_no_failure() -> None:
    told: list[bool] = []
    probe = FakeProbe(PASSED, FAILED, FAILED, FAILED, PASSED, PASSED, FAILED)
    async with checking(probe, on_success=lambda endpoint: told.append(endpoint.available)):
        await eventually(lambda: probe.checks > 7)
    assert told == [True, False, True]


async def test_a_bug_in_a_check_or_behind_it_neither_ends_the_checks_nor_blocks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(_endpoint: Endpoint) -> None:
        raise ZeroDivisionError

    probe = FakeProbe(ZeroDivisionError("bug"), PASSED, REFUSED)
    async with checking(probe, on_success=broken) as check:
        await check.checked.wait()
        assert check.endpoint.available
        await eventually(lambda: not check.endpoint.available, "the refusal")
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 2


async def test_a_word_of_the_watch_holds_at_once_and_the_next_check_comes_soon() -> None:
    probe = FakeProbe(PASSED, watchable=True)
    flips: list[bool] = []
    async with checking(probe, **NEVER) as check:
        check.endpoint.notify = lambda endpoint: flips.append(endpoint.available)
        await eventually(lambda: probe.watching, "the watch")
        probe.news.put_nowait(PASSED)
        probe.news.put_nowait(REFUSED)
        await eventually(lambda: probe.watches == 2, "the next watch, after a check")
        assert probe.checks == 2
        assert flips == [False, True]


async def test_what_a_check_heard_before_the_watch_spoke_does_not_count() -> None:
    probe = FakeProbe(PASSED, watchable=True)
    async with checking(probe, interval=0.1) as check:
        await eventually(lambda: probe.watching, "the watch")
        probe.gate = asyncio.Event()
        await eventually(lambda: probe.under_way, "a check")
        probe.news.put_nowait(REFUSED)
        await eventually(lambda: not check.endpoint.available, "the news")
        probe.answers = [REFUSED]  # from now on; the check under way has passed
        checks = probe.checks
        probe.gate.set()
        await eventually(lambda: probe.checks > checks, "the answer")
        assert not check.endpoint.available


async def test_a_failed_check_ends_the_watch() -> None:
    probe = FakeProbe(PASSED, FAILED, watchable=True)
    async with checking(probe):
        await eventually(lambda: probe.checks > 3)
        assert probe.watching == 0
        assert probe.watches == 1


async def test_no_more_checks_than_allowed_are_under_way_and_all_get_their_turn() -> None:
    probe = FakeProbe(PASSED)
    slots = asyncio.Semaphore(3)
    values = HealthSettings.model_validate({**SOON, "interval": 0.02})
    checks = [
        EndpointCheck(endpoint(), probe, values, slots, lambda _: None, lambda: 0.5, Counter()) for _ in range(20)
    ]
    probe.gate = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(check.run()) for check in checks]
        await eventually(lambda: probe.under_way == 3)
        probe.gate.set()
        await eventually(lambda: all(check.checked.is_set() for check in checks))
        for task in tasks:
            task.cancel()
    assert probe.most == 3


async def test_pauses_are_shortened_by_chance_and_shorter_while_something_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []

    class Timeout:
        def __init__(self, delay: float) -> None:
            pauses.append(delay)

        async def __aenter__(self) -> None:
            raise TimeoutError

        async def __aexit__(self, *_: object) -> None:
            pass

    real = asyncio.sleep

    async def sleep(delay: float) -> None:
        pauses.append(delay)
        await real(0)

    monkeypatch.setattr("proxy.control.health.asyncio.timeout", Timeout)
    probe = FakeProbe(PASSED, PASSED, FAILED, FAILED, FAILED, PASSED, PASSED, PASSED)
    with monkeypatch.context() as patch:
        patch.setattr("proxy.control.health.asyncio.sleep", sleep)
        values = HealthSettings(interval=10, unhealthy_interval=4, interval_jitter_percent=20)
        chances = iter([0.25] + [0.5] * 20)
        check = EndpointCheck(
            endpoint(), probe, values, asyncio.Semaphore(), lambda _: None, lambda: next(chances), Counter()
        )
        task = asyncio.get_running_loop().create_task(check.run())
        while probe.checks < 9:
            await real(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    # 10 x 0.25: the second checks are spread over the interval. Then 10 or 4, less half of 20 %.
    assert pauses[:8] == pytest.approx([2.5, 9.0, 3.6, 3.6, 3.6, 3.6, 9.0, 9.0])


async def test_off_means_that_nothing_runs() -> None:
    checker = HealthChecker([endpoint()], HealthSettings(kind="off"))
    before = asyncio.all_tasks()
    await checker.start()
    assert asyncio.all_tasks() == before
    await checker.stop()


async def test_new_settings_restart_the_checks_and_new_members_are_checked_before_it_returns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probes: dict[str, list[FakeProbe]] = {}

    def probe(address: Address, *_: object) -> FakeProbe:
        made = FakeProbe(PASSED)
        probes.setdefault(str(address), []).append(made)
        return made

    monkeypatch.setattr("proxy.control.health.Probe", probe)
    a, b = (Endpoint(name, Address("10.0.0.1", port)) for port, name in enumerate("AB", 1))
    settings = HealthSettings.model_validate(NEVER)
    checker = HealthChecker([a], settings)
    await checker.start()
    await checker.configure([a, b], settings, {}, {})
    assert [each.checks for each in probes["10.0.0.1:2"]] == [1], "the new one was not checked"
    assert len(probes["10.0.0.1:1"]) == 1, "the other was disturbed"
    await checker.configure([b], settings, {}, {})
    assert probes["10.0.0.1:1"][0].closed == 1
    await checker.configure([b], settings, {"B": Address("10.0.0.1", 9)}, {})
    assert probes["10.0.0.1:2"][0].closed == 1
    assert probes["10.0.0.1:9"][0].checks == 1, "its checks have moved"
    b.block(Cause.HEALTH, "timed out")
    await checker.configure([b], HealthSettings(kind="off"), {}, {})
    assert probes["10.0.0.1:9"][0].closed == 1
    assert b.available, "nobody checks, so nobody can say that it is unhealthy"
    await checker.stop()
