"""The dirty list: one flush per connection and pass, whatever happens in it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from proxy.http2 import Backlog, Outbox, PassClock, Turns
from tests.support.loop import Loop


def outbox_of(loop: Loop) -> Outbox:
    return Outbox(loop.call_soon, Backlog(1, 1, print), PassClock(None), Turns(loop.call_soon, float))


class Connection:
    def __init__(self, log: list[str], name: str, error: Exception | None = None) -> None:
        self.log, self.name, self.error = log, name, error
        self.then: Callable[[], None] = lambda: None

    def flush(self) -> None:
        self.log.append(self.name)
        self.then()
        if self.error:
            raise self.error

    def fail(self, error: Exception) -> None:
        self.log.append(f"{self.name} failed: {error}")


def test_all_connections_of_a_pass_are_flushed_by_one_callback() -> None:
    loop, log = Loop(), []
    outbox = outbox_of(loop)
    for name in "abc":
        outbox.add(Connection(log, name))
    assert len(loop.scheduled) == 1
    loop.run()
    assert log == ["a", "b", "c"]
    loop.run()
    assert log == ["a", "b", "c"]


def test_a_connection_made_dirty_by_a_flush_is_flushed_in_the_same_pass() -> None:
    loop, log = Loop(), []
    outbox = outbox_of(loop)
    first, second = Connection(log, "first"), Connection(log, "second")
    first.then = lambda: outbox.add(second)
    outbox.add(first)
    loop.run()
    assert log == ["first", "second"]
    assert not loop.scheduled


def test_a_connection_with_a_bug_silences_no_other() -> None:
    loop, log = Loop(), []
    outbox = outbox_of(loop)
    outbox.add(Connection(log, "bad", ValueError("oops")))
    outbox.add(Connection(log, "good"))
    loop.run()
    assert log == ["bad", "bad failed: oops", "good"]


def test_a_connection_that_cannot_even_be_given_up_silences_no_other_and_is_reported() -> None:
    loop, log = Loop(), []
    outbox = outbox_of(loop)
    worst = Connection(log, "worst", ValueError("oops"))

    def fail(_error: Exception) -> None:
        raise KeyError("nor that")

    worst.fail = fail  # type: ignore[method-assign]
    outbox.add(worst)
    outbox.add(Connection(log, "good"))
    with pytest.raises(KeyError, match="nor that"):
        loop.run()
    assert log == ["worst", "good"]
    outbox.add(Connection(log, "later"))
    loop.run()
    assert log == ["worst", "good", "later"]
