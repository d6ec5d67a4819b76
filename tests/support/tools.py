"""Programs that are not Python's, for the tests that need a real one."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest


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
