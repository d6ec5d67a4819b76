"""docs/limits.md names every limit there is, its real default, a counter there is and a test there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxy.forwarding.limits import LimitCounters
from proxy.settings import Settings

ROOT = Path(__file__).parents[3]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs/limits.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("|") and not line.startswith("|---")
]
SETTING = re.compile(r"`(\w+\.\w+)`")
NAMED = {row[0].strip("`"): row for row in ROWS if SETTING.fullmatch(row[0])}

IS_A_LIMIT = re.compile(r"max_|.*(_timeout|_window|_per_second|replay_buffer|_total|_age|_grace)$")
NO_LIMITS_OF_PEERS = {
    # How fast and how long we do something ourselves.
    "upstream.max_connect_backoff",
    "upstream.tcp_user_timeout",
    "outlier.max_ejection_time",
    "outlier.max_ejection_percent",
    "health.startup_timeout",
}


def settings() -> dict[str, object]:
    found = {}
    for section, field in Settings.model_fields.items():
        for name, each in getattr(type(field.default), "model_fields", {}).items():
            found[f"{section}.{name}"] = each.default
    return found


LIMITS = {
    key: default
    for key, default in settings().items()
    if IS_A_LIMIT.match(key.split(".")[1]) and key not in NO_LIMITS_OF_PEERS and key.split(".")[0] != "admin"
}


@pytest.mark.parametrize("key", LIMITS)
def test_every_limit_has_a_row_with_its_default(key: str) -> None:
    assert key in NAMED, f"docs/limits.md has no row for {key}"
    assert NAMED[key][1] == str(LIMITS[key])


def test_no_row_is_about_a_setting_that_is_not_there() -> None:
    assert set(NAMED) <= set(settings())


def test_every_counter_is_named_and_no_other() -> None:
    named = set()
    for row in ROWS:
        if len(row) == 5 and row[3] != "counter":
            named |= set(re.findall(r"`(\w+)`", row[3]))
    assert named == set(LimitCounters.__slots__)


def test_every_proof_is_a_test_that_exists() -> None:
    tests = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        tests |= set(re.findall(r"def (test_\w+)", file.read_text(encoding="utf-8")))
    for row in ROWS:
        proof = row[-1]
        if proof != "proved by":
            assert proof.strip("`") in tests, f"{row[0]}: no test {proof}"
