"""The compiled build: a wheel in which the modules of every call's way are machine code, by mypyc.

hatchling runs this when it is asked to (`HATCH_BUILD_HOOK_ENABLE_CUSTOM=1 pip install .`); any other build, and every
editable one, is of the plain files. Nothing is written beside the sources, where Python would find it before them: that
is what hatch-mypyc does, and why it is not used here.

What a compiled module must keep to, besides what mypy says:

- Nothing plain inherits from its classes, and nothing is put in the place of their methods or of its constants, not in
  tests either: compiled code does not look for them there.
- On the hot path, a class is typed as a class, not as a Protocol or Any: else its fields are looked up by name, which
  takes longer than the interpreter does. Where imports forbid that, a base class serves (`proxy/forwarding/peers.py`).
- No base class from outside but exceptions', and no pydantic model.
- Two `except` of one function have names of their own, or the second error is held against the type of the first.
- A generator expression that is returned becomes a list: write a generator function.
"""

from __future__ import annotations

from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompiledBuild(BuildHookInterface):
    """Compiles the `modules` of the hook's settings as one group: calls and fields between them need no look-up."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and add what comes of it to the wheel. The plain files stay in it, for tracebacks."""
        if version == "editable":
            raise ValueError("an editable installation runs the plain files: unset HATCH_BUILD_HOOK_ENABLE_CUSTOM")
        # Here, and not above: they are there only when this is enabled.
        from mypyc.build import mypycify  # noqa: PLC0415
        from setuptools import Distribution  # noqa: PLC0415

        self._directory = TemporaryDirectory(prefix="districhat-compiled-")
        directory = Path(self._directory.name)
        self.app.display_info(f"compiling {len(self.config['modules'])} modules, which takes a minute or two ...")
        with chdir(self.root):
            extensions = mypycify(self.config["modules"], target_dir=str(directory), group_name="proxy.native")
            command = Distribution({"name": "districhat", "ext_modules": extensions}).get_command_obj("build_ext")
            command.build_lib = str(directory / "lib")
            command.build_temp = str(directory / "temp")
            command.ensure_finalized()
            command.run()
        lib = directory / "lib"
        build_data["force_include"].update({str(each): str(each.relative_to(lib)) for each in lib.rglob("*.so")})
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002 - the hook's signature
        """The wheel is made."""
        self._directory.cleanup()
