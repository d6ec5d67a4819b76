"""Responses with more metadata than their client takes (its MAX_HEADER_LIST_SIZE): that call ends, and no other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ngh2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.messages import framed, message
from tests.support.peers import Client, Exchange, Headers, Peer, Server, echo
from tests.support.world import World

if TYPE_CHECKING:
    from collections.abc import Callable

OK, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNAVAILABLE = 0, 4, 8, 14
CALM, CANCEL, NO_ERROR = ngh2.ErrorCode.ENHANCE_YOUR_CALM, ngh2.ErrorCode.CANCEL, ngh2.ErrorCode.NO_ERROR
MAX_HEADER_LIST_SIZE = ngh2.Setting.MAX_HEADER_LIST_SIZE
CHAT = b"/chat.ChatService/Chat"
HEADERS: Headers = [(b":status", b"200"), (b"content-type", b"application/grpc")]
TRAILERS: Headers = [(b"grpc-status", b"0")]
BODY = framed(b"all of it")
LEAST = 146
"""Bytes of the shortest answer: :status, content-type, grpc-status."""


def size_of(headers: Headers) -> int:
    """RFC 9113, 6.5.2."""
    return sum(len(name) + len(value) + 32 for name, value in headers)


def padded(headers: Headers, size: int) -> Headers:
    """`headers` with one more field, so that they have `size` bytes."""
    return [*headers, (b"x-pad", b"p" * (size - size_of(headers) - 32 - len(b"x-pad")))]


def headers_of(server: Server, sid: int, size: int) -> None:
    server.engine.send_response(sid, padded(HEADERS, size))
    server.engine.send_data(sid, BODY)
    server.engine.send_trailers(sid, TRAILERS)


def trailers_of(server: Server, sid: int, size: int) -> None:
    server.engine.send_response(sid, HEADERS)
    server.engine.send_data(sid, BODY)
    server.engine.send_trailers(sid, padded(TRAILERS, size))


def trailers_only_of(server: Server, sid: int, size: int) -> None:
    server.engine.send_response(sid, padded([*HEADERS, *TRAILERS], size), end_stream=True)


KINDS = {"headers": headers_of, "trailers": trailers_of, "trailers-only": trailers_only_of}


class Scene:
    """A client with a limit, and servers that answer as they are told."""

    def __init__(self, limit: int | None, **settings: object) -> None:
        self.world = World(**settings).answering(self._answer).start()
        self.answer: Callable[[Server, int], None] = lambda server, sid: echo(server, sid, server.exchanges[sid])
        self.client: Client = self.world.client({} if limit is None else {MAX_HEADER_LIST_SIZE: limit})

    def _answer(self, server: Peer, sid: int, _exchange: Exchange) -> None:
        assert isinstance(server, Server)
        server.begun.add(sid)
        self.answer(server, sid)

    def call(self, answer: Callable[[Server, int], None] | None = None, **request: object) -> Exchange:
        if answer is not None:
            self.answer = answer
        sid = self.client.request(message("chat-001"), **request)  # type: ignore[arg-type]  # its own
        self.world.run()
        return self.client.exchanges[sid]

    @property
    def refused(self) -> int:
        return self.world.proxy.watch.counters.metadata_for_client


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Callable[[Server, int, int], None]:
    return KINDS[request.param]


def test_a_response_beyond_the_clients_limit_ends_that_call_alone(kind: Callable[[Server, int, int], None]) -> None:
    scene = Scene(2_000)
    going_on = scene.client.request(message("chat-002"), path=CHAT, end=False)
    scene.world.run()
    exchange = scene.call(lambda server, sid: kind(server, sid, 2_001))
    assert exchange.status == RESOURCE_EXHAUSTED
    assert exchange.message == "the response has 2001 bytes of metadata, and the client takes 2000 at most"
    assert exchange.header(b"x-pad") is None
    assert exchange.reset is None
    assert exchange.body == (BODY if kind is trailers_of else b"")
    assert scene.refused == 1
    assert scene.call(lambda server, sid: kind(server, sid, 2_000)).status == OK
    scene.answer = lambda server, sid: server.respond(sid, BODY)
    scene.client.engine.end_stream(going_on)
    scene.world.run()
    assert scene.client.exchanges[going_on].status == OK
    scene.world.assert_clean()


def test_the_server_is_told_if_it_has_more_to_say_or_to_hear(kind: Callable[[Server, int, int], None]) -> None:
    scene = Scene(2_000)
    server = scene.world.at(scene.world.owner("chat-001"))
    sid = scene.client.request(message("chat-001"), path=CHAT, end=False)
    scene.world.run()
    kind(server, 1, 2_001)
    scene.world.run()
    exchange = scene.client.exchanges[sid]
    assert exchange.status == RESOURCE_EXHAUSTED
    assert exchange.reset == NO_ERROR, "the client is to stop"
    assert server.exchanges[1].reset == CANCEL
    scene.world.assert_clean()


@pytest.mark.parametrize("limit", [None, 1 << 24, 2**32 - 1], ids=["none", "grpc-go's", "the most"])
def test_clients_without_a_limit_get_everything(kind: Callable[[Server, int, int], None], limit: int | None) -> None:
    scene = Scene(limit)
    exchange = scene.call(lambda server, sid: kind(server, sid, 60_000))
    assert (exchange.status, scene.refused) == (OK, 0)
    assert exchange.header(b"x-pad") is not None


@given(
    limit=st.integers(200, 700),
    responses=st.lists(
        st.tuples(st.sampled_from(sorted(KINDS)), st.integers(200, 800), st.booleans()), min_size=1, max_size=12
    ),
)
def test_a_response_passes_if_and_only_if_it_is_within_the_limit(
    limit: int, responses: list[tuple[str, int, bool]]
) -> None:
    """Whatever came before on the same connection, the same list included."""
    scene = Scene(limit)
    refused = 0
    for name, size, twice in responses:
        for _ in range(1 + twice):
            exchange = scene.call(lambda server, sid, name=name, size=size: KINDS[name](server, sid, size))
            refused += size > limit
            assert exchange.status == (RESOURCE_EXHAUSTED if size > limit else OK)
            assert size_of(exchange.headers) <= limit
            assert size_of(exchange.trailers) <= limit
    assert scene.refused == refused
    scene.world.assert_clean()


def test_a_client_may_change_its_limit(kind: Callable[[Server, int, int], None]) -> None:
    scene = Scene(2_000)

    def status() -> int | None:
        return scene.call(lambda server, sid: kind(server, sid, 1_500)).status

    assert status() == OK
    scene.client.engine.update_settings({MAX_HEADER_LIST_SIZE: 1_000})
    assert status() == RESOURCE_EXHAUSTED
    scene.client.engine.update_settings({MAX_HEADER_LIST_SIZE: 1 << 20})
    assert status() == OK
    scene.client.engine.update_settings({ngh2.Setting.INITIAL_WINDOW_SIZE: 100_000})
    scene.client.engine.update_settings({MAX_HEADER_LIST_SIZE: 1_000})
    assert status() == RESOURCE_EXHAUSTED


def test_a_status_that_the_proxy_makes_up_counts_too() -> None:
    scene = Scene(200)

    def without_status(server: Server, sid: int) -> None:
        server.engine.send_response(sid, HEADERS)
        server.engine.send_trailers(sid, [(b"x-pad", b"p" * 150)])

    assert scene.call(without_status).status == RESOURCE_EXHAUSTED


def test_the_answer_of_a_server_that_was_left_is_bound_by_the_limit_as_well() -> None:
    idempotent = [{"method": "/a.B/Get", "key": {"field": "1"}, "idempotent": True}]
    scene = Scene(2_000, routes=idempotent)
    unavailable = [*HEADERS, (b"grpc-status", b"14")]
    for size, status in ((2_000, UNAVAILABLE), (2_001, RESOURCE_EXHAUSTED)):
        exchange = scene.call(
            lambda server, sid, size=size: server.engine.send_response(sid, padded(unavailable, size), end_stream=True),
            path=b"/a.B/Get",
        )
        assert exchange.status == status
    assert scene.refused == 1
    scene.world.assert_clean()


# Answers of the proxy's own.


def unreachable(limit: int, **settings: object) -> tuple[World, Exchange]:
    """A call that no server can take."""
    world = World(**settings).start()
    client = world.client({MAX_HEADER_LIST_SIZE: limit})
    sid = client.request(message("chat-001"))
    world.run()
    return world, client.exchanges[sid]


def test_the_proxys_own_answers_are_cut_to_what_the_client_takes() -> None:
    _, whole = unreachable(2_000)
    assert (whole.status, whole.message[:9]) == (UNAVAILABLE, "no server")
    _, short = unreachable(size_of(whole.headers) - 1)
    assert (short.status, short.message) == (UNAVAILABLE, "")
    assert short.headers[:2] == HEADERS
    _, least = unreachable(LEAST + 1)
    assert size_of(least.headers) == LEAST + 1
    assert least.status == UNAVAILABLE


@pytest.mark.parametrize("limit", [0, 100, LEAST])
def test_a_client_that_takes_not_even_a_status_gets_a_code_that_means_the_same(limit: int) -> None:
    """gRPC reads ENHANCE_YOUR_CALM as RESOURCE_EXHAUSTED."""
    world, exchange = unreachable(limit)  # UNAVAILABLE has two digits
    assert (exchange.headers, exchange.reset) == ([], CALM)
    world.assert_clean()


def test_a_status_of_our_own_after_the_response_began_is_cut_too() -> None:
    for limit, expected in ((2_000, (DEADLINE_EXCEEDED, None)), (44, (DEADLINE_EXCEEDED, None)), (43, (None, CALM))):
        scene = Scene(2_000)
        exchange = scene.call(lambda server, sid: server.begin(sid), extra=[(b"grpc-timeout", b"5S")])
        assert exchange.headers
        scene.client.engine.update_settings({MAX_HEADER_LIST_SIZE: limit})
        scene.world.advance(6.0)
        assert (exchange.status, exchange.reset) == expected
        assert size_of(exchange.trailers) <= limit
        scene.world.assert_clean()


@pytest.mark.parametrize(("limit", "reset"), [(102, None), (101, CALM)])
def test_the_health_of_the_proxy_is_told_within_the_limit(limit: int, reset: int | None) -> None:
    scene = Scene(limit)
    check = scene.client.request(framed(b""), path=b"/grpc.health.v1.Health/Check")
    watch = scene.client.request(framed(b""), path=b"/grpc.health.v1.Health/Watch")
    scene.world.run()
    checked, watched = scene.client.exchanges[check], scene.client.exchanges[watch]
    assert (checked.status, checked.reset) == (OK if reset is None else None, reset)
    assert (bool(watched.body), watched.reset) == (reset is None, reset)
    scene.world.proxy.forwarder.own_health.drain()
    scene.world.run()
    assert watched.status == (UNAVAILABLE if reset is None else None)
    scene.world.assert_clean()


@pytest.mark.parametrize("kind", [trailers_of, trailers_only_of])
def test_an_explanation_that_does_not_fit_is_left_out(kind: Callable[[Server, int, int], None]) -> None:
    scene = Scene(300, decisions={"trailers": True})
    asks = [(b"x-districhat-explain", b"1")]
    exchange = scene.call(lambda server, sid: kind(server, sid, 290), extra=asks)
    assert exchange.status == OK
    assert exchange.header(b"x-districhat-endpoint") is None
    assert scene.refused == 0
