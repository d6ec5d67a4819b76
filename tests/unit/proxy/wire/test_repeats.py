"""Calls that may have run, on routes that say they may run again: class P of the retry table."""

from __future__ import annotations

import ngh2
import pytest

from proxy.cluster.endpoint import Cause
from proxy.slices import at_once
from tests.support.messages import framed, message
from tests.support.peers import Exchange, Headers, Peer, Server, hang_up, reset
from tests.support.world import World, endpoints

CHAT = b"/chat.ChatService/Chat"  # neither idempotent nor with a key
IDEMPOTENT = [{"method": "/a.B/Get", "key": {"field": "1"}, "idempotent": True}]
GET = b"/a.B/Get"


def answering(headers: Headers):  # type: ignore[no-untyped-def]
    def answer(server: Peer, sid: int, _exchange: Exchange) -> None:
        server.begun.add(sid)
        server.engine.send_response(sid, headers, end_stream=True)

    return answer


def trailers_only(status: int, *more: tuple[bytes, bytes]) -> Headers:
    return [(b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-status", b"%d" % status), *more]


FAILURES = {
    "reset": reset,
    "connection lost": hang_up,
    "UNAVAILABLE": answering(trailers_only(14)),
    "RESOURCE_EXHAUSTED": answering(trailers_only(8)),
    "ABORTED": answering(trailers_only(10)),
    "HTTP 503": answering([(b":status", b"503")]),
}


def failing_owner(failure, **settings: object) -> tuple[World, str]:  # type: ignore[no-untyped-def]
    world = World(**settings).echoing()
    owner = world.owner("chat-005")
    world.at(owner).on_request = failure
    return world.start(), owner


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_on_a_route_with_an_idempotency_key_the_next_server_gets_the_call(failure) -> None:  # type: ignore[no-untyped-def]
    world, owner = failing_owner(failure)
    second = world.order("chat-005")[1]
    client = world.client()
    sid = client.request(message("chat-005"))
    world.run()
    assert client.exchanges[sid].status == 0
    assert client.exchanges[sid].body == message("chat-005")
    attempts = [world.calls_at(owner)[0], world.calls_at(second)[0]]
    ids = [attempt.header(b"x-request-id") for attempt in attempts]
    assert ids[0]
    assert ids[0] == ids[1]
    assert [attempt.header(b"grpc-previous-rpc-attempts") for attempt in attempts] == [None, b"1"]
    world.assert_clean()


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_on_any_other_route_it_does_not(failure) -> None:  # type: ignore[no-untyped-def]
    world, owner = failing_owner(failure)
    client = world.client()
    sid = client.request(message("chat-005"), path=CHAT)
    world.run()
    assert client.exchanges[sid].ended
    assert client.exchanges[sid].status != 0
    assert all(not world.calls_at(name) for name in "ABC" if name != owner)
    world.assert_clean()


def test_an_idempotent_route_repeats_without_an_id() -> None:
    world, owner = failing_owner(reset, routes=IDEMPOTENT)
    client = world.client()
    sid = client.request(message("chat-005"), path=GET)
    world.run()
    assert client.exchanges[sid].status == 0
    assert world.calls_at(owner)[0].header(b"x-request-id") is None


def test_a_clients_own_request_id_is_kept() -> None:
    world, owner = failing_owner(reset)
    client = world.client()
    client.request(message("chat-005"), extra=[(b"x-request-id", b"mine")])
    world.run()
    seen = [world.calls_at(name)[0] for name in world.order("chat-005")[:2]]
    assert [[value for name, value in each.headers if name == b"x-request-id"] for each in seen] == [
        [b"mine"],
        [b"mine"],
    ]
    assert world.owner("chat-005") == owner


def test_every_call_has_an_id_of_its_own() -> None:
    world = World().echoing().start()
    client = world.client()
    for _ in range(20):
        client.request(message("chat-005"))
    world.run()
    ids = {exchange.header(b"x-request-id") for exchange in world.calls_at(world.owner("chat-005"))}
    assert len(ids) == 20


def test_other_answers_are_the_clients_business() -> None:
    for status in (1, 2, 3, 5, 7, 9, 12, 13, 16):
        world, _owner = failing_owner(answering(trailers_only(status)))
        client = world.client()
        sid = client.request(message("chat-005"))
        world.run()
        assert client.exchanges[sid].status == status
        world.assert_clean()


def test_cancelled_by_a_server_that_is_stopping_is_a_refusal() -> None:
    """C-core cancels what arrives between its first GOAWAY and its last."""

    def stop(server: Peer, sid: int, _exchange: Exchange) -> None:
        server.begun.add(sid)
        server.engine.send_shutdown_notice()
        server.engine.data_to_send and server.flush()
        server.engine.send_response(sid, trailers_only(1), end_stream=True)

    world, _owner = failing_owner(stop)
    client = world.client()
    sid = client.request(message("chat-005"))
    world.run()
    assert client.exchanges[sid].status == 0


def test_when_every_server_says_unavailable_the_client_gets_the_last_answer_as_it_was() -> None:
    world = World(outlier={"quarantine_time": 0})
    for name in "ABC":
        world.server(name).on_request = answering(
            trailers_only(14, (b"grpc-message", b"from " + name.encode()), (b"x-why", b"1"))
        )
    client = world.start().client()
    sid = client.request(message("chat-005"))
    world.run()
    answer = client.exchanges[sid]
    assert answer.message == f"from {world.order('chat-005')[2]}"
    assert answer.header(b"x-why") == b"1"
    world.assert_clean()


OUTLIER = {"consecutive_failures": 3, "max_ejection_percent": 100.0, "quarantine_time": 0.0}
AMPLE = {"min_budget": 100, "tokens": 1000}
UNAVAILABLE = FAILURES["UNAVAILABLE"]


def requested(world: World, *chats: str) -> list[int | None]:
    """The statuses of a call for each chat, one after the other."""
    client = world.client()
    statuses = []
    for chat in chats:
        sid = client.request(message(chat))
        world.run()
        statuses.append(client.exchanges[sid].status)
    return statuses


def ejected(world: World) -> list[str]:
    return sorted(each.id for each in world.proxy.cluster.snapshot if each.blocked_by(Cause.EJECTED))


def chats_by_order(world: World, order: list[str], count: int) -> list[str]:
    """Chats that walk the servers in this order."""
    return [chat for n in range(10_000) if world.order(chat := f"chat-{n}")[: len(order)] == order][:count]


@pytest.mark.parametrize("failure", ["UNAVAILABLE", "HTTP 503", "reset"])
def test_every_server_that_a_call_fails_on_is_charged_with_it(failure: str) -> None:
    """Not only the first: the second here fails nothing but what the first has failed before."""
    world = World(outlier=OUTLIER, retry=AMPLE).echoing().start()
    first, second, _ = order = world.order("chat-005")
    for name in (first, second):
        world.at(name).on_request = FAILURES[failure]
    assert requested(world, *chats_by_order(world, order, 3)) == [0, 0, 0]
    assert ejected(world) == sorted([first, second])


def test_a_server_that_answers_what_another_refused_has_its_failures_in_a_row_ended() -> None:
    world = World(outlier=OUTLIER, retry=AMPLE).echoing().start()
    first, second, third = order = world.order("chat-005")
    others = chats_by_order(world, [second, third], 4)
    world.at(second).on_request = UNAVAILABLE
    assert requested(world, *others[:2]) == [0, 0]
    world.at(second).on_request = world.at(third).on_request
    world.at(first).on_request = UNAVAILABLE
    assert requested(world, chats_by_order(world, order, 1)[0]) == [0]
    world.at(first).on_request = world.at(third).on_request
    world.at(second).on_request = UNAVAILABLE
    assert requested(world, *others[2:]) == [0, 0]
    assert not ejected(world), "two, then a good answer, then two more are no three in a row"


def test_a_call_that_goes_well_in_the_end_gives_its_part_of_a_token_back() -> None:
    world, owner = failing_owner(UNAVAILABLE, retry={"token_ratio": 0.5, "tokens": 10})
    assert requested(world, "chat-005") == [0]
    assert world.proxy.forwarder.budget.tokens == 10 - 1 + 0.5
    assert world.calls_at(owner)


def test_one_call_that_every_server_refuses_does_not_quarantine_its_chat() -> None:
    """A cluster that is short of something may answer so to all. Deaths and resets are another matter."""
    world = World().echoing()
    for name in "ABC":
        world.at(name).on_request = UNAVAILABLE
    world.start()
    assert requested(world, "chat-005", "chat-005") == [14, 14]
    assert [len(world.calls_at(name)) for name in "ABC"] == [2, 2, 2]
    assert not world.control.detector.quarantined
    world.echo_everywhere()
    assert requested(world, "chat-005") == [0]


def test_one_call_that_two_servers_reset_quarantines_its_chat() -> None:
    world = World().echoing()
    for name in "ABC":
        world.at(name).on_request = reset
    world.start()
    assert requested(world, "chat-005") == [14]
    assert sum(len(world.calls_at(name)) for name in "ABC") == 2
    assert list(world.control.detector.quarantined) == [b"chat-005"]


def test_an_attempt_that_its_client_ends_has_not_answered_though_the_one_before_had() -> None:
    world, owner = failing_owner(UNAVAILABLE, decisions={"sample": 1})
    second = world.order("chat-005")[1]
    world.at(second).on_request = None
    client = world.client()
    sid = client.request(message("chat-005"))
    world.run()
    client.engine.reset_stream(sid, ngh2.ErrorCode.CANCEL)
    world.run()
    (kept,) = world.proxy.records.latest(1, None)
    assert [(each.endpoint, each.outcome) for each in kept.record.attempts] == [
        (owner, "answered"),
        (second, "cancelled"),
    ]


def test_an_answer_with_a_body_is_never_repeated() -> None:
    world = World().echoing()
    owner = world.owner("chat-005")
    world.at(owner).on_request = lambda server, sid, _: server.respond(sid, framed(b"part"), status=14)  # type: ignore[attr-defined]
    client = world.start().client()
    sid = client.request(message("chat-005"))
    world.run()
    assert (client.exchanges[sid].body, client.exchanges[sid].status) == (framed(b"part"), 14)


# Pushback, gRFC A6.


@pytest.mark.parametrize("value", [b"-1", b"", b"soon", b"1.5", b"999999999999"])
def test_a_pushback_that_is_negative_or_no_number_forbids_to_repeat(value: bytes) -> None:
    world, _owner = failing_owner(answering(trailers_only(14, (b"grpc-retry-pushback-ms", value))))
    client = world.client()
    sid = client.request(message("chat-005"))
    world.run()
    assert client.exchanges[sid].status == 14


def test_a_pushback_is_waited_for() -> None:
    world, owner = failing_owner(answering(trailers_only(14, (b"grpc-retry-pushback-ms", b"1500"))))
    client = world.client()
    sid = client.request(message("chat-005"))
    world.advance(1.4)
    assert not client.exchanges[sid].ended
    assert len(world.calls_at(owner)) == 1
    world.advance(0.2)
    assert client.exchanges[sid].status == 0
    world.assert_clean()


@pytest.mark.parametrize("end", ["cancel", "client gone"])
def test_a_call_can_end_while_it_waits_for_a_pushback(end: str) -> None:
    world, _owner = failing_owner(answering(trailers_only(14, (b"grpc-retry-pushback-ms", b"4000"))))
    client = world.client()
    sid = client.request(message("chat-005"))
    world.run()
    assert not client.exchanges[sid].ended
    if end == "cancel":
        client.engine.reset_stream(sid)
    else:
        client.transport.abort()
    world.run()
    world.assert_clean()
    world.advance(60.0)
    assert sum(len(world.calls_at(name)) for name in "ABC") == 1


@pytest.mark.parametrize(("timeout", "pushback"), [(b"5S", b"6000"), (b"60S", b"11000")], ids=["deadline", "too long"])
def test_a_pushback_that_cannot_be_waited_for_is_the_clients_business(timeout: bytes, pushback: bytes) -> None:
    world, _owner = failing_owner(answering(trailers_only(14, (b"grpc-retry-pushback-ms", pushback))))
    client = world.client()
    sid = client.request(message("chat-005"), extra=[(b"grpc-timeout", timeout)])
    world.run()
    assert client.exchanges[sid].status == 14
    assert client.exchanges[sid].header(b"grpc-retry-pushback-ms") == pushback
    world.assert_clean()


def test_calls_that_wait_for_a_pushback_take_nothing_from_the_budget() -> None:
    world, _owner = failing_owner(answering(trailers_only(14, (b"grpc-retry-pushback-ms", b"4000"))))
    client = world.client()
    for _ in range(4):
        client.request(message("chat-005"))
    world.run()
    assert world.proxy.forwarder.budget.repeating == 0
    world.advance(5.0)
    world.assert_clean()


# Limits.


def test_a_client_that_has_tried_enough_itself_is_not_multiplied() -> None:
    world, _owner = failing_owner(reset)
    client = world.client()
    sid = client.request(message("chat-005"), extra=[(b"grpc-previous-rpc-attempts", b"3")])
    world.run()
    assert client.exchanges[sid].status == 13


def test_the_clients_attempts_and_ours_are_added() -> None:
    world, _owner = failing_owner(reset)
    client = world.client()
    client.request(message("chat-005"), extra=[(b"grpc-previous-rpc-attempts", b"1")])
    world.run()
    second = world.calls_at(world.order("chat-005")[1])[0]
    assert [value for name, value in second.headers if name == b"grpc-previous-rpc-attempts"] == [b"2"]


def test_repeats_are_a_small_part_of_the_calls_under_way() -> None:
    world = World(retry={"budget_percent": 10.0, "min_budget": 2, "tokens": 1000.0}).silent()
    client = world.start().client()
    owner, second, _ = world.order("chat-005")
    sids = [client.request(message("chat-005")) for _ in range(50)]
    world.run()
    for stream in list(world.at(owner).exchanges):
        world.at(owner).engine.reset_stream(stream, ngh2.ErrorCode.INTERNAL_ERROR)
    world.run()
    assert len(world.calls_at(second)) == 5
    assert sum(client.exchanges[sid].status == 13 for sid in sids) == 45
    for exchange_sid in list(world.at(second).exchanges):
        world.at(second).respond(exchange_sid)
    world.run()
    world.assert_clean()
    assert world.proxy.forwarder.budget.repeating == 0


def test_all_calls_of_a_lost_connection_may_be_repeated_once() -> None:
    """A server that is gone cannot be overloaded by repeats, and one lost connection is one failure."""
    world = World().silent()
    client = world.start().client()
    owner, second, _ = world.order("chat-005")
    sids = [client.request(message("chat-005")) for _ in range(100)]
    world.run()
    world.kill(owner)
    for stream in list(world.at(second).exchanges):
        world.at(second).respond(stream)
    world.run()
    assert {client.exchanges[sid].status for sid in sids} == {0}
    assert world.proxy.forwarder.budget.tokens > 8
    world.assert_clean()


@pytest.mark.parametrize(
    ("code", "status"), [(ngh2.ErrorCode.INADEQUATE_SECURITY, 7), (ngh2.ErrorCode.HTTP_1_1_REQUIRED, 13)]
)
def test_a_reset_that_says_the_set_up_is_wrong_is_not_tried_elsewhere(code: int, status: int) -> None:
    def refuse_set_up(server: Peer, sid: int, _exchange: Exchange) -> None:
        server.begun.add(sid)
        server.engine.reset_stream(sid, code)

    world, owner = failing_owner(refuse_set_up)
    client = world.client()
    sid = client.request(message("chat-005"))
    world.run()
    assert client.exchanges[sid].status == status
    assert all(not world.calls_at(name) for name in "ABC" if name != owner)


def test_many_failures_in_a_row_stop_the_repeats_and_successes_allow_them_again() -> None:
    world = World(retry={"tokens": 4.0, "token_ratio": 0.5}, outlier={"quarantine_time": 0}).answering(reset)
    client = world.start().client()
    for _ in range(3):
        client.request(message("chat-005"))
        world.run()
    before = sum(len(world.calls_at(name)) for name in "ABC")
    client.request(message("chat-005"))
    world.run()
    assert sum(len(world.calls_at(name)) for name in "ABC") == before + 1
    world.echo_everywhere()
    for _ in range(10):
        client.request(message("chat-005"))
        world.run()
    world.at(world.owner("chat-005")).on_request = reset
    sid = client.request(message("chat-005"))
    world.run()
    assert client.exchanges[sid].status == 0


def test_a_second_refusal_counts_against_the_budget() -> None:
    world = World(endpoints=endpoints(*"ABCDE"), retry={"max_attempts": 5, "min_budget": 0, "budget_percent": 0})

    def refuse(server: Peer, sid: int, _exchange: Exchange) -> None:
        assert isinstance(server, Server)
        server.begun.add(sid)
        server.refuse(sid)

    for name in "ABCDE":
        world.server(name).on_request = refuse
    client = world.start().client()
    sid = client.request(message("chat-005"), path=CHAT)
    world.run()
    assert client.exchanges[sid].status == 14
    assert sum(len(world.calls_at(name)) for name in "ABCDE") == 2


def test_a_call_that_its_client_ends_during_a_repeat_counts_as_cancelled() -> None:
    """Not as what the first server answered: its client never saw that."""
    world = World()
    owner, second, _ = world.order("chat-005")

    world.server(owner).on_request = FAILURES["UNAVAILABLE"]
    world.server(second)
    client = world.start().client()
    sid = client.request(message("chat-005"))
    world.run()
    client.engine.reset_stream(sid, ngh2.ErrorCode.CANCEL)
    world.run()
    counted = at_once(world.proxy.stats.gathered()).values["districhat_calls_total"]
    assert [labels[-1] for labels, count in counted.items() if count] == ["CANCELLED"]
    world.assert_clean()
