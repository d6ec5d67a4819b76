"""The sockets that the workers listen on: one each, on the same port (SO_REUSEPORT, Linux 3.9)."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.cluster.address import Address


def bind(address: Address, workers: int) -> list[list[socket.socket]]:
    """For each worker a socket on each of the addresses that `address` stands for. They do not listen yet.

    Raises OSError if it cannot be had, as when somebody has it already: with SO_REUSEPORT alone, another proxy of the
    same user would share the port without a word.
    """
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[list[socket.socket]] = [[] for _ in range(workers)]
    port = address.port
    try:
        for family, _, _, _, place in dict.fromkeys(found):
            with _socket(family, shared=False) as probe:
                probe.bind((place[0], port, *place[2:]))
                port = probe.getsockname()[1]
            for each in sockets:
                each.append(_bound(family, (place[0], port, *place[2:])))
    except OSError:
        close(sockets)
        raise
    return sockets


def deal(inherited: Sequence[socket.socket], workers: int) -> list[list[socket.socket]]:
    """Sockets that listen already, for these workers: each gets some of every address, and none is left out, as clients
    wait in its queue.

    Are there fewer than workers, the rest get sockets of their own, or share one if it is not made for that: a single
    process had it, or it is a unix socket.
    """
    by_place: dict[object, list[socket.socket]] = {}
    for each in inherited:
        by_place.setdefault(each.getsockname(), []).append(each)
    sockets: list[list[socket.socket]] = [[] for _ in range(workers)]
    for place, group in by_place.items():
        shared = group[0].family in (socket.AF_INET, socket.AF_INET6) and group[0].getsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEPORT
        )
        for index, mine in enumerate(sockets):
            if index < len(group):
                mine.extend(group[index::workers])
            elif shared:
                mine.append(_bound(group[0].family, place))
            else:
                mine.append(_duplicate(group[index % len(group)]))
    return sockets


def close(sockets: Sequence[Sequence[socket.socket]]) -> None:
    """Close them all."""
    for some in sockets:
        for each in some:
            each.close()


def _socket(family: int, *, shared: bool) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as asyncio has it: IPv4 has its own
    return made


def _duplicate(listening: socket.socket) -> socket.socket:
    # Not `dup`, which would have it wait for clients, as sockets do that came from elsewhere: O_NONBLOCK holds for all
    # that share the queue, so the event loop of the process that serves it still would stand.
    return socket.socket(fileno=os.dup(listening.fileno()))


def _bound(family: int, place: object) -> socket.socket:
    made = _socket(family, shared=True)
    try:
        made.bind(place)  # type: ignore[arg-type]  # a place of `getsockname` or `getaddrinfo`
    except OSError:
        made.close()
        raise
    made.setblocking(False)  # noqa: FBT003 - the standard library's
    return made
