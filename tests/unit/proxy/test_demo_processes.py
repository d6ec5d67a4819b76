"""Children that are not what the demo expects. How the expected ones behave is in tests/integration/test_demo.py."""

from __future__ import annotations

import time

import pytest

from proxy.commands.demo.processes import ChildError, Children


def test_a_child_that_never_says_it_is_ready_is_named(tmp_path):
    with Children() as children:
        child = children.start("the mute", "http.server", ["--bind", "127.0.0.1", "0"], tmp_path / "log")
        with pytest.raises(ChildError, match="the mute was not ready after"):
            child.wait_ready(time.monotonic())
    assert child.ended_within(0)


def test_a_child_that_ends_before_it_is_ready_is_named_with_its_last_words(tmp_path):
    with Children() as children:
        child = children.start("the clumsy", "json.tool", ["/nowhere/to/be/found.json"], tmp_path / "log")
        with pytest.raises(ChildError) as caught:
            child.wait_ready(time.monotonic() + 60)
    assert caught.value.headline.startswith("the clumsy ended with status ")
    assert "/nowhere/to/be/found.json" in str(caught.value)


def test_children_are_ended_when_the_caller_fails(tmp_path):
    started = []

    def fail() -> None:
        with Children() as children:
            started.append(children.start("server", "http.server", ["--bind", "127.0.0.1", "0"], tmp_path / "log"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    [child] = started
    assert child.ended_within(0)
    assert not child.died()


def test_a_killed_child_has_not_died_by_itself(tmp_path):
    with Children() as children:
        child = children.start("server", "http.server", ["--bind", "127.0.0.1", "0"], tmp_path / "log")
        child.kill()
        children.check()
        assert child.obituary().headline == "server was ended by SIGKILL"
