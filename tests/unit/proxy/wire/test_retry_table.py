"""The whole retry table, row by row: which event lets which call move, and who is blamed for it.

Each row happens to a call at its owner, once on a route that leaves no call a second run and once on one with an
idempotency key. T: both move. P: only the second does. N: none does, and the client is told. That a call which must not
run twice ran at one server at most is checked for every row; that the in-memory clock stands still, for all that needs
no waiting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import ngh2
import pytest

from proxy.cluster.endpoint import Cause, Endpoint
from tests.support.messages import framed, message
from tests.support.peers import Client, Exchange, Peer
from tests.support.world import World, address_of

if TYPE_CHECKING:
    from collections.abc import Callable

CHAT = "chat-005"
ROUTES = {"once": b"/chat.ChatService/Chat", "keyed": b"/chat.ChatService/PostMessage"}

T, P, N = "T", "P", "N"


@dataclass
class Case:
    """One call on its way, and the servers it may meet."""

    world: World
    client: Client
    path: bytes
    sid: int = 0

    def __post_init__(self) -> None:
        self.owner, self.second, self.third = self.world.order(CHAT)

    def call(self, *, end: bool = True) -> None:
        """Make the call."""
        self.sid = self.client.request(message(CHAT), path=self.path, end=end)
        self.world.run()

    def owner_does(self, what: Callable[[Peer, int, Exchange], None] | None) -> None:
        """The owner meets its calls with this."""
        self.world.at(self.owner).on_request = what

    @property
    def answer(self) -> Exchange:
        return self.client.exchanges[self.sid]

    def ran_at(self) -> list[str]:
        """Servers that have seen a call with all of its request."""
        return [
            name
            for name in "ABC"
            if self.world.servers.get(address_of(name)) is not None
            for server in self.world.at(name).connections
            if any(exchange.ended for exchange in server.exchanges.values())
        ]


def resets(code: int) -> Callable[[Case], None]:
    def happen(case: Case) -> None:
        def reset(server: Peer, sid: int, _exchange: Exchange) -> None:
            server.begun.add(sid)
            server.engine.reset_stream(sid, code)

        case.owner_does(reset)
        case.call()

    return happen


def answers(*headers: tuple[bytes, bytes]) -> Callable[[Case], None]:
    def happen(case: Case) -> None:
        def answer(server: Peer, sid: int, _exchange: Exchange) -> None:
            server.begun.add(sid)
            server.engine.send_response(sid, headers, end_stream=True)

        case.owner_does(answer)
        case.call()

    return happen


def status(code: int) -> tuple[tuple[bytes, bytes], ...]:
    return ((b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-status", b"%d" % code))


def unavailable_at_pick_time(case: Case) -> None:
    case.world.proxy.cluster.snapshot.by_id[case.owner].block(Cause.HEALTH, "timed out")
    case.call()


def ejected_at_pick_time(case: Case) -> None:
    case.world.proxy.cluster.snapshot.by_id[case.owner].block(Cause.EJECTED, "ejected")
    case.call()


def drained_at_pick_time(case: Case) -> None:
    case.world.proxy.cluster.snapshot.by_id[case.owner].block(Cause.OPERATOR, "drained")
    case.call()


def connect_refused(case: Case) -> None:
    case.world.kill(case.owner)
    case.call()


def connect_timeout(case: Case) -> None:
    server = case.world.at(case.owner)
    case.world.servers[address_of(case.owner)] = None  # a black hole from now on
    server.transport.abort()
    case.call()
    case.world.advance(6.0)


def dies_while_the_call_is_queued(case: Case) -> None:
    case.owner_does(None)
    other = next(chat for number in range(500) if case.world.owner(chat := f"other-{number}") == case.owner)
    blocker = case.client.request(message(other), path=b"/chat.ChatService/PostMessage", end=False)
    case.world.run()
    case.call()  # beyond the server's stream limit of 1
    case.client.engine.reset_stream(blocker, ngh2.ErrorCode.CANCEL)
    case.world.kill(case.owner)


def lost_before_a_byte_was_written(case: Case) -> None:
    endpoint = case.world.proxy.cluster.snapshot.by_id[case.owner]
    case.world.proxy.pools[endpoint].connections[0].pause_writing()
    case.call()
    case.world.kill(case.owner)


def goaway_below_the_call(code: int) -> Callable[[Case], None]:
    def happen(case: Case) -> None:
        case.owner_does(None)
        case.call()
        case.world.servers.pop(address_of(case.owner)).engine.terminate_connection(  # type: ignore[union-attr]
            code, last_stream_id=0
        )
        case.world.run()

    return happen


def goaway_above_the_call_then_the_end(case: Case) -> None:
    case.owner_does(None)
    case.call()
    server = case.world.servers.pop(address_of(case.owner))
    assert server is not None
    server.engine.send_goaway(0)
    case.world.run()
    server.transport.abort()
    case.world.run()


def lost_after_the_request(case: Case) -> None:
    case.owner_does(None)
    case.call()
    case.world.kill(case.owner)


def per_try_timeout(case: Case) -> None:
    case.owner_does(None)
    case.call()
    case.world.advance(3.0)


def lost_after_response_headers(case: Case) -> None:
    case.owner_does(lambda server, sid, _exchange: server.begin(sid))  # type: ignore[attr-defined]
    case.call()
    case.world.kill(case.owner)


def replay_buffer_overflown(case: Case) -> None:
    case.owner_does(None)
    case.call(end=False)
    for _ in range(40):
        case.client.engine.send_data(case.sid, framed(b"x" * 1000))
        case.world.run()
    case.client.engine.send_data(case.sid, b"", end_stream=True)
    case.world.run()
    case.world.kill(case.owner)


def buffered_messages(fate: Callable[[Case], None]) -> Callable[[Case], None]:
    def happen(case: Case) -> None:
        case.owner_does(None)
        case.call(end=False)
        for number in range(3):
            case.client.engine.send_data(case.sid, framed(b"%d" % number), end_stream=number == 2)
            case.world.run()
        fate(case)
        case.world.run()

    return happen


def refuse_it(case: Case) -> None:
    case.world.at(case.owner).refuse(1)


def lose_it(case: Case) -> None:
    case.world.kill(case.owner)


@dataclass(frozen=True)
class Row:
    """One event, the class of what may follow, and whether it counts against the server."""

    number: int
    event: str
    happen: Callable[[Case], None]
    retry_class: str
    blamed: bool
    status: int = 14
    """Of a call that may not move."""
    waits: bool = False
    """Something has to time out first."""

    def __str__(self) -> str:
        return f"{self.number:02}-{self.retry_class}-{self.event}"


CODES = ngh2.ErrorCode
TABLE = [
    Row(1, "unhealthy at pick time", unavailable_at_pick_time, T, blamed=False),
    Row(1, "ejected at pick time", ejected_at_pick_time, T, blamed=False),
    Row(1, "drained by the operator at pick time", drained_at_pick_time, T, blamed=False),
    Row(2, "connect refused", connect_refused, T, blamed=False),
    Row(2, "connect timeout", connect_timeout, T, blamed=False, waits=True),
    Row(3, "queued for a stream when the connection died", dies_while_the_call_is_queued, T, blamed=False),
    Row(4, "connection lost before a byte was written", lost_before_a_byte_was_written, T, blamed=False),
    Row(5, "REFUSED_STREAM", resets(CODES.REFUSED_STREAM), T, blamed=False),
    Row(6, "GOAWAY(NO_ERROR) below the call", goaway_below_the_call(CODES.NO_ERROR), T, blamed=False),
    Row(6, "GOAWAY(INTERNAL_ERROR) below the call", goaway_below_the_call(CODES.INTERNAL_ERROR), T, blamed=False),
    Row(8, "GOAWAY above the call, then closed", goaway_above_the_call_then_the_end, P, blamed=True),
    Row(9, "connection lost after the request", lost_after_the_request, P, blamed=True),
    Row(10, "RST_STREAM(INTERNAL_ERROR)", resets(CODES.INTERNAL_ERROR), P, blamed=True, status=13),
    Row(10, "RST_STREAM(PROTOCOL_ERROR)", resets(CODES.PROTOCOL_ERROR), P, blamed=True, status=13),
    Row(10, "RST_STREAM(ENHANCE_YOUR_CALM)", resets(CODES.ENHANCE_YOUR_CALM), P, blamed=True, status=8),
    Row(10, "RST_STREAM(CANCEL)", resets(CODES.CANCEL), P, blamed=False, status=1),
    Row(10, "RST_STREAM(NO_ERROR)", resets(CODES.NO_ERROR), P, blamed=False, status=13),
    Row(11, "UNAVAILABLE", answers(*status(14)), P, blamed=True),
    Row(11, "RESOURCE_EXHAUSTED", answers(*status(8)), P, blamed=False, status=8),
    Row(11, "ABORTED", answers(*status(10)), P, blamed=False, status=10),
    Row(12, "HTTP 502", answers((b":status", b"502")), P, blamed=True),
    Row(12, "HTTP 503", answers((b":status", b"503")), P, blamed=True),
    Row(12, "HTTP 504", answers((b":status", b"504")), P, blamed=True),
    Row(13, "per-try timeout", per_try_timeout, P, blamed=True, status=4, waits=True),
    Row(14, "lost after the response headers", lost_after_response_headers, N, blamed=True),
    Row(15, "replay buffer overflown, then lost", replay_buffer_overflown, N, blamed=True),
    Row(17, "several messages, still buffered, refused", buffered_messages(refuse_it), T, blamed=False),
    Row(17, "several messages, still buffered, lost", buffered_messages(lose_it), P, blamed=True),
    Row(18, "RST_STREAM(INADEQUATE_SECURITY)", resets(CODES.INADEQUATE_SECURITY), N, blamed=False, status=7),
    Row(18, "RST_STREAM(HTTP_1_1_REQUIRED)", resets(CODES.HTTP_1_1_REQUIRED), N, blamed=False, status=13),
    Row(18, "UNIMPLEMENTED", answers(*status(12)), N, blamed=False, status=12),
    Row(18, "INVALID_ARGUMENT", answers(*status(3)), N, blamed=False, status=3),
    Row(18, "INTERNAL", answers(*status(13)), N, blamed=False, status=13),
]
"""Row 7, a first GOAWAY that leaves the call alone, and row 16, a client that has left, end no attempt: see below."""


def case_of(route: str, **settings: object) -> Case:
    routes = [
        {"method": ROUTES["once"].decode(), "key": {"field": "1"}, "timeout": 10.0},
        {
            "method": ROUTES["keyed"].decode(),
            "key": {"field": "1"},
            "timeout": 10.0,
            "idempotency_key": True,
            "per_try_timeout": 2.0,
        },
    ]
    settings = {"routes": routes, "retry": {"replay_buffer": 20_000}, "failback": {"mode": "immediate"}, **settings}
    world = World(**settings).echoing(settings={ngh2.Setting.MAX_CONCURRENT_STREAMS: 1})
    return Case(world.start(), world.client(), ROUTES[route])


@pytest.mark.parametrize(
    ("row", "route"),
    # A per-try timeout is refused on a route whose calls may not run twice.
    [(row, route) for row in TABLE for route in ROUTES if (row.number, route) != (13, "once")],
    ids=str,
)
def test_row(row: Row, route: str) -> None:
    case = case_of(route, upstream={"max_connections": 1})
    began = case.world.time
    blame = failures_noted(case)
    row.happen(case)
    moves = row.retry_class == T or (row.retry_class == P and route == "keyed")
    if moves:
        assert case.answer.status == 0, case.answer.message
        assert case.answer.body.startswith(message(CHAT))
        assert case.second in case.ran_at()
        assert case.third not in case.ran_at()
    else:
        assert case.answer.status == row.status, case.answer.message
        assert set(case.ran_at()) <= {case.owner}
    if route == "once":
        executed = set(case.ran_at()) - ({case.owner} if moves else set())
        assert len(executed) <= 1
    assert (case.owner in blame) == row.blamed
    assert case.second not in blame
    if not row.waits:
        assert case.world.time == began, "nothing was waited for"
    case.world.assert_clean()


def failures_noted(case: Case) -> list[str]:
    """Ids of the servers that the outlier detection is told about because of this chat, from now on."""
    told: list[str] = []
    detector = case.world.proxy.detector
    failed = detector.failed

    def note(endpoint: Endpoint, key: bytes, now: float, *, again: bool = False) -> bool:
        if key == CHAT.encode():
            told.append(endpoint.id)
        return failed(endpoint, key, now, again=again)

    detector.failed = note  # type: ignore[method-assign]
    return told


@pytest.mark.parametrize("route", ROUTES)
def test_row_07_a_first_goaway_leaves_the_call_where_it_is(route: str) -> None:
    case = case_of(route)
    case.owner_does(None)
    case.call()
    old = case.world.at(case.owner)
    old.engine.send_shutdown_notice()
    case.world.run()
    old.respond(1, b"done")
    case.world.run()
    assert (case.answer.status, case.answer.body) == (0, b"done")
    assert case.ran_at() == [case.owner]


@pytest.mark.parametrize("leaves", ["cancels", "hangs up", "deadline"])
@pytest.mark.parametrize("route", ROUTES)
def test_row_16_a_client_that_leaves_ends_the_call_at_its_server_and_nobody_is_blamed(route: str, leaves: str) -> None:
    case = case_of(route, routes=[{"method": "*", "key": {"field": "1"}, "timeout": 10.0}])
    blame = failures_noted(case)
    case.owner_does(None)
    case.call()
    if leaves == "cancels":
        case.client.engine.reset_stream(case.sid, CODES.CANCEL)
    elif leaves == "hangs up":
        case.client.transport.abort()
    else:
        case.world.advance(11.0)
    case.world.run()
    assert case.world.at(case.owner).exchanges[1].reset == CODES.CANCEL
    assert case.ran_at() == [case.owner]
    assert not blame
    case.world.assert_clean()


@pytest.mark.parametrize("event", ["REFUSED_STREAM", "GOAWAY"])
def test_rows_05_and_06_the_second_time_it_costs(event: str) -> None:
    """Transparent once; from then on it takes from the retry budget, here of nothing."""
    case = case_of("once", retry={"budget_percent": 0.0, "min_budget": 0})
    for name in (case.owner, case.second):
        server = case.world.at(name)
        if event == "REFUSED_STREAM":
            server.on_request = lambda peer, sid, _: peer.refuse(sid)  # type: ignore[attr-defined]
        else:
            server.on_request = lambda peer, _sid, _: peer.engine.terminate_connection(0, last_stream_id=0)
    case.call()
    assert case.answer.status == 14
    assert case.third not in case.ran_at()


def test_the_first_call_to_a_dead_servers_chat_is_at_the_next_server_without_any_time_passing() -> None:
    """From the moment the connect is refused: no timer and no back-off lies between that and the next server."""
    case = case_of("once")
    case.world.kill(case.owner)
    began = case.world.time
    case.call()
    assert case.answer.status == 0
    assert case.ran_at() == [case.second]
    assert case.world.time == began
