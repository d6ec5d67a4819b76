from __future__ import annotations

import pytest

from proxy.forwarding.headers import MAX_MEMO, RequestHeads
from proxy.forwarding.routes import RouteTable
from proxy.forwarding.stats import Stats
from proxy.http2 import PassClock

BASE = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/a.B/C"),
    (b":authority", b"t"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
)


@pytest.fixture
def heads() -> RequestHeads:
    stats = Stats(PassClock(None))
    return RequestHeads(RouteTable([]), stats, own_health=True, max_size=16_384, max_count=100)


def test_a_good_list_is_passed_on_as_it_is(heads: RequestHeads) -> None:
    head = heads.find(BASE)
    assert head.headers == BASE
    assert not head.rejection


def test_a_list_is_read_once_and_remembered(heads: RequestHeads) -> None:
    assert heads.memo.get(BASE) is None
    head = heads.find(BASE)
    assert heads.memo.get(tuple(BASE)) is head
    assert heads.find(BASE) is head


def test_the_memo_is_bounded_in_lists_and_in_bytes(heads: RequestHeads) -> None:
    for number in range(MAX_MEMO):
        heads.find((*BASE, (b"x-request", b"%d" % number)))
    assert len(heads.memo) == MAX_MEMO
    heads.find((*BASE, (b"x-request", b"one more")))
    assert len(heads.memo) == 1
    long = (*BASE, (b"x-long", b"x" * 5000))
    heads.find(long)
    assert heads.memo.get(long) is None


def test_the_first_of_several_metadata_keys_counts(heads: RequestHeads) -> None:
    assert heads.find((*BASE, (b"x-chat-id", b"one"), (b"x-chat-id", b"two"))).key == b"one"


@pytest.mark.parametrize("path", [b"a.B/C", b"*", b"http://x/a.B/C"])
def test_a_path_without_its_slash_is_refused(heads: RequestHeads, path: bytes) -> None:
    """grpc-go CVE-2026-33186."""
    head = heads.find(tuple((name, path if name == b":path" else value) for name, value in BASE))
    assert dict(head.rejection)[b"grpc-status"] == b"12"
