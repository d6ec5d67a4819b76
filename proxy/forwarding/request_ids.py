"""The ids that the proxy gives to calls whose client gave none."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator


def request_ids(chance: Callable[[], float]) -> Iterator[bytes]:
    """Unique ids without end: 64 bits of chance for this process, then a number. `chance`: numbers from 0 up to, not
    including, 1.
    """
    prefix = b"%016x-" % int(chance() * 2**64)
    return (prefix + b"%x" % number for number in itertools.count(1))
