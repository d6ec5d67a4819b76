from __future__ import annotations

import pytest

from bench.backends import framed, reply
from bench.errors import BenchError
from bench.load.h2load import Counts, Part, split
from bench.load.result import Shape
from bench.probe import request

REPORT = """\
finished in 1.55ms, 645.16 req/s, 168.22KB/s
requests: 10 total, 10 started, 10 done, {succeeded} succeeded, 0 failed, 0 errored, 0 timeout
status codes: {status_2xx} 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 2.6KB (2670) total, 99B (99) headers (space savings 42.77%), 1.0KB ({data}) data
"""


def counts(*, succeeded: int = 10, status_2xx: int = 10, data: int = 1050) -> Counts:
    return Counts.parse(REPORT.format(succeeded=succeeded, status_2xx=status_2xx, data=data))


def test_shape_reads_what_it_prints():
    assert Shape.parse("8x32") == Shape(8, 32)
    assert str(Shape.parse("64x1")) == "64x1"


@pytest.mark.parametrize("text", ["", "8", "x", "8x", "x32", "8x0", "2x1", "-8x1", "8X32", "8x32x1", " 8x32"])
def test_shape_refuses_anything_else_and_names_it(text):
    with pytest.raises(ValueError, match=repr(text)):
        Shape.parse(text)


def test_split_shares_connections_and_calls_in_proportion():
    assert split(Shape(8, 32), 8000, ["a", "b", "c"]) == [Part("a", 3, 3000), Part("b", 3, 3000), Part("c", 2, 2000)]


@pytest.mark.parametrize("calls", [1, 7, 64, 65, 1000, 99_999])
def test_split_loses_nothing_and_leaves_no_connection_idle(calls):
    parts = split(Shape(64, 1), calls, ["a", "b", "c"])
    assert sum(part.connections for part in parts) == 64
    assert sum(part.calls for part in parts) == max(calls, 64)
    assert all(part.calls >= part.connections for part in parts)


def test_a_complete_run_has_no_failures():
    assert counts().failed(10, 105) == 0


def test_a_missing_status_is_a_failure():
    assert counts(status_2xx=8).failed(10, 105) == 2


def test_a_broken_stream_is_a_failure():
    assert counts(succeeded=7).failed(10, 105) == 3


def test_a_grpc_error_is_a_failure_although_its_status_is_200():
    assert counts(data=9 * 105).failed(10, 105) == 1


def test_a_longer_error_message_does_not_hide_a_failure():
    assert counts(succeeded=9, data=20 * 105).failed(10, 105) == 1


@pytest.mark.parametrize("report", ["", "h2load: cannot connect", "requests: 10 total"])
def test_no_report_is_an_error(report):
    with pytest.raises(BenchError, match="no report"):
        Counts.parse(report)


def test_framing_is_flag_length_message():
    assert framed(b"abc") == b"\0\0\0\0\3abc"


def test_sizes_are_those_of_the_published_figures():
    assert 100 <= len(framed(request("chat-000"))) <= 130
    assert 90 <= len(reply("bench-1")) <= 120
    assert len(reply("bench-1")) == len(reply("bench-3"))


def test_the_chat_id_stands_where_the_pass_through_looks_for_it():
    message = request("chat-007")
    assert message[2 : 2 + message[1]] == b"chat-007"
