"""How far the bytes have come that were written to a client: delivered, or still on their way.

What a client has taken of a call shows by its windows; but over a slow line, or to a program that reads slowly, much
can be on its way before that. On loopback, the kernel takes 2.8 MB before a transport's buffer begins to fill, and
gives it room only after a third of them has left. So the kernel is asked. That costs 4 us a look, and only those
connections for which something waits.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
import termios
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from proxy.http2 import Wire
    from proxy.transport.downstream import DownstreamConnection

TCP_INFO: Final = socket.TCP_INFO if sys.platform == "linux" else None
"""Where there is one whose fields are known here."""
BYTES_ACKED: Final = struct.Struct("=120xQ")
"""`tcpi_bytes_acked` of Linux's tcp_info, since 4.1 (RFC 4898, tcpEStatsAppHCThruOctetsAcked)."""
OUT_QUEUE: Final = struct.Struct("=i")
"""What SIOCOUTQ gives, whose number is that of TIOCOUTQ. Of TCP: bytes that are not acknowledged (tcp(7)). Of a Unix
socket: the memory of what the peer has not read (`unix_outq_len` of Linux), which is more than its bytes: 768 for one,
103,168 for 100,000. It falls when a whole piece has been read, of 37,000 bytes at most."""
BELOW_TLS: Final = 65_536
"""Bytes that TLS keeps below the buffer that it tells of, at least, if there are any in that."""


class CountedWire:
    """A transport, and how many bytes were written to it."""

    __slots__ = ("below", "written")

    def __init__(self, below: Wire) -> None:
        self.below = below
        self.written = below.get_write_buffer_size()
        """What it holds already counts."""

    def write(self, data: bytes) -> None:
        """See `Wire`."""
        self.written += len(data)
        self.below.write(data)

    def pause_reading(self) -> None:
        """See `Wire`."""
        self.below.pause_reading()

    def resume_reading(self) -> None:
        """See `Wire`."""
        self.below.resume_reading()

    def close(self) -> None:
        """See `Wire`."""
        self.below.close()

    def abort(self) -> None:
        """See `Wire`."""
        self.below.abort()

    def get_extra_info(self, name: str) -> Any:
        """See `Wire`."""
        return self.below.get_extra_info(name)

    def get_write_buffer_size(self) -> int:
        """See `Wire`."""
        return self.below.get_write_buffer_size()


class Progress:
    """Of one client, from the first look on until `end`.

    Where TCP does not tell what has arrived, as on a Unix socket, what is written meanwhile has to be counted. Only
    connections for which something waits pay for that: theirs gets another `wire`.
    """

    __slots__ = ("_counted", "_in_kernel", "_seen", "_taken", "delivered", "in_flight")

    def __init__(self) -> None:
        self.delivered = 0
        """Bytes that have arrived. By TCP: all that the client's kernel has acknowledged. Elsewhere: as many less than
        were written since the first look as are on their way."""
        self.in_flight = 0
        """Bytes written before the last look that had not arrived by then. On a Unix socket: the memory of those in the
        kernel."""
        self._seen = False
        self._counted: CountedWire | None = None
        self._taken = 0
        """Bytes that have left the transport's buffer since the first look, if they are counted."""
        self._in_kernel = 0

    def look(self, connection: DownstreamConnection) -> bool:
        """Whether at least one byte has arrived since the last look. True the first time.

        Without TCP also, for want of a better sign, when the kernel has only taken some: so a client that reads nothing
        is found out once no more is written to it, or the kernel's part is full, whichever is first.
        """
        wire = connection.wire
        if wire is None:
            return False
        peer: socket.socket | None = wire.get_extra_info("socket")
        buffered = wire.get_write_buffer_size()
        in_kernel = _in_kernel(peer)
        self.in_flight = buffered + in_kernel
        if buffered and wire.get_extra_info("ssl_object") is not None:
            self.in_flight += BELOW_TLS
        delivered = _acknowledged(peer)
        if delivered is not None:
            moved = delivered > self.delivered
        else:
            if self._counted is None:
                self._counted = connection.wire = CountedWire(wire)
            taken = self._counted.written - buffered
            moved = taken > self._taken or in_kernel < self._in_kernel
            delivered = taken - in_kernel
            self._taken, self._in_kernel = taken, in_kernel
        self.delivered = delivered
        moved = moved or not self._seen
        self._seen = True
        return moved

    def end(self, connection: DownstreamConnection) -> None:
        """Nothing waits for the client any more."""
        if self._counted is not None and connection.wire is self._counted:
            connection.wire = self._counted.below


def _acknowledged(peer: socket.socket | None) -> int | None:
    if peer is None or TCP_INFO is None or peer.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        info = peer.getsockopt(socket.IPPROTO_TCP, TCP_INFO, BYTES_ACKED.size)
    except OSError:
        return None
    return int(BYTES_ACKED.unpack(info)[0]) if len(info) == BYTES_ACKED.size else None


def _in_kernel(peer: socket.socket | None) -> int:
    if peer is None:
        return 0
    try:
        return int(OUT_QUEUE.unpack(fcntl.ioctl(peer.fileno(), termios.TIOCOUTQ, bytes(OUT_QUEUE.size)))[0])
    except OSError:
        return 0
