"""docs/conformance.md is complete. That its numbers are those of the suites, each suite checks itself by `record`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.disputed import CLIENT, SERVER, Dispute, differences
from tests.conformance.table import DOCUMENT, SUITES, Row, committed, render

HERE = Path(__file__).parent


def test_the_committed_table_has_every_suite_and_no_other():
    assert list(committed()) == list(SUITES)


def test_every_suite_is_recorded_by_one_test():
    sources = {file.name: file.read_text(encoding="utf-8") for file in HERE.glob("test_*.py")}
    for suite in SUITES:
        holders = [name for name, source in sources.items() if f'"{suite}"' in source and name != "test_table.py"]
        assert len(holders) == 1, f"{suite!r} is recorded in {holders}"


@pytest.mark.parametrize("disputes", [SERVER, CLIENT], ids=["h2spec", "h2specd"])
def test_the_committed_reasons_are_those_of_the_suites(disputes: dict[str, Dispute]):
    text = DOCUMENT.read_text(encoding="utf-8")
    for case, why in differences(disputes).items():
        assert f"- `{case}`: {why}\n" in text, "make conformance"


def test_a_case_that_differs_is_counted_and_explained():
    row = Row("h2specd", "1.0", 1057, (("client/5.1/1", "because"),))
    text = render([row])
    assert "| 1.0 | 1,057 | 1,056 | 1 |" in text
    assert "- `client/5.1/1`: because" in text
    assert committed(text) == {"h2specd": row.line()}


def test_a_suite_that_nobody_declared_has_no_line():
    with pytest.raises(KeyError):
        Row("another suite", "1.0", 1).line()
