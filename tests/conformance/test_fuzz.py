"""A minute of fuzzing for each target, all at once; `make fuzz` goes on for longer.

What it finds becomes a test by name, beside the code that was at fault.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from tests.conformance.table import ROOT, Row
from tests.fuzz.seeds import seeds
from tests.fuzz.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 60
LEAST = 500
"""Inputs that each target gets through in that time at the very least, on a busy machine."""


async def fuzz(target: str) -> tuple[int, str]:
    """Exit status and output of one fuzzer."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.fuzz", target, f"-max_total_time={SECONDS}"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(errors="replace")


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_minute_of_fuzzing_finds_nothing(record: Callable[[Row], None]):
    if find_spec("atheris") is None:
        reason = "needs atheris: make conformance-tools"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    results = dict(zip(TARGETS, await asyncio.gather(*map(fuzz, TARGETS)), strict=True))
    for target, (status, output) in results.items():
        assert status == 0, f"{target}:\n{output[-5000:]}"
        executed = re.search(r"number_of_executed_units: (\d+)", output)
        assert executed is not None, output[-2000:]
        assert int(executed[1]) >= LEAST, f"{target} got through {executed[1]} inputs only"
    record(Row("fuzzing", f"atheris {version('atheris')}", len(TARGETS)))


@pytest.mark.parametrize("target", TARGETS)
def test_every_seed_holds(target: str):
    for name, data in list(seeds(target).items())[:200]:
        try:
            TARGETS[target](data)
        except Exception as error:
            error.add_note(f"seed {name}")
            raise
