"""The file of a unix socket: whom it belongs to."""

from __future__ import annotations

import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from proxy.transport.socket_file import SocketFile

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "proxy.sock"


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_it_has_the_permissions_asked_for_whatever_the_umask(path: Path, mode: int) -> None:
    umask = os.umask(0o077)
    try:
        with SocketFile(str(path)).bind(mode):
            assert stat.S_IMODE(path.stat().st_mode) == mode
    finally:
        os.umask(umask)


def test_one_that_a_dead_process_left_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with SocketFile(str(path)).bind(0o600) as bound, socket.socket(socket.AF_UNIX) as client:
        bound.listen()
        client.connect(str(path))


def test_one_that_somebody_listens_on_is_left_alone(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as client:
        other.bind(str(path))
        other.listen()
        with pytest.raises(OSError, match="Address already in use"):
            SocketFile(str(path)).bind(0o600)
        client.connect(str(path))


def test_one_whose_queue_is_full_is_left_alone(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as client:
        other.bind(str(path))
        other.listen(0)
        client.connect(str(path))
        with pytest.raises(OSError, match="Address already in use"):
            SocketFile(str(path), patience=0.01).bind(0o600)


def test_another_kind_of_file_is_left_alone(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(FileExistsError):
        SocketFile(str(path)).bind(0o600)
    assert path.read_text() == "precious"


def test_it_is_removed_once_by_its_owner(path: Path) -> None:
    file = SocketFile(str(path))
    with file.bind(0o600):
        file.remove()
        assert not path.exists()
        file.remove()


def test_a_successor_removes_what_it_has_taken_over(path: Path) -> None:
    first, second = SocketFile(str(path)), SocketFile(str(path))
    with first.bind(0o600):
        second.adopt()
        second.remove()
        assert not path.exists()


def test_what_somebody_else_has_put_there_since_is_left_alone(path: Path) -> None:
    first, second = SocketFile(str(path)), SocketFile(str(path))
    with first.bind(0o600):
        path.rename(path.with_suffix(".old"))
        with second.bind(0o600):
            first.remove()
            assert path.exists()


def test_a_successor_of_a_file_that_was_removed_owns_nothing(path: Path) -> None:
    file = SocketFile(str(path))
    file.adopt()
    file.remove()
