"""Programs to their end, and those that are not Python's, for the tests that need a real one."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.proxy_process import environment


def need(program: str, package: str) -> str:
    """The path of `program`. Without it the test is skipped, with the Debian package that has it; under CI it fails."""
    beside_python = Path(sys.executable).parent  # what PyPI has
    path = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:{beside_python}")
    if path is None:
        reason = f"needs {program}: apt-get install {package}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


class Ended(NamedTuple):
    """A command that has ended."""

    status: int
    out: str
    err: str


async def run(*words: str) -> Ended:
    """Run a command, in an environment without settings of ours, to its end."""
    process = await asyncio.create_subprocess_exec(
        *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment()
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())
