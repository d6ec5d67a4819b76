"""What an acceptor does about every way in which accept(2) fails; real sockets, scripted errors."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections import deque
from collections.abc import AsyncIterator

import pytest

from proxy.transport import acceptor as module
from proxy.transport.acceptor import MAX_ACCEPTS, Acceptor
from tests.support.polling import eventually

FAREWELL = b"goodbye"


class Listening(socket.socket):
    """A socket on a free port whose `accept` fails as the script says, then works."""

    def __init__(self) -> None:
        super().__init__()
        self.script: deque[int] = deque()
        self.tries = 0
        self.bind(("127.0.0.1", 0))

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        self.tries += 1
        if self.script:
            raise OSError(self.script.popleft(), "scripted")
        return super().accept()


class Door:
    """An acceptor, and everything it told."""

    def __init__(self) -> None:
        self.listening = Listening()
        self.welcomed: list[tuple[socket.socket, str | None]] = []
        self.exhausted: list[str] = []
        self.clients: list[socket.socket] = []
        self.acceptor = Acceptor(
            [self.listening], 16, lambda *client: self.welcomed.append(client), self.tell, FAREWELL
        )
        self.closes = False
        """At the first word of it."""

    def tell(self, detail: str) -> None:
        self.exhausted.append(detail)
        if self.closes:
            self.acceptor.close()

    def knock(self) -> socket.socket:
        client = socket.create_connection(self.listening.getsockname())
        self.clients.append(client)
        return client

    async def first_welcomed(self) -> None:
        """The pass of the event loop in which the first client is accepted is over."""
        until = time.monotonic() + 10.0
        while not self.welcomed:
            assert time.monotonic() < until
            await asyncio.sleep(0)

    async def passes(self) -> None:
        """Some turns of the event loop, which polls its sockets in each."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def rests(self) -> None:
        """Nothing is tried in the next turns of the event loop."""
        tries = self.listening.tries
        await self.passes()
        assert self.listening.tries == tries

    def close(self) -> None:
        self.acceptor.close()
        for client in (*self.clients, *(each for each, _ in self.welcomed)):
            client.close()


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    bugs: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: bugs.append(context))
    door = Door()
    door.acceptor.start()
    yield door
    door.close()
    assert not bugs, "nothing reached the event loop"


async def test_clients_are_welcomed_with_their_address(door: Door) -> None:
    door.knock()
    door.knock()
    await eventually(lambda: len(door.welcomed) == 2)
    assert [address for _, address in door.welcomed] == ["127.0.0.1"] * 2
    assert all(not client.getblocking() for client, _ in door.welcomed)


async def test_no_more_clients_are_accepted_in_one_pass_than_leave_calls_their_turn(door: Door) -> None:
    for _ in range(MAX_ACCEPTS + 2):
        door.knock()
    await door.first_welcomed()
    assert len(door.welcomed) == MAX_ACCEPTS
    await eventually(lambda: len(door.welcomed) == MAX_ACCEPTS + 2)


@pytest.mark.parametrize(
    "name",
    [
        *("ECONNABORTED", "EPERM", "EPROTO", "ENOPROTOOPT", "EOPNOTSUPP", "ETIMEDOUT"),
        *("ENETDOWN", "EHOSTDOWN", "ENONET", "EHOSTUNREACH", "ENETUNREACH"),
    ],
)
async def test_an_error_of_a_client_that_has_left_already_holds_up_nobody(
    door: Door, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """accept(2), "Error handling"."""
    door.listening.script.extend([getattr(errno, name)] * 3)
    door.knock()
    await eventually(lambda: door.welcomed)
    assert not door.exhausted
    assert not caplog.records


async def test_more_such_errors_than_a_pass_of_the_loop_takes_hold_up_nobody_either(door: Door) -> None:
    door.listening.script.extend([errno.ECONNABORTED] * 1000)
    door.knock()
    await eventually(lambda: door.welcomed)


@pytest.mark.parametrize("name", ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"])
async def test_without_descriptors_or_memory_clients_wait_and_nothing_is_tried_meanwhile(door: Door, name: str) -> None:
    door.listening.script.append(getattr(errno, name))
    door.knock()
    await eventually(lambda: door.exhausted)
    assert door.exhausted[0].startswith("clients have to wait: ")
    await door.rests()
    assert not door.welcomed
    door.acceptor.go_on()
    await eventually(lambda: door.welcomed)
    assert len(door.exhausted) == 1


async def test_those_who_wait_are_taken_after_a_pause_although_nobody_left(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.01)
    door.listening.script.extend([errno.EMFILE] * 3)
    door.knock()
    await eventually(lambda: door.welcomed)
    assert len(door.exhausted) == 3


async def test_an_error_that_nobody_has_thought_of_is_said_and_does_not_make_the_loop_spin(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    door.listening.script.append(errno.EINVAL)
    door.knock()
    with caplog.at_level(logging.ERROR):
        await eventually(lambda: caplog.records)
    assert caplog.messages == ["cannot accept clients, and try again in 1 s: invalid argument"]
    await door.rests()
    door.acceptor.go_on()
    await eventually(lambda: door.welcomed)


async def test_the_last_descriptors_are_not_for_clients(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.resource, "getrlimit", lambda _what: (8, 8))  # all above 5 are spared
    client = door.knock()
    await eventually(lambda: door.exhausted)
    assert client.recv(100) == FAREWELL
    assert client.recv(100) == b""
    why = "the last file descriptors are for servers (the process may have 8; see ulimit -n, LimitNOFILE)"
    assert door.exhausted == [f"a client was turned away: {why}"]
    monkeypatch.setattr(module.resource, "getrlimit", lambda _what: (module.resource.RLIM_INFINITY,) * 2)
    door.knock()
    await eventually(lambda: door.welcomed)
    assert len(door.exhausted) == 1


async def test_nobody_is_accepted_after_the_end_even_if_it_came_during_a_pause(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.0)
    door.closes = True
    door.listening.script.append(errno.EMFILE)
    door.knock()
    await eventually(lambda: door.exhausted)
    door.acceptor.close()
    door.acceptor.go_on()
    await door.passes()
    assert not door.welcomed
    assert door.listening.fileno() == -1


async def test_an_acceptor_that_never_started_can_be_closed() -> None:
    door = Door()
    door.acceptor.close()
    assert door.listening.fileno() == -1
