"""Generate the Python code of every .proto file here, or check that what is committed is what would be generated.

    python proto/generate.py            write it
    python proto/generate.py --check    exit 1, naming the files, if the committed code is stale
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parent
SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("districhat/*.proto"))


def generate(output: Path) -> None:
    """Write the generated modules and their type stubs below `output`. Raises SystemExit if protoc fails."""
    # The type-stub plug-ins of mypy-protobuf are programs beside the running interpreter.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kinds = ("python", "grpc_python", "mypy", "mypy_grpc")
    arguments = ["protoc", f"-I{ROOT}", *(f"--{kind}_out={output}" for kind in kinds), *SOURCES]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed")


def stale_files() -> list[str]:
    """The generated files whose committed text differs from what would be generated now."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh = {path.relative_to(scratch): path.read_bytes() for path in Path(scratch).rglob("*.py*")}
    return [
        str(name) for name, text in fresh.items() if not (ROOT / name).exists() or (ROOT / name).read_bytes() != text
    ]


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        if stale := stale_files():
            raise SystemExit(f"generated code is stale, run `make proto`: {', '.join(stale)}")
    else:
        generate(ROOT)
