"""Every server restarted in turn under load. The long run is `python -m tests.fault.rolling`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fault.rolling import rolling

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
async def test_a_rolling_restart_fails_no_call_and_runs_none_twice(tmp_path: Path) -> None:
    result = await rolling(tmp_path, 3000)
    assert not result.failures, result
    assert not result.duplicates, result
    assert not result.violations, result
    assert result.restarts >= 3
