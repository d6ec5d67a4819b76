"""The chaos run, CHAOS_SECONDS long (60), with the seed CHAOS_SEED (a new one each time, which a failure prints)."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest

SECONDS = float(os.environ.get("CHAOS_SECONDS", "60"))
SEED = os.environ.get("CHAOS_SEED")
LIMIT = 2 * SECONDS + 120
"""Seconds that the run may take with its beginning and its end."""


@pytest.mark.slow
@pytest.mark.timeout(LIMIT + 60)
async def test_after_a_minute_of_chaos_all_invariants_hold() -> None:
    seed = () if SEED is None else ("--seed", SEED)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.fault.chaos", "--seconds", str(SECONDS), "--rate", "300", *seed),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    output = ""
    try:
        async with asyncio.timeout(LIMIT):
            output = (await process.stdout.read()).decode()
    except TimeoutError:
        process.send_signal(signal.SIGINT)  # lets it end its processes and remove its namespaces
        output = f"not over after {LIMIT:g} s"
    finally:
        try:
            async with asyncio.timeout(30):
                await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()
    assert process.returncode == 0, output
    print(output)
