from __future__ import annotations

import json

import pytest

from bench.load import ghz

REPORT = """\
Status code distribution:
  [OK]            {ok} responses
  [Unavailable]   3 responses
"""


def test_calls_without_an_ok_are_counted():
    assert ghz.failed(REPORT.format(ok=97), 100) == 3
    assert ghz.failed(REPORT.format(ok=100), 100) == 0
    assert ghz.failed("no report at all", 100) == 100


def test_the_chat_ids_come_from_a_template():
    config = json.loads(ghz.CONFIG.read_text())
    assert "{{" in config["data"]["chat_id"]
    assert (ghz.ROOT / config["proto"]).is_file()


def test_without_ghz_it_says_what_to_do(capsys, monkeypatch):
    monkeypatch.setattr(ghz.shutil, "which", lambda *_, **__: None)
    assert ghz.main([]) == 2
    assert "go install github.com/bojand/ghz/cmd/ghz@" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--total", "0"], ["--total", "x"]])
def test_a_wrong_number_is_a_usage_error(arguments):
    with pytest.raises(SystemExit, match="2"):
        ghz.main(arguments)
