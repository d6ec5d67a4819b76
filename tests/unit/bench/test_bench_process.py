from __future__ import annotations

import os
import socket
import sys
import time

import pytest

from bench import cli
from bench.cpu import Cores, cpu_ns
from bench.errors import BenchError
from bench.peers import programs
from bench.process import Process, free_port, pinned

ALL = frozenset(os.sched_getaffinity(0))
LISTEN = "import socket,sys,time; s=socket.create_server(('127.0.0.1',int(sys.argv[1]))); print('up',flush=True); "


def python(tmp_path, code, *arguments, cpus=ALL):
    return Process("child", [sys.executable, "-c", code, *arguments], cpus, tmp_path / "log")


def test_a_child_is_ready_when_it_says_so_and_accepts_and_is_gone_after_the_block(tmp_path):
    port = free_port()
    with python(tmp_path, LISTEN + "time.sleep(60)", str(port)) as child:
        child.wait_ready(port, "up", 10)
        child.check_alive()
        pid = child.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(OSError, match="refused"), socket.create_connection(("127.0.0.1", port), timeout=1):
        pass


def test_a_child_that_ends_at_start_is_reported_with_its_last_words(tmp_path):
    with (
        python(tmp_path, "raise SystemExit('no such setting')") as child,
        pytest.raises(BenchError, match="ended with 1 at start: no such setting"),
    ):
        child.wait_ready(free_port(), None, 10)


def test_a_child_that_is_late_is_reported(tmp_path):
    with (
        python(tmp_path, "import time; time.sleep(60)") as child,
        pytest.raises(BenchError, match="not ready on port 1 after 0 s"),
    ):
        child.wait_ready(1, None, 0.05)


def test_waiting_is_bounded(tmp_path):
    with python(tmp_path, "import time; time.sleep(60)") as child, pytest.raises(BenchError, match="still ran"):
        child.wait(0.01)


def test_a_missing_program_is_a_bench_error(tmp_path):
    with pytest.raises(BenchError, match="child did not start"):
        Process("child", [str(tmp_path / "nothing")], ALL, tmp_path / "log")


def test_a_child_runs_on_its_cpus_and_we_stay_on_ours(tmp_path):
    cpu = max(ALL)
    with python(tmp_path, "import os; print(os.sched_getaffinity(0))", cpus=frozenset({cpu})) as child:
        assert child.wait(10) == 0
        assert child.output().strip() == f"{{{cpu}}}"
    assert os.sched_getaffinity(0) == ALL


def test_pinning_ends_with_an_error():
    with pytest.raises(KeyError), pinned(frozenset({max(ALL)})):
        raise KeyError
    assert os.sched_getaffinity(0) == ALL


def test_cores():
    assert Cores.split({0, 1}) == Cores(frozenset({1}), frozenset({0}))
    assert Cores.split({2, 5, 7}) == Cores(frozenset({7}), frozenset({2, 5}))
    assert Cores.split({3}).shared


def test_cpu_time_is_that_of_the_process():
    before = time.process_time_ns()
    assert before <= cpu_ns(os.getpid()) <= time.process_time_ns() + 10**9
    with pytest.raises(ProcessLookupError):
        cpu_ns(2**22 + 1)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--peers", "nobody"], "unknown: 'nobody'; there are: districhat, "),
        (["--scenarios", "8x32,9x9"], "unknown: '9x9'; there are: 8x32, 64x1, "),
        (["--rounds", "0"], "expected a number from 1 to 1000, got '0'"),
    ],
)
def test_usage_errors_name_the_value(capsys, arguments, text):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert text in capsys.readouterr().err


def test_a_missing_program_is_one_line_naming_the_packages(capsys, monkeypatch):
    monkeypatch.setattr(programs.shutil, "which", lambda *_, **__: None)
    assert cli.main(["--peers", "districhat"]) == 2
    assert capsys.readouterr().err == "bench: nghttpd not found; on Debian: apt-get install nghttp2-server\n"
