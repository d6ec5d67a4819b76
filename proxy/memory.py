"""The garbage collector, set for a proxy."""

from __future__ import annotations

import gc


def settle() -> None:
    """What is alive now stays alive, and calls make few cycles: fewer and smaller collections save 3 % of a call. To be
    called once, when everything is up.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
