from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.cluster.address import Address
from proxy.cluster.endpoint import Cause, Endpoint


def endpoint() -> Endpoint:
    return Endpoint("A", Address("127.0.0.1", 1))


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(Cause)), max_size=30))
def test_a_server_is_available_if_nobody_objects_and_every_flip_is_told_once(steps: list[tuple[bool, Cause]]) -> None:
    server, told, objecting = endpoint(), [], set()
    server.notify = lambda changed: told.append(changed.available)
    for objects, cause in steps:
        before = server.available
        if objects:
            objecting.add(cause)
            flipped = server.block(cause, cause.value)
        else:
            objecting.discard(cause)
            flipped = server.unblock(cause)
        assert server.available == (not objecting)
        assert flipped == (server.available != before)
        assert all(cause.value in server.reason for cause in objecting)
        assert server.may_be_tried == objecting.isdisjoint({Cause.CONNECT, Cause.OPERATOR, Cause.REMOVED})
    assert told == [index % 2 == 1 for index in range(len(told))]


def test_the_newer_reason_of_a_cause_stands() -> None:
    server = endpoint()
    server.block(Cause.HEALTH, "timed out")
    server.block(Cause.HEALTH, "said NOT_SERVING")
    server.block(Cause.EJECTED, "5 failures in a row")
    assert server.reason == "said NOT_SERVING, 5 failures in a row"
    server.unblock(Cause.HEALTH)
    server.unblock(Cause.EJECTED)
    assert server.reason == ""


def test_only_the_operator_takes_back_an_operators_drain() -> None:
    server = endpoint()
    server.block(Cause.OPERATOR, "drained by the operator")
    for cause in set(Cause) - {Cause.OPERATOR}:
        server.block(cause, cause.value)
        assert not server.unblock(cause)
    assert not server.available
    assert not server.may_be_tried
    assert server.reason == "drained by the operator"
    assert server.unblock(Cause.OPERATOR)
    assert server.available


def test_a_watcher_is_told_when_a_cause_begins_and_when_it_ceases_and_not_in_between() -> None:
    server, told = endpoint(), []
    server.watch = lambda changed, cause: told.append((cause, changed.blocks.get(cause), changed.available))
    server.block(Cause.HEALTH, "timed out")
    server.block(Cause.HEALTH, "said NOT_SERVING")
    server.block(Cause.EJECTED, "5 failures in a row")
    server.unblock(Cause.HEALTH)
    server.unblock(Cause.HEALTH)
    server.unblock(Cause.EJECTED)
    assert told == [
        (Cause.HEALTH, "timed out", False),
        (Cause.EJECTED, "5 failures in a row", False),
        (Cause.HEALTH, None, False),
        (Cause.EJECTED, None, True),
    ]
