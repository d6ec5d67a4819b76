"""Which build the tests run on: the plain one, unless `make test-compiled` says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import proxy.forwarding.call
import proxy.http2.connection
from proxy.build_kind import COMPILED
from proxy.cli import main

WANTED = os.environ.get("EXPECTED_BUILD", "plain")


@pytest.mark.parametrize("module", [proxy.forwarding.call, proxy.http2.connection], ids=lambda module: module.__name__)
def test_the_modules_are_those_of_the_wanted_build(module: object) -> None:
    assert module.__file__.endswith(".so" if WANTED == "compiled" else ".py")
    assert (WANTED == "compiled") == COMPILED


def test_the_version_names_the_compiled_build(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert ("(compiled)" in capsys.readouterr().out) == (WANTED == "compiled")


def test_the_processes_that_tests_start_are_of_the_same_build() -> None:
    command = [sys.executable, "-m", "proxy", "--version"]
    version = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert ("(compiled)" in version) == (WANTED == "compiled")
