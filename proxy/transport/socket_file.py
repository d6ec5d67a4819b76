"""The file of a unix socket: made, kept for a successor, removed."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path


class SocketFile:
    """Belongs to the proxy that listens there. Only the last one removes it: a successor that took over needs it."""

    def __init__(self, path: str, *, patience: float = 1.0) -> None:
        """`patience`: seconds that whoever listens there already may take to show it."""
        self._path = Path(path)
        self._patience = patience
        self._ours: tuple[int, int] | None = None
        """Device and inode."""

    def bind(self, mode: int) -> socket.socket:
        """A socket bound there, that does not listen yet. A file that a dead process has left is replaced.

        `mode`: its permissions. Raises OSError: somebody listens there, or the path is another kind of file.
        """
        self._clear()
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            bound.bind(str(self._path))
            # Nobody can connect before it listens, so nobody slips through between these two lines.
            self._path.chmod(mode)
            self.adopt()
        except OSError:
            bound.close()
            raise
        return bound

    def adopt(self) -> None:
        """It is ours from now on, as after a takeover. Nothing happens if somebody has removed it."""
        with contextlib.suppress(FileNotFoundError):
            found = self._path.stat()
            self._ours = found.st_dev, found.st_ino

    def remove(self) -> None:
        """Remove it if it is still ours. Nothing happens otherwise, nor the second time."""
        ours, self._ours = self._ours, None
        if ours is not None:
            with contextlib.suppress(OSError):  # somebody was faster, or has locked us out of the directory
                found = self._path.stat()
                if (found.st_dev, found.st_ino) == ours:
                    self._path.unlink()

    def _clear(self) -> None:
        try:
            found = self._path.lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self._path))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(self._patience)
            try:
                probe.connect(str(self._path))
            except ConnectionRefusedError:
                self._path.unlink()
                return
            except (TimeoutError, BlockingIOError):
                pass  # its queue is full: somebody listens
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), str(self._path))
