"""Servers killed and hung under load. The long runs are `make kill` and `make hang`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fault.outages import outages

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "hang"])
async def test_outages_cost_only_what_was_in_flight_and_could_not_run_twice(tmp_path: Path, how: str) -> None:
    run = await outages(tmp_path, how, 2, rate=300)
    assert not run.wrong, run
    assert len(run.took) == len(run.home) == 2
