"""Flow control across the two connections, against a byte-exact reference: whatever the windows, stalls and cuts, no
byte is lost, reordered or stuck, and the proxy never holds more of a call than the windows it granted.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import ngh2
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.messages import message
from tests.support.peers import Client, Server
from tests.support.world import World

CHAT = b"/chat.ChatService/Chat"
INITIAL_WINDOW = ngh2.Setting.INITIAL_WINDOW_SIZE
MOST = 1 << 20

windows = st.one_of(st.integers(1, 40), st.integers(1, 70_000), st.integers(1, MOST))
amounts = st.one_of(st.integers(1, 50), st.integers(1, 200_000))


@dataclass
class Stream:
    """One bidirectional call: what was said on either side."""

    number: int
    sid: int
    said: bytes
    answered: bytes = b""
    server: Server | None = None
    server_sid: int = 0
    half_closed: bool = False
    finished: bool = False
    cancelled: bool = False


class Field:
    """A world with one client, and its streams."""

    def __init__(self, client: int, server: int, listener: int, upstream: int, cut: int) -> None:
        self.listener, self.upstream = listener, upstream
        self.small = min(client, server, listener, upstream)
        """Windows of a few bytes make a frame of each: what is sent is kept in proportion."""
        self.world = World(
            cut=lambda data: (data[at : at + cut] for at in range(0, len(data), cut)),
            listener={"stream_window": listener},
            upstream={"stream_window": upstream},
        )
        for name in "ABC":
            self.world.server(name, {INITIAL_WINDOW: server}).hold = True
        self.world.start()
        self.client: Client = self.world.client({INITIAL_WINDOW: client})
        self.client.hold = True
        self.streams: list[Stream] = []
        self.world.run()

    def payload(self, amount: int) -> bytes:
        seed = len(self.streams) * 7919 + amount
        return random.Random(seed).randbytes(min(amount, self.small * 20))

    def open(self) -> Stream:
        number = len(self.streams)
        first = message(f"c{number}", "x")
        sid = self.client.request(first, path=CHAT, end=False, extra=[(b"x-call", b"%d" % number)])
        stream = Stream(number, sid, first)
        self.streams.append(stream)
        return stream

    def meet(self) -> None:
        """Find out where the calls have arrived."""
        known = {(id(each.server), each.server_sid) for each in self.streams}
        for name in "ABC":
            for server in self.world.at(name).connections:
                for sid, exchange in server.exchanges.items():
                    if (id(server), sid) not in known and exchange.headers and not exchange.closed:
                        stream = self.streams[int(exchange.header(b"x-call") or b"")]
                        stream.server, stream.server_sid = server, sid
                        server.begin(sid)

    def say(self, stream: Stream, amount: int) -> None:
        data = self.payload(amount)
        stream.said += data
        self.client.engine.send_data(stream.sid, data)

    def answer(self, stream: Stream, amount: int) -> None:
        assert stream.server is not None
        data = self.payload(amount)
        stream.answered += data
        stream.server.engine.send_data(stream.server_sid, data)

    def half_close(self, stream: Stream) -> None:
        stream.half_closed = True
        self.client.engine.end_stream(stream.sid)

    def finish(self, stream: Stream) -> None:
        assert stream.server is not None
        stream.finished = True
        stream.server.finish(stream.server_sid, status=5)

    def take(self, stream: Stream) -> None:
        """Both sides take all that has arrived."""
        self.client.take(stream.sid)
        if stream.server is not None and not stream.server.exchanges[stream.server_sid].closed:
            stream.server.take(stream.server_sid)

    def check_order(self) -> None:
        for stream in self.streams:
            assert stream.answered.startswith(self.client.exchanges[stream.sid].body)
            if stream.server is not None:
                assert stream.said.startswith(stream.server.exchanges[stream.server_sid].body)

    def check_held(self) -> None:
        for down in self.world.proxy.listener.connections:
            for call in down.calls.values():
                assert down.engine.queued_body_size(call.sid) <= self.upstream
        for pool in self.world.proxy.pools.values():
            for up in pool.connections:
                for call in up.calls.values():
                    # The first message's bytes count as taken while its key is looked for.
                    assert up.engine.queued_body_size(call.up_sid) <= self.listener + len(message("c999", "x"))

    def let_all_end(self) -> None:
        """Everybody takes everything and says the last word: every byte must arrive."""
        for transport in self.world._transports:
            if transport.stalled:
                transport.resume()
        for _ in range(100_000):
            before = self.progress()
            self.world.run()
            self.meet()
            for stream in self.streams:
                if not stream.cancelled:
                    self.bring_to_its_end(stream)
            self.world.run()
            if self.progress() == before:
                break
        for stream in self.streams:
            if not stream.cancelled:
                self.check_end(stream)
        self.world.assert_clean()

    def bring_to_its_end(self, stream: Stream) -> None:
        self.take(stream)
        if not stream.half_closed:
            self.half_close(stream)
        if self.has_arrived(stream) and not stream.finished:
            self.finish(stream)

    def has_arrived(self, stream: Stream) -> bool:
        """The whole request: a server that finishes earlier wants no more of it."""
        return stream.server is not None and stream.server.exchanges[stream.server_sid].ended

    def check_end(self, stream: Stream) -> None:
        seen = self.client.exchanges[stream.sid]
        assert seen.body == stream.answered, f"{len(seen.body)} of {len(stream.answered)} bytes of an answer"
        assert seen.status == 5
        assert stream.server is not None
        arrived = stream.server.exchanges[stream.server_sid]
        assert arrived.body == stream.said, f"{len(arrived.body)} of {len(stream.said)} bytes of a request"
        assert arrived.ended

    def progress(self) -> tuple[int, ...]:
        """Changes while anything moves."""
        servers = [server for name in "ABC" for server in self.world.at(name).connections]
        return (
            sum(len(exchange.body) + exchange.closed for exchange in self.client.exchanges.values()),
            sum(len(exchange.body) + exchange.ended for each in servers for exchange in each.exchanges.values()),
            sum(stream.finished + stream.half_closed for stream in self.streams),
        )


class FlowControl(RuleBasedStateMachine):
    """Random words, stalls and ends on up to a dozen streams."""

    @initialize(client=windows, server=windows, listener=windows, upstream=windows, cut=st.integers(1, 20_000))
    def set_up(self, client: int, server: int, listener: int, upstream: int, cut: int) -> None:
        self.field = Field(client, server, listener, upstream, cut)

    def pick(self, index: int, *, answered: bool = False) -> Stream | None:
        self.field.meet()
        able = [
            each
            for each in self.field.streams
            if not each.cancelled
            and (each.server is not None and not each.finished if answered else not (each.half_closed or each.finished))
        ]
        return able[index % len(able)] if able else None

    @precondition(lambda self: len(self.field.streams) < 12)
    @rule()
    def a_call_begins(self) -> None:
        self.field.open()

    @rule(index=st.integers(0, 11), amount=amounts)
    def the_client_speaks(self, index: int, amount: int) -> None:
        if (stream := self.pick(index)) is not None:
            self.field.say(stream, amount)

    @rule(index=st.integers(0, 11), amount=amounts)
    def the_server_speaks(self, index: int, amount: int) -> None:
        if (stream := self.pick(index, answered=True)) is not None:
            self.field.answer(stream, amount)

    @rule(index=st.integers(0, 11))
    def both_take_what_has_come(self, index: int) -> None:
        if (stream := self.pick(index)) is not None:
            self.field.take(stream)

    @rule(index=st.integers(0, 11))
    def the_client_half_closes(self, index: int) -> None:
        if (stream := self.pick(index)) is not None:
            self.field.half_close(stream)

    @rule(index=st.integers(0, 11))
    def the_server_finishes_a_call_whose_request_is_there(self, index: int) -> None:
        stream = self.pick(index, answered=True)
        if stream is not None and self.field.has_arrived(stream):
            self.field.finish(stream)

    @rule(index=st.integers(0, 11))
    def the_client_cancels(self, index: int) -> None:
        if (stream := self.pick(index)) is not None:
            stream.cancelled = True
            self.field.client.engine.reset_stream(stream.sid)

    @rule(index=st.integers(0, 30), stall=st.booleans())
    def a_transport_stalls_or_goes_on(self, index: int, stall: bool) -> None:
        transports = [each for each in self.field.world._transports if not each.lost]
        transport = transports[index % len(transports)]
        if stall and not transport.stalled:
            transport.stall()
        elif not stall and transport.stalled:
            transport.resume()

    @rule()
    def what_can_happen_happens(self) -> None:
        self.field.world.run()

    @invariant()
    def nothing_is_reordered(self) -> None:
        if hasattr(self, "field"):
            self.field.check_order()
            self.field.check_held()

    def teardown(self) -> None:
        if hasattr(self, "field"):
            self.field.let_all_end()


FlowControl.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestFlowControl = FlowControl.TestCase


@pytest.mark.parametrize("seed", range(3))
def test_a_thousand_streams_with_random_words_and_stalls_all_arrive_whole(seed: int) -> None:
    chance = random.Random(seed)
    field = Field(*(chance.choice((100, 5_000, 65_535, MOST)) for _ in range(4)), chance.randint(100, 20_000))
    streams = [field.open() for _ in range(990)]
    field.world.run()
    field.meet()
    for _ in range(4):
        for stream in chance.sample(streams, 300):
            field.say(stream, chance.randint(1, 3_000))
            if stream.server is not None:
                field.answer(stream, chance.randint(1, 3_000))
        for transport in field.world._transports:
            if transport.stalled:
                transport.resume()
            elif chance.random() < 0.3:
                transport.stall()
        field.world.run()
        field.meet()
        for stream in chance.sample(streams, 500):
            field.take(stream)
        field.check_order()
        field.check_held()
    field.let_all_end()
