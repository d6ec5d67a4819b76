from __future__ import annotations

import json

import pytest
from rich.console import Console

from bench.machine import cpu_model
from bench.report import plain_lines, ratios, show, summarise, write_json
from bench.runner import Run


def run(peer: str, us: float, *, shape: str = "8x32", number: int = 1, failed: int = 0) -> Run:
    return Run(peer, shape, number, calls=1000, failed=failed, seconds=0.5, cpu_seconds=us * 1000 / 1e6)


RUNS = [run("ours", us, number=n) for n, us in enumerate((10, 30, 11), 1)] + [run("theirs", 440)]


def test_summary_is_median_and_spread():
    ours, theirs = summarise(RUNS)
    assert (ours.cpu_us, ours.cpu_us_min, ours.cpu_us_max) == pytest.approx((11, 10, 30))
    assert (ours.calls, ours.calls_per_second) == (3000, 2000)
    assert theirs.busy == pytest.approx(0.88)


def test_summaries_stand_shape_by_shape():
    runs = [run("a", 1), run("a", 1, shape="64x1"), run("b", 1), run("b", 1, shape="64x1")]
    assert [(s.shape, s.peer) for s in summarise(runs)] == [("8x32", "a"), ("8x32", "b"), ("64x1", "a"), ("64x1", "b")]


def test_ratio_is_ours_over_theirs():
    [ratio] = ratios(summarise(RUNS), "ours")
    assert ratio.ratio == pytest.approx(0.025)
    assert str(ratio) == "8x32: ours / theirs = 0.025 (40.0 times less CPU per call)"


def test_a_slower_ours_is_said_plainly():
    [ratio] = ratios(summarise([run("ours", 30), run("theirs", 20)]), "ours")
    assert str(ratio).endswith("= 1.500 (1.5 times the CPU per call)")


@pytest.mark.parametrize("runs", [[], [run("ours", 1)], [run("theirs", 1)]])
def test_no_ratio_without_both(runs):
    assert ratios(summarise(runs), "ours") == []


def test_a_peer_with_failures_gets_no_ratio_and_says_so():
    summaries = summarise([run("ours", 1, failed=3), run("theirs", 2)])
    assert ratios(summaries, "ours") == []
    assert "3 FAILED" in plain_lines(summaries)[1]


def test_a_pipe_gets_plain_aligned_lines():
    console = Console(width=20, force_terminal=False)
    with console.capture() as capture:
        show(console, summarise(RUNS), [], {"cpu": "a long name of a processor"})
    lines = capture.get().splitlines()
    assert lines[0] == "cpu          a long name of a processor"
    assert lines[2].startswith("shape  peer    CPU us/call")
    assert len(lines) == 5
    assert lines[3].split()[:4] == ["8x32", "ours", "11.0", "10.0-30.0"]


def test_a_terminal_gets_a_table():
    console = Console(width=120, force_terminal=True)
    with console.capture() as capture:
        show(console, summarise(RUNS), [], {})
    assert "┃" in capture.get()


def test_json_holds_every_run_and_its_directory_is_made(tmp_path):
    path = tmp_path / "new" / "results.json"
    summaries = summarise(RUNS)
    write_json(path, RUNS, summaries, ratios(summaries, "ours"), {"kernel": "Linux"})
    document = json.loads(path.read_text())
    assert [entry["cpu_us_per_call"] for entry in document["runs"]] == pytest.approx([10, 30, 11, 440])
    assert document["machine"] == {"kernel": "Linux"}
    assert document["ratios"][0]["ratio"] == pytest.approx(0.025)


def test_cpu_model():
    assert cpu_model("processor: 0\nmodel name\t: AMD EPYC\nmodel name\t: other\n") == "AMD EPYC"
    assert cpu_model("Features: fp\n") == "unknown"
