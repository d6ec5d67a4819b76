"""`districhat-backend` and `python -m backend`: the program around `backend.cli`, which takes a while to load."""

from __future__ import annotations

import sys


def run() -> int:
    """Run a server as the process's arguments say and return its exit status; Ctrl-C before it is up is 130."""
    try:
        from backend.cli import main  # noqa: PLC0415 - inside, so that an interrupt while it loads is no traceback

        return main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(run())
