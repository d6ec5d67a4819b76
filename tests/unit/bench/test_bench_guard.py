from __future__ import annotations

import json

from bench import guard
from bench.guard import Count, count, verdict
from bench.inmemory import Calls

BUDGET = {"bytecodes": 1000.0, "c_calls": 20.0}


def test_the_same_calls_count_the_same_every_time():
    first, second = (count(*Calls().kinds()["unary call"]) for _ in range(2))
    assert first == second
    assert first.bytecodes > 500
    assert "OfferedCall.attach" in first.functions
    assert not any("Peer" in name or "World" in name for name in first.functions), "the peers' cost is not ours"


def test_a_dearer_call_costs_more():
    calls = Calls()
    plain = count(calls.unary, 1)
    with_deadline = count(calls.with_deadline, 1)
    assert with_deadline.bytecodes > plain.bytecodes
    assert with_deadline.c_calls > plain.c_calls


def test_up_to_a_tenth_above_the_budget_passes():
    assert verdict("x", Count(1100.0, 22.0, {}), BUDGET) == []
    assert verdict("x", Count(500.0, 2.0, {}), BUDGET) == []


def test_more_than_a_tenth_above_either_budget_is_named():
    assert verdict("x", Count(1101.0, 20.0, {}), BUDGET) == ["x: 1101.0 bytecodes, +10.1% of the budget of 1000.0"]
    assert verdict("x", Count(1000.0, 23.0, {}), BUDGET) == ["x: 23.0 c calls, +15.0% of the budget of 20.0"]


def test_the_program_fails_above_the_budget_and_takes_new_ones(tmp_path, monkeypatch, capsys):
    budgets = tmp_path / "guard.json"
    budgets.write_text("{}")
    monkeypatch.setattr(guard, "BUDGETS", budgets)
    monkeypatch.setattr("sys.argv", ["guard"])
    assert guard.main() == 2
    monkeypatch.setattr("sys.argv", ["guard", "--write"])
    assert guard.main() == 0
    monkeypatch.setattr("sys.argv", ["guard"])
    assert guard.main() == 0
    (python,) = known = json.loads(budgets.read_text())
    known[python]["unary call"]["bytecodes"] /= 1.2
    budgets.write_text(json.dumps(known))
    assert guard.main() == 1
    assert "unary call: " in capsys.readouterr().err
