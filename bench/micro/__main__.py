"""Entry of `python -m bench.micro`."""

import sys

from bench.micro.suite import main

if __name__ == "__main__":
    sys.exit(main())
