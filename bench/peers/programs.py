"""Finding the programs of peers that are not Python, and asking their versions."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

from bench.errors import UsageError

_TIMEOUT = 10.0


def bundled(package: str, path: str, distribution: str) -> str:
    """A program that a Python package brings along, at `path` inside it. UsageError, naming what to install."""
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.origin is not None:
        program = Path(spec.origin).parent / path
        if program.is_file():
            return str(program)
    raise UsageError(f"{program_name(path)} not found; pip install {distribution}")


def installed(name: str, package: str) -> str:
    """A program of the system, `package` being Debian's. UsageError, naming what to install."""
    # Debian puts daemons into /usr/sbin, which is not on everybody's path.
    program = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise UsageError(f"{name} not found; on Debian: apt-get install {package}")
    return program


def first_line(command: list[str]) -> str:
    """The first line that a program prints, on stdout or stderr; `unknown` if it does not run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return next(iter((done.stdout + done.stderr).strip().splitlines()), "unknown")


def program_name(path: str) -> str:
    """The last part of a path."""
    return path.rpartition("/")[2]
