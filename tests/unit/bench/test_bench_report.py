from __future__ import annotations

import json

import pytest

from bench.errors import BenchError
from bench.goals import Goal
from bench.load.result import Latencies
from bench.machine import cpu_model
from bench.peers.base import Peer
from bench.report import BEGIN, END, as_json, markdown, ratios, summarise, text, write_between
from bench.runner import Run, half_of_the_slowest

MACHINE = {"cpu": "a long name of a processor", "kernel": "Linux", "python": "3.11", "packages": "p", "programs": "q"}


def run(peer: str, us: float, *, scenario: str = "8x32", number: int = 1, failed: int = 0, late: float = 0.0) -> Run:
    latencies = Latencies(late / 2, late, late * 2) if late else None
    return Run(peer, scenario, number, 1000, failed, 0.5, us * 1000 / 1e6, 1000, 20.0 + number, latencies)


RUNS = [run("ours", us, number=n) for n, us in enumerate((10, 30, 11), 1)] + [run("theirs", 440)]


def test_summary_is_median_and_spread():
    ours, theirs = summarise(RUNS)
    assert (ours.cpu_us, ours.cpu_us_min, ours.cpu_us_max) == pytest.approx((11, 10, 30))
    assert (ours.calls, ours.calls_per_second) == (3000, 2000)
    assert ours.memory_mib == 23
    assert theirs.busy == pytest.approx(0.88)


def test_cost_is_per_unit_not_per_call():
    run = Run("ours", "responses", 1, calls=10, failed=0, seconds=1, cpu_seconds=0.01, units=5, memory_mib=1)
    [summary] = summarise([run])
    assert (summary.cpu_us, summary.unit) == (2000, "MiB")


def test_summaries_stand_scenario_by_scenario():
    runs = [run("a", 1), run("a", 1, scenario="64x1"), run("b", 1), run("b", 1, scenario="64x1")]
    found = [(s.scenario, s.peer) for s in summarise(runs)]
    assert found == [("8x32", "a"), ("8x32", "b"), ("64x1", "a"), ("64x1", "b")]


def test_latencies_are_medians_over_the_rounds():
    [summary] = summarise([run("a", 1, scenario="latency", late=late) for late in (0.001, 0.002, 0.009)])
    assert summary.latencies == Latencies(0.001, 0.002, 0.004)


def test_ratio_is_ours_over_theirs_and_is_held_against_the_goal():
    goals = [Goal("8x32", "theirs", 0.02)]
    [ratio] = ratios(summarise(RUNS), ["ours"], goals)
    assert ratio.ratio == pytest.approx(0.025)
    assert ratio.met is False
    assert ratio.cells()[-2:] == ("0.02", "MISSED")
    [ratio] = ratios(summarise(RUNS), ["ours"], [Goal("8x32", "theirs", 0.03)])
    assert ratio.met is True


def test_without_a_goal_nothing_is_met_or_missed():
    [ratio] = ratios(summarise(RUNS), ["ours"], [])
    assert ratio.met is None
    assert ratio.cells()[-2:] == ("", "")


def test_latencies_are_compared_by_p99():
    runs = [run("ours", 1, scenario="latency", late=0.003), run("theirs", 1, scenario="latency", late=0.002)]
    cpu, late = ratios(summarise(runs), ["ours"], [Goal("latency", "theirs", 1.0, "p99")])
    assert (cpu.measure, cpu.met) == ("CPU", None)
    assert (late.measure, late.ratio, late.met) == ("p99", pytest.approx(1.5), False)


@pytest.mark.parametrize("runs", [[], [run("ours", 1)], [run("theirs", 1)]])
def test_no_ratio_without_both(runs):
    assert ratios(summarise(runs), ["ours"]) == []


def test_a_peer_with_failures_gets_no_ratio_and_says_so():
    summaries = summarise([run("ours", 1, failed=3), run("theirs", 2)])
    assert ratios(summaries, ["ours"]) == []
    assert "3 FAILED" in text(summaries, [], MACHINE)


def test_the_text_has_machine_results_ratios_and_the_score():
    summaries = summarise(RUNS)
    lines = text(summaries, ratios(summaries, ["ours"], [Goal("8x32", "theirs", 0.9)]), MACHINE).splitlines()
    assert lines[0] == "cpu          a long name of a processor"
    assert lines[6].startswith("scenario  peer    CPU us")
    assert lines[7].split()[:4] == ["8x32", "ours", "11.0", "10.0-30.0"]
    assert lines[-1] == "ours: 1 of 1 goals met"


def test_json_holds_every_run():
    summaries = summarise(RUNS)
    document = json.loads(as_json(RUNS, summaries, ratios(summaries, ["ours"]), {"kernel": "Linux"}))
    assert [entry["cpu_us"] for entry in document["runs"]] == pytest.approx([10, 30, 11, 440])
    assert document["machine"] == {"kernel": "Linux"}
    assert document["ratios"][0]["ratio"] == pytest.approx(0.025)


def test_the_figures_for_the_readme_name_what_was_missed():
    summaries = summarise(RUNS)
    block = markdown(summaries, ratios(summaries, ["ours"], [Goal("8x32", "theirs", 0.02)]), MACHINE, 3)
    assert "| load | ours | theirs |" in block
    assert "| 8x32, us/call | 11.0 | 440.0 (0.03) |" in block
    assert "`ours` meets 0 of 1 goals; missed: 8x32 theirs CPU 0.03 (goal 0.02)." in block


def test_each_build_of_ours_is_held_against_the_goals_and_not_against_the_other():
    summaries = summarise([*RUNS, run("compiled", 8)])
    found = ratios(summaries, ["ours", "compiled"], [Goal("8x32", "theirs", 0.02)])
    assert [(each.ours, each.peer, each.met) for each in found] == [
        ("ours", "theirs", False),
        ("compiled", "theirs", True),
    ]
    block = markdown(summaries, found, MACHINE, 3)
    assert "| 8x32, us/call | 11.0 | 440.0 (0.03, 0.02) | 8.0 |" in block
    assert "`compiled` meets 1 of 1 goals." in block
    lines = text(summaries, found, MACHINE).splitlines()
    assert "ours: 0 of 1 goals met" in lines
    assert "compiled: 1 of 1 goals met" in lines


def test_only_what_stands_between_the_marks_is_replaced(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_between(path, BEGIN, END, "new\n")
    assert path.read_text() == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    path.write_text("no marks\n")
    with pytest.raises(ValueError, match="no single pair"):
        write_between(path, BEGIN, END, "new\n")


def test_the_rate_of_latencies_is_half_of_what_the_slowest_routing_peer_did():
    def peer(name: str, **more: object) -> Peer:
        return Peer(name, "", lambda _: [], 1, **more)  # type: ignore[arg-type]

    peers = [peer("ours"), peer("relay", routes=False), peer("slow", scenarios=("64x1",))]
    runs = [run("ours", 1, scenario="64x1"), run("relay", 1, scenario="64x1"), run("ours", 1)]
    assert half_of_the_slowest(runs, peers) == 1000
    with pytest.raises(BenchError, match="64x1"):
        half_of_the_slowest([run("ours", 1)], peers)


def test_cpu_model():
    assert cpu_model("processor: 0\nmodel name\t: AMD EPYC\nmodel name\t: other\n") == "AMD EPYC"
    assert cpu_model("Features: fp\n") == "unknown"
