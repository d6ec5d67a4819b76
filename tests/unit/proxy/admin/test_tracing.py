"""Spans, as a collector gets them: a stub of OTLP's service on a real gRPC server."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from proxy.forwarding.headers import is_recorded
from tests.support.messages import message
from tests.support.world import World

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{PARENT}-01".encode()


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.service = ""
        self.spans: list[Span] = []

    def Export(self, request, context):  # noqa: N802 - the service's name for it
        for resource in request.resource_spans:
            [self.service] = [
                each.value.string_value for each in resource.resource.attributes if each.key == "service.name"
            ]
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield collector
    server.stop(None).wait()


def traced(collector: Collector, **settings: object) -> World:
    return World(tracing={"endpoint": collector.address, **settings}).echoing().start()


def attributes(of) -> dict[str, object]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in of.attributes}


def test_a_call_of_a_sampled_trace_is_a_span_below_the_clients(collector):
    world = traced(collector, service_name="chat-proxy")
    world.client().request(message("chat-001"), extra=[(b"traceparent", SAMPLED)])
    world.advance(0.0)
    world.proxy.close()
    [span] = collector.spans
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert (span.name, collector.service) == ("chat.ChatService/PostMessage", "chat-proxy")
    owner = world.owner("chat-001")
    assert attributes(span) == {
        "rpc.system": "grpc",
        "rpc.service": "chat.ChatService",
        "rpc.method": "PostMessage",
        "rpc.grpc.status_code": 0,
        "districhat.route": "/chat.ChatService/PostMessage",
        "districhat.owner": owner,
        "districhat.endpoint": owner,
    }
    assert [attributes(event) for event in span.events] == [{"endpoint": owner, "outcome": "answered"}]


def test_the_traceparent_reaches_the_server_untouched(collector):
    world = traced(collector)
    world.client().request(message("chat-001"), extra=[(b"traceparent", SAMPLED), (b"tracestate", b"a=b")])
    world.run()
    seen = world.at(world.owner("chat-001")).last
    assert (seen.header(b"traceparent"), seen.header(b"tracestate")) == (SAMPLED, b"a=b")
    world.proxy.close()


def test_attempts_are_events_and_their_times_are_those_of_the_call(collector):
    world = traced(collector)
    home, other, _ = world.order("chat-001")
    server = world.at(home)
    server.on_request = None
    world.client().request(message("chat-001"), extra=[(b"traceparent", SAMPLED)])
    world.advance(0.25)
    server.engine.reset_stream(1, 2)
    world.run()
    world.proxy.close()
    [span] = collector.spans
    assert [attributes(event) for event in span.events] == [
        {"endpoint": home, "outcome": "reset"},
        {"endpoint": other, "outcome": "answered"},
    ]
    assert span.end_time_unix_nano - span.start_time_unix_nano == 250_000_000
    assert span.events[1].time_unix_nano - span.events[0].time_unix_nano == 250_000_000


def test_a_failure_of_the_servers_side_is_an_error_and_the_clients_own_is_not(collector):
    world = traced(collector)
    server = world.at(world.owner("chat-001"))
    caller = world.client()
    for status in (13, 5):
        server.on_request = lambda peer, sid, _, status=status: peer.respond(sid, status=status)
        caller.request(message("chat-001"), extra=[(b"traceparent", SAMPLED)])
        world.run()
    world.proxy.close()
    assert [span.status.code for span in collector.spans] == [Status.STATUS_CODE_ERROR, Status.STATUS_CODE_UNSET]


def test_without_a_trace_of_its_own_one_call_in_so_many_begins_one(collector):
    world = traced(collector, sample=4)
    caller = world.client()
    for _ in range(12):
        caller.request(message("chat-001"))
        world.run()
    world.proxy.close()
    assert len(collector.spans) == 3
    assert {span.parent_span_id for span in collector.spans} == {b""}


@pytest.mark.parametrize("watched", [{}, {"sample": 1, "chat_ids": "plain"}])
def test_a_trace_that_its_client_does_not_record_is_not_recorded_here(collector, watched):
    world = World(tracing={"endpoint": collector.address, "sample": 1}, decisions=watched).echoing().start()
    caller = world.client()
    for value in (f"00-{TRACE}-{PARENT}-00".encode(), b"nonsense"):
        caller.request(message("chat-001"), extra=[(b"traceparent", value)])
        world.run()
    world.proxy.close()
    assert collector.spans == []


@pytest.mark.parametrize(
    ("value", "recorded"),
    [
        (SAMPLED, True),
        (SAMPLED[:-1] + b"3", True),
        (SAMPLED[:-1] + b"2", False),
        (b"", False),
        (b"00-a-b", False),
        (b"00-a-b-", False),
    ],
)
def test_the_lowest_bit_of_the_flags_decides(value, recorded):
    assert is_recorded(value) is recorded


def test_a_call_that_asks_for_an_explanation_begins_no_trace(collector):
    world = traced(collector)
    world.client().request(message("chat-001"), extra=[(b"x-districhat-explain", b"1")])
    world.run()
    world.proxy.close()
    assert collector.spans == []
