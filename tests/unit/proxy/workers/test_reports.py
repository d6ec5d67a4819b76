"""Reports of calls while the parent keeps up, and while it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from proxy.workers import reports as module
from proxy.workers.messages import Ended, ManyMoved, Moved
from proxy.workers.reports import Reports

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.workers.messages import Message

FAILED = ("failed", "A", b"chat", 1.0)


class Parent:
    """The channel to a parent that keeps up or not, and the timers."""

    def __init__(self) -> None:
        self.slow = False
        self.heard: list[Message] = []
        self.timers: list[Callable[[], None]] = []
        self.reports = Reports(cast("Any", self), self.call_later)

    def send(self, message: Message, *, must: bool = False) -> None:
        assert not self.slow or must, "it would have been dropped"
        self.heard.append(message)

    def call_later(self, _delay: float, callback: Callable[[], None]) -> Any:
        self.timers.append(callback)
        return callback

    def later(self) -> None:
        timers, self.timers = self.timers, []
        for each in timers:
            each()


@pytest.fixture
def parent() -> Parent:
    return Parent()


def test_reports_are_told_together_and_in_order(parent: Parent) -> None:
    for number in range(3):
        parent.reports.ended(("failed", "A", b"chat-%d" % number, 1.0))
    assert len(parent.timers) == 1
    parent.later()
    (told,) = parent.heard
    assert isinstance(told, Ended)
    assert [key for _, _, key, _ in told.calls] == [b"chat-0", b"chat-1", b"chat-2"]
    assert not parent.timers


def test_of_a_chat_that_moves_often_only_the_last_place_is_told(parent: Parent) -> None:
    for moved in (Moved(b"one", "A", 1.0), Moved(b"two", "A", 2.0), Moved(b"one", None, 0.0)):
        parent.reports.moved(moved)
    parent.later()
    assert parent.heard == [ManyMoved((Moved(b"one", None, 0.0), Moved(b"two", "A", 2.0)))]


def test_nothing_is_lost_while_the_parent_is_behind_for_a_moment(
    parent: Parent, caplog: pytest.LogCaptureFixture
) -> None:
    parent.slow = True
    parent.reports.ended(FAILED)
    parent.reports.moved(Moved(b"chat", "B", 1.0))
    for _ in range(3):
        parent.later()
    assert not parent.heard
    parent.slow = False
    parent.later()
    assert parent.heard == [Ended((FAILED,)), ManyMoved((Moved(b"chat", "B", 1.0),))]
    assert parent.reports.lost == 0
    assert not caplog.records


def test_what_is_lost_for_a_parent_that_stays_behind_is_counted_and_said_once(
    parent: Parent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MAX_REPORTS", 2)
    parent.slow = True
    for number in range(5):
        parent.reports.ended(FAILED)
        parent.reports.moved(Moved(b"chat-%d" % number, "B", 1.0))
        parent.later()
    parent.reports.moved(Moved(b"chat-1", None, 2.0))
    assert parent.reports.lost == 6
    assert [record.getMessage() for record in caplog.records] == [
        "the parent does not keep up: reports of calls are lost"
    ]
    caplog.clear()
    parent.slow = False
    parent.later()
    assert parent.heard == [
        Ended((FAILED, FAILED)),
        ManyMoved((Moved(b"chat-0", "B", 1.0), Moved(b"chat-1", None, 2.0))),
    ]
    assert [record.getMessage() for record in caplog.records] == [
        "the parent keeps up again: 6 reports of calls were lost"
    ]
    caplog.clear()
    parent.reports.ended(FAILED)
    parent.later()
    assert parent.reports.lost == 6
    assert not caplog.records
