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
    """What `Progress` looks at."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.wire: Wire | None = Wire(near)
        self.far = far
        far.setblocking(True)
        self.paused = False
        self.resumes = 0
        self.ahead = 0

    def fill(self) -> None:
        assert self.wire is not None
        while not self.wire.buffer:
            self.wire.write(bytes(100_000))
        self.paused = True

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
    look(progress, connection)  # the last bytes that its kernel took
    await eventually(lambda: not look(progress, connection))
    assert not any(look(progress, connection) for _ in range(10))
    assert progress.in_flight > 100_000


async def test_a_peer_that_reads_a_little_makes_progress_before_the_transport_has_room(connection: Connection) -> None:
    progress = Progress()
    connection.fill()
    await eventually(lambda: not look(progress, connection))
    delivered = progress.delivered
    in_flight, buffered = progress.in_flight, connection.wire and len(connection.wire.buffer)
    connection.read(70_000)
    await eventually(lambda: look(progress, connection))
    assert connection.wire is not None
    assert len(connection.wire.buffer) == buffered
    await eventually(lambda: look(progress, connection) or progress.in_flight < in_flight)
    assert progress.delivered > delivered


@pytest.mark.parametrize("connection", ["tcp"], indirect=True)
async def test_what_was_in_flight_is_what_is_delivered_in_the_end(connection: Connection) -> None:
    progress = Progress()
    connection.fill()
    look(progress, connection)
    end = progress.delivered + progress.in_flight
    wire = connection.wire
    assert wire is not None
    left = progress.in_flight
    while left > 0:
        left -= len(connection.far.recv(min(left, 65_536)))
        wire.write(b"")
    await eventually(lambda: look(progress, connection) is not None and not progress.in_flight)
    assert progress.delivered == end


async def test_in_tls_bytes_wait_below_a_buffer_that_is_not_empty(connection: Connection) -> None:
    progress = Progress()
    connection.fill()
    assert connection.wire is not None
    look(progress, connection)
    plain = progress.in_flight
    connection.wire.secured = True
    look(progress, connection)
    assert progress.in_flight > plain
    connection.wire.buffer.clear()
    look(progress, connection)
    assert progress.in_flight < plain


async def test_a_connection_that_is_gone_makes_no_progress(connection: Connection) -> None:
    progress = Progress()
    connection.wire = None
    assert not look(progress, connection)
