"""What the command says when it cannot start. That it starts, serves and drains: test_backend_server.py."""

from __future__ import annotations

import importlib.metadata
import os
import socket
from typing import TYPE_CHECKING

import pytest

from backend.cli import main
from backend.settings import ENV_PREFIX

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(ENV_PREFIX):
            monkeypatch.delenv(name)


def refused(capfd: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    """The lines on stderr of a command that ended with status 2 and nothing on stdout."""
    assert main(argv) == 2
    out, err = capfd.readouterr()
    assert out == ""
    return err.splitlines()


def test_a_port_in_use_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        assert refused(capfd, "--address", address) == [f"address: {address}: Address already in use"]


def test_an_address_of_another_machine_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert refused(capfd, "--address", "192.0.2.1:0") == ["address: 192.0.2.1:0: Cannot assign requested address"]


def test_a_store_that_cannot_be_opened_is_one_line(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "missing" / "sessions.db"
    assert refused(capfd, "--store", f"sqlite:///{path}") == [
        f"store.url: {path}: unable to open database file: there is no directory {path.parent}"
    ]


def test_every_mistake_in_flags_is_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    lines = refused(capfd, "--l1", "five", "--l2", "-1", "--address", "x")
    assert lines[1] == "cache.l1_capacity: should be a valid integer, not 'five'"
    assert [line.split(":")[0] for line in lines] == ["address", "cache.l1_capacity", "cache.l2_capacity"]


def test_every_mistake_in_the_file_is_a_line(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("ids = 1\n[cache]\nl1 = 5\n")
    assert refused(capfd, "--config", str(file)) == ["cache.l1: unknown setting", "ids: unknown setting"]


def test_an_unknown_flag_is_refused() -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--colour"])
    assert caught.value.code == 2


def test_the_version_is_that_of_the_package(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capfd.readouterr().out == f"districhat-backend {importlib.metadata.version('districhat')}\n"
