"""Programs and sources that the suites need and that are not Python's: built or fetched by `make conformance-tools`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.conformance.table import ROOT

if TYPE_CHECKING:
    from pathlib import Path

BUILD = ROOT / "build" / "conformance"
"""Where the make target puts them. Ignored by git."""


def _need(path: Path, what: str) -> Path:
    if not path.exists():
        reason = f"needs {what}: make conformance-tools"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def go_tool(name: str) -> str:
    """The path of a program of tools/go.mod. Without it the test is skipped, with what to do; under CI it fails."""
    return str(_need(BUILD / "bin" / name, f"{name}, which Go builds"))


def grpc_source() -> Path:
    """The folder with gRPC's own Python interop tests, and their `grpc_testing` stubs. Without it: as `go_tool`."""
    return _need(BUILD / "grpc", "gRPC's interop tests, a Debian source package")
