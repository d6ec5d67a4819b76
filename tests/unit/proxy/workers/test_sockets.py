"""Who listens on what."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from proxy.cluster.address import Address
from proxy.workers import sockets as ports

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


@contextmanager
def closing(dealt: Sequence[Sequence[socket.socket]]) -> Iterator[Sequence[Sequence[socket.socket]]]:
    try:
        yield dealt
    finally:
        ports.close(dealt)


def place(sockets: Sequence[socket.socket]) -> set[object]:
    return {each.getsockname() for each in sockets}


def test_every_worker_has_a_socket_of_its_own_on_the_same_port() -> None:
    with closing(ports.bind(Address("127.0.0.1", 0), 3)) as dealt:
        assert [len(some) for some in dealt] == [1, 1, 1]
        assert len({each.getsockname() for some in dealt for each in some}) == 1
        for some in dealt:
            some[0].listen()


def test_a_name_with_two_addresses_gives_each_worker_two_sockets() -> None:
    with closing(ports.bind(Address("localhost", 0), 2)) as dealt:
        assert place(dealt[0]) == place(dealt[1])
        assert len(place(dealt[0])) == len(dealt[0])


def test_a_port_that_another_process_would_share_is_refused() -> None:
    with closing(ports.bind(Address("127.0.0.1", 0), 1)) as dealt:
        dealt[0][0].listen()
        port = dealt[0][0].getsockname()[1]
        with pytest.raises(OSError, match="Address already in use"):
            ports.bind(Address("127.0.0.1", port), 2)


@pytest.mark.parametrize(("given", "workers"), [(2, 2), (2, 1), (3, 2), (2, 3), (1, 4)])
def test_inherited_sockets_are_all_dealt_and_nobody_goes_without(given: int, workers: int) -> None:
    with ExitStack() as stack:
        inherited = [each for some in ports.bind(Address("127.0.0.1", 0), given) for each in some]
        dealt = stack.enter_context(closing(ports.deal(inherited, workers)))
        assert all(dealt)
        held = [each for some in dealt for each in some]
        assert set(inherited) <= set(held)
        assert len(held) == max(given, workers)
        assert len(place(held)) == 1


def test_a_single_processs_socket_is_shared() -> None:
    with socket.create_server(("127.0.0.1", 0)) as single, closing(ports.deal([single], 3)) as dealt:
        numbers = [each.fileno() for some in dealt for each in some]
        assert len(set(numbers)) == 3
        assert {each.getsockname() for some in dealt for each in some} == {single.getsockname()}


def test_a_socket_that_comes_from_another_process_does_not_begin_to_wait_there() -> None:
    """O_NONBLOCK holds for all who share it: the other's event loop would stand still at its next accept."""
    with socket.create_server(("127.0.0.1", 0)) as served:
        served.setblocking(False)
        with socket.socket(fileno=os.dup(served.fileno())) as received, closing(ports.deal([received], 3)):
            assert not os.get_blocking(served.fileno())


def test_a_unix_socket_is_shared(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "s"))
        with closing(ports.deal([bound], 2)) as dealt:
            assert [each.getsockname() for some in dealt for each in some] == [bound.getsockname()] * 2
