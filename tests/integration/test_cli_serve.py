"""`districhat serve` as a process: the ready line, the end, and a port that is taken."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.polling import eventually

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("DISTRICHAT_")}


@pytest.fixture
def command(tmp_path) -> list[str]:
    config = tmp_path / "proxy.toml"
    config.write_text('[[endpoints]]\nid = "Server-A"\naddress = "127.0.0.1:9"\n')
    return [sys.executable, "-m", "proxy", "serve", "--config", str(config)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_says_where_it_listens_and_ends_with_0_on_a_signal(command, number):
    environment = ENVIRONMENT | {"DISTRICHAT_LISTENER__ADDRESS": "127.0.0.1:0"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready.startswith("districhat ready on 127.0.0.1:")
        host, _, port = ready.split()[-1].rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10):
            pass
        process.send_signal(number)
        assert process.wait(30) == 0


def test_a_port_in_use_is_one_line_with_its_key_and_exit_2(command):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        environment = ENVIRONMENT | {"DISTRICHAT_LISTENER__ADDRESS": address}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout) == (2, "")
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"listener.address: cannot listen on {address}: address already in use; --takeover ")


def answers(path: Path) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        return True
    return False


@pytest.mark.parametrize(
    "streams", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full", ">/dev/full 2>&1"]
)
async def test_it_serves_whatever_has_become_of_its_streams(command, streams, tmp_path):
    path = tmp_path / "socket"
    environment = ENVIRONMENT | {"DISTRICHAT_LISTENER__ADDRESS": f"unix:{path}"}
    script = f"exec {shlex.join(command)} {streams}"
    process = await asyncio.create_subprocess_shell(script, env=environment, stdout=asyncio.subprocess.DEVNULL)
    await eventually(lambda: answers(path) or process.returncode is not None, "a client's connection")
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    assert await asyncio.wait_for(process.wait(), 30) == 0


def test_too_few_file_descriptors_are_one_line_and_exit_2(command):
    few = ["/bin/sh", "-c", f"ulimit -n 20; exec {shlex.join(command)}"]
    ended = subprocess.run(few, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        "endpoints: the process may have 20 file descriptors, and needs at least 48, and one for each of 1 "
        "(ulimit -n, LimitNOFILE)\n"
    )
