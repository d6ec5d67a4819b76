"""What every suite gets: `record`, which holds its outcome against `docs/conformance.md`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import uvloop

from tests.conformance.table import Row, committed

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

ROWS = pytest.StashKey[list[Row]]()
"""Where `make conformance` collects the outcomes; absent in other runs."""


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loop that the proxy runs on. asyncio's own would take its connections for another kind of protocol."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[Row], None]:
    """Takes a suite's outcome: for the new document, or to be compared with the committed one."""

    def take(row: Row) -> None:
        rows = request.config.stash.get(ROWS, None)
        if rows is not None:
            rows.append(row)
        else:
            # The version is the writing machine's: a patch release of a tool is no other outcome.
            found = committed().get(row.suite, "").replace(" ", "").split("|")
            wanted = row.line().replace(" ", "").split("|")
            assert found[4:] == wanted[4:], "docs/conformance.md is out of date: make conformance"

    return take
