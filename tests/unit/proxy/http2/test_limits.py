from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.http2 import Backlog, TokenBucket


class Connection:
    """Holds bytes for as many peers as it has entries."""

    def __init__(self, backlog: Backlog, peers: int = 1) -> None:
        self.backlog = backlog
        self.waiting = 0
        self.peers = [0] * peers
        self.lost = 0

    def hold(self, amount: int, peer: int = 0) -> None:
        self.peers[peer] = amount
        self.backlog.put(self, sum(self.peers))

    def excess(self, limit: int) -> int:
        return max(self.peers) - limit

    def shed(self, amount: int) -> int:
        self.lost += amount
        greedy = self.peers.index(max(self.peers))
        gone = min(amount, self.peers[greedy])
        self.peers[greedy] -= gone
        return gone  # as in life, the engine lets go of the bytes a moment later


def settle(*connections: Connection) -> None:
    for each in connections:
        each.backlog.put(each, sum(each.peers))


def test_a_peer_beyond_its_limit_is_cut_down_to_three_quarters() -> None:
    log: list[str] = []
    backlog = Backlog(100, 1000, lambda limit, _: log.append(limit))
    one = Connection(backlog)
    one.hold(100)
    assert one.lost == 0
    one.hold(120)
    settle(one)
    assert backlog.total == one.waiting == 75
    assert log == ["buffered_per_connection"]


def test_many_modest_peers_of_one_connection_are_left_alone() -> None:
    backlog = Backlog(100, 1000, lambda *_: None)
    shared = Connection(backlog, peers=5)
    for peer in range(5):
        shared.hold(90, peer)
    assert shared.lost == 0
    assert backlog.total == 450


def test_beyond_the_total_the_largest_holder_pays() -> None:
    log: list[str] = []
    backlog = Backlog(400, 1000, lambda limit, _: log.append(limit))
    large, small = Connection(backlog), [Connection(backlog) for _ in range(7)]
    large.hold(400)
    for each in small:
        each.hold(100)
    settle(large, *small)
    assert [each.lost for each in small] == [0] * 7
    assert large.lost > 0
    assert log == ["buffered"]
    assert backlog.total <= 1000


def test_beyond_the_total_nobody_pays_twice_however_many_hold_more_before_the_bytes_are_gone() -> None:
    backlog = Backlog(1000, 1000, lambda *_: None)
    large, small = Connection(backlog), [Connection(backlog) for _ in range(10)]
    large.hold(900)
    for each in small:
        each.hold(30)
    assert large.lost == 4 * 30 + 900 - 750
    settle(large, *small)
    assert backlog.total == 750 + 6 * 30


def test_what_is_gone_counts_no_more() -> None:
    backlog = Backlog(100, 1000, lambda *_: None)
    one = Connection(backlog)
    one.hold(60)
    backlog.put(one, 0)
    assert backlog.total == 0


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 150)), max_size=200))
def test_the_total_is_the_sum_and_stays_within_the_limits(steps: list[tuple[int, int]]) -> None:
    backlog = Backlog(100, 500, lambda *_: None)
    connections = [Connection(backlog) for _ in range(10)]
    for index, amount in steps:
        connections[index].hold(amount)
        settle(*connections)
        settle(*connections)  # a connection that pays for the total may have been settled before
        assert backlog.total == sum(each.waiting for each in connections) <= 500
        assert all(each.waiting <= 100 for each in connections)


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(3, 2.0)
    assert [bucket.take(1000.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(1000.5) for _ in range(2)] == [True, False]
    assert [bucket.take(5000.0) for _ in range(4)] == [True, True, True, False]


@given(st.integers(1, 20), st.floats(0.1, 50.0), st.lists(st.floats(0.0, 2.0), max_size=200))
def test_a_bucket_never_gives_more_than_burst_and_rate_allow(burst: int, rate: float, steps: list[float]) -> None:
    bucket, now, taken = TokenBucket(burst, rate), 0.0, 0
    for step in steps:
        now += step
        taken += bucket.take(now)
        assert taken <= burst + now * rate + 1e-6
