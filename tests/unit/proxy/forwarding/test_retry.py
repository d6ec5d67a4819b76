from __future__ import annotations

import pytest

from proxy.forwarding.retry import Outcome, RetryBudget, RetryClass, classify
from proxy.forwarding.settings import RetrySettings

TABLE = {
    Outcome.CONNECT_FAILED: (RetryClass.TRANSPARENT, RetryClass.TRANSPARENT),
    Outcome.NOT_SENT: (RetryClass.TRANSPARENT, RetryClass.TRANSPARENT),
    Outcome.REFUSED: (RetryClass.TRANSPARENT, RetryClass.COUNTED),
    Outcome.UNPROCESSED: (RetryClass.TRANSPARENT, RetryClass.COUNTED),
    Outcome.LOST: (RetryClass.PERMITTED, RetryClass.PERMITTED),
    Outcome.RESET: (RetryClass.PERMITTED, RetryClass.PERMITTED),
    Outcome.ANSWERED: (RetryClass.PERMITTED, RetryClass.PERMITTED),
    Outcome.TIMED_OUT: (RetryClass.PERMITTED, RetryClass.PERMITTED),
    Outcome.UNSUITABLE: (RetryClass.NEVER, RetryClass.NEVER),
    Outcome.OVERLOADED: (RetryClass.NEVER, RetryClass.NEVER),
}


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_has_its_class_the_first_time_and_after(outcome: Outcome) -> None:
    assert (classify(outcome, 0), classify(outcome, 1)) == TABLE[outcome]


def test_the_budget_allows_a_share_of_the_calls_under_way_and_always_a_few() -> None:
    budget = RetryBudget(RetrySettings(budget_percent=20, min_budget=3))
    assert [budget.take(0) for _ in range(4)] == [True, True, True, False]
    assert [budget.take(25) for _ in range(3)] == [True, True, False]
    budget.give_back()
    assert budget.take(25)
    assert not budget.take(25)


def test_below_half_of_its_tokens_nothing_is_repeated_until_enough_calls_succeed() -> None:
    budget = RetryBudget(RetrySettings(tokens=10, token_ratio=0.1))
    for _ in range(4):
        budget.failed()
    assert budget.take(0)
    budget.failed()
    assert not budget.take(0)
    for _ in range(11):
        budget.succeeded()
    assert budget.take(0)


def test_tokens_stay_within_the_bucket() -> None:
    budget = RetryBudget(RetrySettings(tokens=2))
    for _ in range(10):
        budget.failed()
    assert budget.tokens == 0
    for _ in range(100):
        budget.succeeded()
    assert budget.tokens == 2
