"""`make conformance`: run the suites, and write `docs/conformance.md` by their outcome.

Nothing is written unless every suite ran and every case passed or is explained.
"""

from __future__ import annotations

import os
import sys

import pytest

from tests.conformance.conftest import ROWS
from tests.conformance.table import DOCUMENT, SUITES, Row, render


class _Collector:
    def __init__(self) -> None:
        self.rows: list[Row] = []

    def pytest_configure(self, config: pytest.Config) -> None:
        config.stash[ROWS] = self.rows


def main() -> int:
    os.environ["CI"] = "true"  # a missing tool is a failure, not a reason to skip
    collector = _Collector()
    status = pytest.main(
        ["tests/conformance", "--ignore=tests/conformance/test_table.py", *sys.argv[1:]], plugins=[collector]
    )
    missing = sorted(SUITES.keys() - {row.suite for row in collector.rows})
    if status or missing:
        print(f"{DOCUMENT.name} not written: " + ("tests failed" if status else f"no outcome of {', '.join(missing)}"))
        return 1
    DOCUMENT.write_text(render(collector.rows), encoding="utf-8")
    print(f"wrote {DOCUMENT.name}: {len(collector.rows)} suites, {sum(row.cases for row in collector.rows):,} cases")
    return 0


if __name__ == "__main__":
    sys.exit(main())
