"""What every benchmark's command line does alike."""

from __future__ import annotations

import os
import signal

import pytest

from bench.errors import BenchError, UsageError
from bench.options import carry_out


def test_the_exit_code_is_the_benchmarks():
    assert carry_out("bench", lambda: 0) == 0
    assert carry_out("bench", lambda: 1) == 1


@pytest.mark.parametrize(("error", "code"), [(BenchError("it stuck"), 1), (UsageError("it stuck"), 2)])
def test_an_error_is_one_line_with_an_exit_code_of_its_own(capsys, error, code):
    def stick() -> int:
        raise error

    assert carry_out("bench", stick) == code
    assert capsys.readouterr().err == "bench: it stuck\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_unwinds_once_and_leaves_the_handlers_as_they_were(capsys, number):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    unwound = []

    def interrupted() -> int:
        try:
            os.kill(os.getpid(), number)
        finally:
            os.kill(os.getpid(), number)  # an impatient second one
            unwound.append(number)
        return 0

    assert carry_out("bench", interrupted) == 130
    assert unwound == [number]
    assert capsys.readouterr().err == "bench: interrupted, nothing written\n"
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
