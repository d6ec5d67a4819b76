"""Times in the configuration.

Not every positive number is a time that can be waited for: 1e-300 s turns a timer into a busy loop, and 1e300 s
overflows in every clock that counts milliseconds.
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import AfterValidator, Field

SHORTEST: Final = 0.001
LONGEST: Final = 31_536_000.0
"""Seconds; a year."""


def _is_none_or_some(value: float) -> float:
    if 0 < value < SHORTEST:
        raise ValueError(f"must be 0 or at least {SHORTEST:g}")
    return value


Seconds = Annotated[float, Field(ge=SHORTEST, le=LONGEST, allow_inf_nan=False)]
"""From a millisecond to a year."""

SecondsOrZero = Annotated[float, Field(ge=0, le=LONGEST, allow_inf_nan=False), AfterValidator(_is_none_or_some)]
"""The same, or 0, which means what the setting says."""
