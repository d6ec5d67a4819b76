"""What is seen of the bytes below a connection; real sockets."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator

import pytest

from proxy.transport.progress import Progress
from tests.support.polling import eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux tells how far bytes have come")


class Wire:
    """A transport without a loop: what the kernel does not take waits."""

    def __init__(self, near: socket.socket) -> None:
        self.near = near
        near.setblocking(False)
        self.buffer = bytearray()
        self.secured = False

    def get_extra_info(self, name: str) -> object:
        return {"socket": self.near, "ssl_object": self if self.secured else None}[name]

    def get_write_buffer_size(self) -> int:
        return len(self.buffer)

    def write(self, data: bytes) -> None:
        self.buffer += data
        try:
            while self.buffer:
                del self.buffer[: self.near.send(self.buffer)]
        except BlockingIOError:
            pass


class Connection:
    """What `Progress` looks at. It writes as its program does: to `wire`, whatever that is."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.transport = Wire(near)
        self.wire: Wire | None = self.transport
        self.far = far
        far.setblocking(True)

    def write(self, size: int) -> None:
        assert self.wire is not None
        self.wire.write(bytes(size))

    def fill(self) -> None:
        """So that something waits above the kernel."""
        while not self.transport.buffer:
            self.write(100_000)

    def read(self, amount: int) -> None:
        while amount > 0:
            amount -= len(self.far.recv(amount))


@pytest.fixture(params=["tcp", "unix"])
def connection(request: pytest.FixtureRequest) -> Iterator[Connection]:
    with socket.socket(socket.AF_INET) as listening:
        if request.param == "unix":
            near, far = socket.socketpair()
        else:
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            far = socket.socket()
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            far.connect(listening.getsockname())
            near, _ = listening.accept()
        with near, far:
            yield Connection(near, far)


def look(progress: Progress, connection: Connection) -> bool:
    return progress.look(connection)  # type: ignore[arg-type]  # as much of one as it looks at


async def test_a_peer_that_reads_nothing_makes_no_progress(connection: Connection) -> None:
    progress = Progress()
    connection.fill()
    assert look(progress, connection), "nothing can be told the first time"
    await eventually(lambda: not look(progress, connection), "the last bytes that its kernel took")
    assert not any(look(progress, connection) for _ in range(10))
    assert progress.in_flight > 100_000


async def test_what_is_written_meanwhile_is_no_progress_of_a_peer_that_reads_nothing(connection: Connection) -> None:
    progress = Progress()
    connection.fill()
    await eventually(lambda: not look(progress, connection))
    for _ in range(10):
        connection.write(20)
        assert not look(progress, connection)


async def test_a_peer_that_reads_a_little_makes_progress_before_the_transport_has_room(connection: Connection) -> None:
    progress = Progress()
    connection.fill()
    await eventually(lambda: not look(progress, connection))
    delivered, in_flight = progress.delivered, progress.in_flight
    buffered = len(connection.transport.buffer)
    connection.read(70_000)
    await eventually(lambda: look(progress, connection))
    assert len(connection.transport.buffer) == buffered
    await eventually(lambda: look(progress, connection) or progress.in_flight < in_flight)
    assert progress.delivered > delivered


@pytest.mark.parametrize("connection", ["tcp"], indirect=True)
async def test_what_was_in_flight_is_what_is_delivered_in_the_end(connection: Connection) -> None:
    progress = Progress()
    connection.fill()
    look(progress, connection)
    end = progress.delivered + progress.in_flight
    left = progress.in_flight
    while left > 0:
        left -= len(connection.far.recv(min(left, 65_536)))
        connection.write(0)
    await eventually(lambda: look(progress, connection) is not None and not progress.in_flight)
    assert progress.delivered == end


UNIX = pytest.mark.parametrize("connection", ["unix"], indirect=True)


@UNIX
async def test_all_has_arrived_that_was_written_once_a_unix_socket_is_empty(connection: Connection) -> None:
    progress = Progress()
    look(progress, connection)
    connection.write(50_000)
    look(progress, connection)
    assert progress.delivered < 0, "the memory is more than the bytes"
    assert progress.delivered + progress.in_flight == 50_000
    connection.read(50_000)
    assert look(progress, connection)
    assert (progress.delivered, progress.in_flight) == (50_000, 0)


@UNIX
async def test_of_a_unix_socket_each_piece_that_was_read_is_seen(connection: Connection) -> None:
    progress = Progress()
    connection.fill()
    look(progress, connection)
    assert not look(progress, connection)
    for _ in range(5):
        connection.read(37_000)
        assert look(progress, connection)
        assert not look(progress, connection)


@UNIX
async def test_a_peer_that_takes_as_much_as_is_written_makes_progress_although_as_much_waits(
    connection: Connection,
) -> None:
    progress = Progress()
    connection.write(20)
    look(progress, connection)
    for _ in range(10):
        connection.write(20)
        connection.read(20)
        in_flight = progress.in_flight
        assert look(progress, connection)
        assert progress.in_flight == in_flight


@UNIX
async def test_a_peer_that_reads_nothing_is_found_out_once_the_kernel_takes_no_more(connection: Connection) -> None:
    progress = Progress()
    look(progress, connection)
    connection.write(1_000)
    while not connection.transport.buffer:
        assert look(progress, connection), "whether it reads cannot be told"
        connection.write(1_000)
    assert not look(progress, connection)


@UNIX
async def test_the_transport_is_as_before_when_nothing_waits_any_more(connection: Connection) -> None:
    progress = Progress()
    look(progress, connection)
    assert connection.wire is not connection.transport
    progress.end(connection)  # type: ignore[arg-type]  # as above
    assert connection.wire is connection.transport


async def test_in_tls_bytes_wait_below_a_buffer_that_is_not_empty(connection: Connection) -> None:
    progress = Progress()
    connection.fill()
    look(progress, connection)
    plain = progress.in_flight
    connection.transport.secured = True
    look(progress, connection)
    assert progress.in_flight > plain
    connection.transport.buffer.clear()
    look(progress, connection)
    assert progress.in_flight < plain


async def test_a_connection_that_is_gone_makes_no_progress(connection: Connection) -> None:
    progress = Progress()
    connection.wire = None
    assert not look(progress, connection)
