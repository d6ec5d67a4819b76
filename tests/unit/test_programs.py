"""The installed programs, while they load: what nobody sees to yet is still no traceback."""

from __future__ import annotations

import importlib
import sys
import tomllib
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
PROGRAMS: dict[str, str] = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["scripts"]


class Interrupted(MetaPathFinder):
    """Ctrl-C, at the moment when a module is looked for."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Nothing, or the interrupt."""
        if fullname == self.name:
            raise KeyboardInterrupt
        return None


@pytest.mark.parametrize("program", PROGRAMS)
def test_ctrl_c_while_a_program_loads_is_status_130_and_no_traceback(
    program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _, function = PROGRAMS[program].partition(":")
    run = getattr(importlib.import_module(module), function)
    cli = f"{module.partition('.')[0]}.cli"
    monkeypatch.delitem(sys.modules, cli, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupted(cli), *sys.meta_path])
    assert run() == 130
