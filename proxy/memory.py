"""The garbage collector, set for a proxy."""

from __future__ import annotations

import gc
from typing import Final

THRESHOLDS: Final = (10_000, 100, 10)
"""Calls leave no cycles, and connections hardly any: collections find next to nothing, and what counts is how long the
longest one holds up the calls. The youngest generation is as large as takes 1 ms to look at, and the next is not looked
at before some 40,000 clients have come to stay. While 10,000 clients came, Python's own (700, 10, 10) held up the calls
for 44 ms of CPU at a time, these for 1.5 ms (`make bench-scale`)."""


def settle() -> None:
    """What is alive now stays alive, so it is looked at no more. To be called once, when everything is up."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
