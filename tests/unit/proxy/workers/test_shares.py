from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.workers.shares import share


@given(st.integers(1, 1000), st.lists(st.integers(0, 300), min_size=1, max_size=8))
def test_all_together_get_the_limit_rounded_up_by_less_than_one_a_worker(limit: int, calls: list[int]) -> None:
    total = sum(calls)
    shares = [share(limit, here, total - here, len(calls)) for here in calls]
    if total >= limit:
        assert shares == calls, "nobody may begin another"
    else:
        assert limit <= sum(shares) < limit + len(calls)
        assert all(given > here for given, here in zip(shares, calls, strict=True)), "somebody may not begin one"


def test_one_worker_has_all_of_it() -> None:
    assert share(100, 30, 0, 1) == 100
