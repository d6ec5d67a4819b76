"""`districhat` and `python -m proxy`: the program around `proxy.cli`, which takes a while to load."""

from __future__ import annotations

import sys


def run() -> int:
    """Run the command of the process's arguments and return its exit status; Ctrl-C while it loads is 130, too."""
    try:
        from proxy.cli import main  # noqa: PLC0415 - inside, so that an interrupt while it loads is no traceback

        return main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(run())
