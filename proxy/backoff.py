"""How long to wait before something that fails is tried again."""

from __future__ import annotations

_DOUBLINGS = 100
"""Beyond it, 2.0**failures would overflow at the 1,024th failure in a row: an hour without a server."""


def doubled(first: float, failures: int, ceiling: float) -> float:
    """Seconds to wait after a failure, when `failures` came before it in a row: `first`, twice that, and so on, at most
    `ceiling`. Any number of failures will do.
    """
    return min(ceiling, first * 2.0 ** min(failures, _DOUBLINGS))
