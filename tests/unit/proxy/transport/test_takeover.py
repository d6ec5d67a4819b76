"""Handing over the port: what either side believes when the other fails, at every step."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from proxy.cluster.address import Address
from proxy.errors import ConfigError
from proxy.transport import takeover
from proxy.transport.takeover import READY, Handover, Takeover
from tests.support.polling import eventually, eventually_answers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.skipif(not takeover.SUPPORTED, reason="needs Linux: abstract unix sockets")


class Running:
    """A proxy that has a port and waits for a successor."""

    def __init__(self, port: socket.socket) -> None:
        host, number = port.getsockname()
        self.address = Address(host, number)
        self.taken = 0
        self.handover = Handover(self.address, [port.fileno()], self._on_taken)

    def _on_taken(self) -> None:
        self.taken += 1

    async def successor(self) -> Takeover:
        """One that has been given the socket."""
        begun = await Takeover.begin(self.address)
        assert begun is not None
        (given,) = begun.sockets
        assert given.getsockname() == (self.address.host, self.address.port)
        return begun


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with proxy() as one:
        yield one


@asynccontextmanager
async def proxy() -> AsyncIterator[Running]:
    with socket.create_server(("127.0.0.1", 0)) as port:
        one = Running(port)
        one.handover.open()
        try:
            yield one
        finally:
            await one.handover.close()


async def meets(running: Running) -> None:
    """Until the proxy is at the meeting point, and hands over its socket there."""

    async def there() -> bool:
        begun = await Takeover.begin(running.address)
        if begun is not None:
            begun.close()
        return begun is not None

    await eventually_answers(there, "the proxy at the meeting point")


async def test_a_successor_that_is_ready_gets_the_port_and_the_meeting_point(running: Running) -> None:
    begun = await running.successor()
    assert not begun.confirmed
    await begun.confirm()
    assert begun.confirmed
    assert running.taken == 1
    assert await Takeover.begin(running.address) is None, "nobody waits there: the successor may now"
    begun.close()


async def test_a_successor_that_dies_after_it_was_ready_and_before_it_heard_goodbye_is_none(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    begun = await running.successor()
    begun._peer.send(READY)
    begun.close()  # before the other side has had the processor
    await meets(running)
    assert running.taken == 0
    assert "a successor did not take over: " in caplog.text
    assert "cannot meet" not in caplog.text
    second = await running.successor()
    await second.confirm()
    assert running.taken == 1
    second.close()


async def test_a_successor_that_says_something_else_is_none(running: Running) -> None:
    begun = await running.successor()
    begun._peer.send(b"what?")
    await meets(running)
    assert running.taken == 0
    begun.close()


async def test_a_successor_that_is_ready_too_late_is_told_and_gives_up(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(takeover, "READY_TIMEOUT", 0.05)
    begun = await running.successor()
    await eventually(lambda: "a successor was not ready within" in caplog.text, "the end of its patience")
    with pytest.raises(ConfigError, match=r"the proxy that has .* goes on: this one was not ready within"):
        await begun.confirm()
    assert not begun.confirmed
    begun.close()
    await meets(running)
    assert running.taken == 0


async def test_a_proxy_that_dies_while_its_successor_gets_ready_leaves_it_the_port() -> None:
    async with proxy() as running:
        begun = await running.successor()
    assert running.handover.under_way
    await begun.confirm()
    assert begun.confirmed
    begun.close()


async def test_a_proxy_whose_successor_has_given_up_leaves_nobody_anything() -> None:
    async with proxy() as running:
        assert not running.handover.under_way
        begun = await running.successor()
        assert running.handover.under_way
        begun.close()
        await eventually(lambda: not running.handover.under_way, "its being noticed")
    assert not running.handover.under_way


async def test_a_successor_stays_one_as_long_as_it_lives_though_it_hears_no_goodbye(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The other process was stopped meanwhile, and finds "ready" when it goes on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as point, socket.create_server(("127.0.0.1", 0)) as port:
        address = Address(*port.getsockname())
        point.bind(takeover.meeting_point(address))
        point.listen()
        beginning = asyncio.ensure_future(Takeover.begin(address))
        await asyncio.sleep(0)
        peer, _ = await asyncio.to_thread(point.accept)
        with peer:
            socket.send_fds(peer, [b"sockets"], [port.fileno()])
            begun = await beginning
            assert begun is not None
            monkeypatch.setattr(takeover, "ANSWER_TIMEOUT", 0.05)  # of the goodbye alone: sockets must arrive in time
            await begun.confirm()
            assert begun.confirmed
            assert "did not say goodbye: it does not answer" in caplog.text
            assert peer.recv(16) == READY
            peer.sendall(takeover.BYE)  # is not refused: it lives
            begun.close()


async def test_asking_can_be_given_up_and_leaves_nothing_open() -> None:
    """The tests fail for sockets that nobody closes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as point:
        address = Address("127.0.0.1", 1)
        point.bind(takeover.meeting_point(address))
        point.listen()
        asking = asyncio.ensure_future(Takeover.begin(address))
        peer, _ = await asyncio.to_thread(point.accept)
        asking.cancel()
        with peer, pytest.raises(asyncio.CancelledError):
            await asking


async def test_a_proxy_that_does_not_answer_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(takeover, "ANSWER_TIMEOUT", 0.05)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as point:
        address = Address("127.0.0.1", 1)
        point.bind(takeover.meeting_point(address))
        point.listen()
        assert await Takeover.begin(address) is None
