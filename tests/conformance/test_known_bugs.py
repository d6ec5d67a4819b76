"""docs/known-bugs.md names tests that exist."""

from __future__ import annotations

import ast
import re

import pytest

from tests.conformance.table import ROOT

LINES = [
    line for line in (ROOT / "docs" / "known-bugs.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")
]
TESTS = [found[1] for line in LINES if (found := re.search(r"`(tests/[\w/]+\.py::test_\w+)`", line))]


def test_every_line_names_a_test():
    assert len(LINES) == len(TESTS) + 1  # the heading
    assert TESTS


@pytest.mark.parametrize("test", TESTS)
def test_the_test_that_answers_for_a_bug_exists(test: str):
    file, _, name = test.partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert name in defined
