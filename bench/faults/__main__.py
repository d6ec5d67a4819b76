"""Entry of `python -m bench.faults`."""

import sys

from bench.faults.cli import main

if __name__ == "__main__":
    sys.exit(main())
