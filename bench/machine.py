"""What the numbers were measured on: without it they mean nothing a month later."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from bench.process import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.runner import Plan


def describe(plan: Plan) -> dict[str, str]:
    """Machine, kernel and versions, as label and text. The load average tells whether others were at work."""
    packages = dict.fromkeys(package for peer in plan.peers for package in peer.packages)
    return {
        "cpu": f"{cpu_model(Path('/proc/cpuinfo').read_text(encoding='utf-8'))}, {os.cpu_count()} CPUs",
        "pinned": f"proxy on CPU {_list(plan.cores.proxy)}, load and backends on CPU {_list(plan.cores.rest)}",
        "load average": f"{os.getloadavg()[0]:.2f} before the start",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "programs": ", ".join(dict.fromkeys(peer.version() for peer in plan.peers if peer.version)),
        "packages": ", ".join(f"{name} {package_version(name)}" for name in packages),
        "tools": _output([plan.h2load, "--version"]).removeprefix("h2load "),
        "revision": revision(),
    }


def revision() -> str:
    """The commit that was measured, with `-dirty` if files differ from it; `unknown` outside a repository."""
    command = ["git", "--no-optional-locks", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return _output(command) or "unknown"


def cpu_model(cpuinfo: str) -> str:
    """The first model named in the text of /proc/cpuinfo; `unknown` where the architecture has no such line."""
    match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return match[1].strip() if match else "unknown"


def _list(cpus: frozenset[int]) -> str:
    return ", ".join(map(str, sorted(cpus)))


def package_version(package: str) -> str:
    """Of an installed Python distribution."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _output(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
