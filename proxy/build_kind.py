"""Which build of the proxy this is: the plain files, or the compiled ones (`hatch_build.py`). Both do the same."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

COMPILED: Final = find_spec("proxy.native__mypyc") is not None
"""The modules of every call's way are machine code."""
