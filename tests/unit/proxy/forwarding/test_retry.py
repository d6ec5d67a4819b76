from __future__ import annotations

import pytest

from proxy.forwarding.retry import Outcome, may_move

CANNOT_HAVE_RUN = {Outcome.CONNECT_FAILED, Outcome.NOT_SENT, Outcome.REFUSED, Outcome.UNPROCESSED}


@pytest.mark.parametrize("outcome", Outcome)
def test_a_call_moves_only_if_it_cannot_have_run_and_can_be_sent_again(outcome: Outcome) -> None:
    assert may_move(outcome, replayable=True) is (outcome in CANNOT_HAVE_RUN)
    assert not may_move(outcome, replayable=False)
