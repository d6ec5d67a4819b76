"""`python -m proxy.workers NAME CONTROL_FD LISTENING_FD...`: a worker, started by its parent only."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Run a worker. Returns its exit status."""
    # The parent alone is told to end or to reload, also when somebody tells everybody. First of all: to load the rest
    # takes half a second.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    from proxy.workers import worker  # noqa: PLC0415 - see above

    return worker.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
