"""What lies in deploy/: it loads in the programs it is for, and speaks of what there is."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from proxy.admin.metrics import TABLE
from tests.support.tools import need

DEPLOY = Path(__file__).parents[3] / "deploy"
RULES = DEPLOY / "prometheus" / "alerts.yml"
RULE_TESTS = DEPLOY / "prometheus" / "alerts.test.yml"
GRAFANA = DEPLOY / "grafana" / "districhat.json"

COLUMNS = 24
"""Of a Grafana dashboard."""

_SAMPLES = {
    "histogram": ("_bucket", "_sum", "_count"),
    "counter": ("",),
    "gauge": ("",),
}
NAMES = {row.name + ending: row for row in TABLE for ending in _SAMPLES[row.kind]}
"""Every name that Prometheus knows of us."""


def promtool(*arguments: str) -> str:
    ended = subprocess.run(
        [need("promtool", "prometheus"), *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def dashboard() -> dict[str, Any]:
    return json.loads(GRAFANA.read_text(encoding="utf-8"))


def panels() -> list[dict[str, Any]]:
    return dashboard()["panels"]


def queries() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel.get("targets", [])]


def rules() -> str:
    """The expressions, without the comments."""
    return "\n".join(
        line for line in RULES.read_text(encoding="utf-8").splitlines() if not line.strip().startswith("#")
    )


def test_prometheus_loads_the_rules() -> None:
    assert "SUCCESS" in promtool("check", "rules", str(RULES))


def test_every_alert_fires_when_it_should_and_not_before() -> None:
    assert "SUCCESS" in promtool("test", "rules", str(RULE_TESTS))
    names = re.findall(r"alert: (\w+)", RULES.read_text(encoding="utf-8"))
    cases = RULE_TESTS.read_text(encoding="utf-8")
    assert [name for name in names if f'alertname="{name}"' not in cases] == []


@pytest.mark.parametrize("text", [rules(), *queries()], ids=["rules", *(f"query-{n}" for n, _ in enumerate(queries()))])
def test_only_metrics_and_labels_that_exist_are_asked_for(text: str) -> None:
    for name, selector in re.findall(r"(districhat_\w+)(?:\{([^}]*)\})?", text):
        assert name in NAMES
        labels = set(re.findall(r"(\w+)\s*(?:=|!=|=~|!~)\s*\"", selector))
        assert labels <= {"instance", "job", *NAMES[name].labels}, name
    grouped = {label.strip() for found in re.findall(r"\b(?:by|on) \(([^)]*)\)", text) for label in found.split(",")}
    assert grouped <= {"instance", "job", "le"} | {label for row in TABLE for label in row.labels}


def test_prometheus_understands_every_query_of_the_dashboard(tmp_path: Path) -> None:
    records = [
        {"record": f"query:{number}", "expr": query.replace("$__rate_interval", "5m").replace("$instance", ".*")}
        for number, query in enumerate(queries())
    ]
    file = tmp_path / "queries.yml"  # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": records}]}), encoding="utf-8")
    assert f"{len(records)} rules found" in promtool("check", "rules", str(file))


def test_the_panels_of_the_dashboard_stand_side_by_side() -> None:
    assert len({panel["id"] for panel in panels()}) == len(panels())
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= COLUMNS
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or panel["targets"]
        assert len({target["refId"] for target in panel.get("targets", [])}) == len(panel.get("targets", []))


def test_the_dashboard_asks_the_data_source_that_its_reader_chooses() -> None:
    variables = {each["name"] for each in dashboard()["templating"]["list"]}
    text = GRAFANA.read_text(encoding="utf-8")
    assert set(re.findall(r"\$\{?(\w+)", text)) - {"__rate_interval", "__all"} == variables
    for panel in panels():
        assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}"


def test_the_unit_runs_commands_that_exist_and_outlasts_the_drain() -> None:
    from proxy.cli import main
    from proxy.transport.settings import ListenerSettings

    unit = (DEPLOY / "systemd" / "districhat.service").read_text(encoding="utf-8")
    commands = re.findall(r"^Exec\w+=/opt/districhat/bin/districhat (\w+)", unit, re.MULTILINE)
    assert commands == ["check", "serve"]
    for command in commands:
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
    [seconds] = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert int(seconds) > ListenerSettings().drain_grace


def test_the_unit_leaves_it_to_the_proxy_to_end_its_workers() -> None:
    unit = (DEPLOY / "systemd" / "districhat.service").read_text(encoding="utf-8")
    assert "KillMode=mixed" in unit.splitlines()
