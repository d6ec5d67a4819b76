"""From what clients saw, servers wrote down and scenarios did, to the numbers of one run. Pure.

Words: a chat's *home* is the server that answered it last before the first fault. A server is *well* except between
a fault's beginning and `SLACK` seconds after it is back. A chat *moved needlessly* when an answer came from another
server than the one before although that one was well, unless the chat went home. A chat is *affected* by a fault of
its home.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from bench.faults.outcome import OK, STREAM_PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bench.faults.ledger import Execution
    from bench.faults.outcome import Kind, Outcome
    from bench.faults.scenarios import Fault

KINDS: tuple[Kind, ...] = ("plain", "repeatable", "stream")
UNARY: tuple[Kind, ...] = ("plain", "repeatable")
SLACK = 1.0


@dataclass(frozen=True)
class KindNumbers:
    """One kind of calls."""

    calls: int
    failed: int
    statuses: dict[str, int]
    """Of the failed ones."""
    bystanders: int
    """Failed calls of chats whose home was well all the time."""
    ran_twice: int
    """Calls that began to run more than once. Harmless for the repeatable kind, and for no other."""
    ran_but_failed: int
    """Calls that failed although a server finished them."""
    lost: int
    """Calls with status OK that no server finished: must be 0, or the ledger is wrong."""
    first_answer: float | None
    """Seconds from the fault to the first answer to a call of an affected chat that began after it; None: there was
    none. The worst of several faults. Only unary."""
    failing_for: float
    """Seconds from the fault to the beginning of the last failed call of an affected chat. The worst of several."""
    slowest: float
    """Seconds that the slowest successful call took."""


@dataclass(frozen=True)
class Chats:
    """Where the chats were."""

    count: int
    displaced: int
    """Chats with an answer from elsewhere than home, while or after home was away."""
    moved_needlessly: int
    away_at_end: int
    """Chats whose last answer was not from home."""
    home_after: float | None
    """Seconds from a server's return until the last of its chats to come home was answered there. None: none came."""


@dataclass(frozen=True)
class Rates:
    """Successful unary calls per second."""

    before: float
    during: float
    """From the beginning of the first fault to the end of the last."""
    after: float


@dataclass(frozen=True)
class Numbers:
    """All of one run."""

    kinds: dict[str, KindNumbers]
    chats: Chats
    rates: Rates
    skipped: int
    """Calls not made because too many were in flight."""


def analyse(
    outcomes: Sequence[Outcome],
    ledger: Mapping[str, Sequence[Execution]],
    faults: Sequence[Fault],
    span: tuple[float, float],
    skipped: int = 0,
) -> Numbers:
    """The numbers of a run. `span`: when the load began and ended; `faults`: at least one, in order."""
    outcomes = sorted(outcomes, key=lambda outcome: outcome.started)
    homes = _homes(outcomes, faults[0].began)
    kinds: dict[str, KindNumbers] = {
        kind: _kind([outcome for outcome in outcomes if outcome.kind == kind], ledger, faults, homes) for kind in KINDS
    }
    answers = [outcome for outcome in outcomes if outcome.status == OK and outcome.kind in UNARY]
    return Numbers(kinds, _chats(answers, faults, homes), _rates(answers, faults, span), skipped)


def well(server: str, since: float, until: float, faults: Iterable[Fault]) -> bool:
    """Whether a server was well from `since` to `until`."""
    return not any(fault.server == server and fault.began <= until and since <= fault.back + SLACK for fault in faults)


def longest_run(ledger: Mapping[str, Sequence[Execution]], faults: Sequence[Fault], since: float) -> float:
    """Seconds that a unary call took a server which was well: far above 20 ms, the machine had no time for it.

    Only of executions that began at `since` or later. No proxy has a part in it. 0 if there were none.
    """
    return max(
        (
            run.finished - run.started
            for call, runs in ledger.items()
            if not call.startswith(STREAM_PREFIX)
            for run in runs
            if run.finished is not None and run.started >= since and well(run.server, run.started, run.finished, faults)
        ),
        default=0.0,
    )


def _homes(outcomes: Sequence[Outcome], until: float) -> dict[str, str]:
    return {outcome.chat: outcome.server for outcome in outcomes if outcome.status == OK and outcome.ended < until}


def _kind(
    outcomes: Sequence[Outcome],
    ledger: Mapping[str, Sequence[Execution]],
    faults: Sequence[Fault],
    homes: Mapping[str, str],
) -> KindNumbers:
    failed = [outcome for outcome in outcomes if outcome.status != OK]
    good = [outcome for outcome in outcomes if outcome.status == OK]
    finished = {call for call, runs in ledger.items() if any(run.finished is not None for run in runs)}
    first_answers = [_first_answer(good, fault, end, homes) for fault, end in _windows(faults)]
    answered = [time for time in first_answers if time is not None]
    return KindNumbers(
        calls=len(outcomes),
        failed=len(failed),
        statuses=dict(Counter(outcome.status for outcome in failed).most_common()),
        bystanders=sum(well(homes.get(outcome.chat, ""), outcome.started, outcome.ended, faults) for outcome in failed),
        ran_twice=sum(len(ledger.get(outcome.call, ())) > 1 for outcome in outcomes),
        ran_but_failed=sum(outcome.call in finished for outcome in failed),
        lost=sum(outcome.call not in finished for outcome in good),
        first_answer=max(answered) if len(answered) == len(faults) else None,
        failing_for=max(_failing_for(failed, fault, end, homes) for fault, end in _windows(faults)),
        slowest=max((outcome.ended - outcome.started for outcome in good), default=0.0),
    )


def _windows(faults: Sequence[Fault]) -> list[tuple[Fault, float]]:
    """Each fault with the time from which on failures are the next one's."""
    ends = [following.began for _, following in pairwise(faults)]
    return list(zip(faults, [*ends, float("inf")], strict=True))


def _affected(outcomes: Sequence[Outcome], fault: Fault, end: float, homes: Mapping[str, str]) -> Iterable[Outcome]:
    return (
        outcome
        for outcome in outcomes
        if fault.began <= outcome.started < end and homes.get(outcome.chat) == fault.server
    )


def _first_answer(good: Sequence[Outcome], fault: Fault, end: float, homes: Mapping[str, str]) -> float | None:
    ends = [outcome.ended for outcome in _affected(good, fault, end, homes)]
    return min(ends) - fault.began if ends else None


def _failing_for(failed: Sequence[Outcome], fault: Fault, end: float, homes: Mapping[str, str]) -> float:
    return max((outcome.started - fault.began for outcome in _affected(failed, fault, end, homes)), default=0.0)


def _chats(answers: Sequence[Outcome], faults: Sequence[Fault], homes: Mapping[str, str]) -> Chats:
    by_chat: dict[str, list[Outcome]] = {chat: [] for chat in homes}
    for answer in answers:
        by_chat.setdefault(answer.chat, []).append(answer)
    last = {chat: one[-1].server for chat, one in by_chat.items() if one}
    displaced = {
        answer.chat for answer in answers if answer.server != homes.get(answer.chat) and answer.ended >= faults[0].began
    }
    return Chats(
        count=len(by_chat),
        displaced=len(displaced),
        moved_needlessly=sum(_moved_needlessly(one, homes.get(chat), faults) for chat, one in by_chat.items()),
        away_at_end=sum(server != homes.get(chat) for chat, server in last.items()),
        home_after=_home_after({chat: by_chat[chat] for chat in displaced}, faults, homes),
    )


def _moved_needlessly(answers: Sequence[Outcome], home: str | None, faults: Sequence[Fault]) -> bool:
    return any(
        now.server not in (before.server, home) and well(before.server, now.started, now.ended, faults)
        for before, now in pairwise(answers)
    )


def _home_after(
    displaced: Mapping[str, Sequence[Outcome]], faults: Sequence[Fault], homes: Mapping[str, str]
) -> float | None:
    times = []
    for fault in faults:
        for chat, answers in displaced.items():
            if homes.get(chat) == fault.server:
                home = (one.ended for one in answers if one.started >= fault.back and one.server == fault.server)
                times += [time - fault.back for time in [next(home, None)] if time is not None]
    return max(times, default=None)


def _rates(answers: Sequence[Outcome], faults: Sequence[Fault], span: tuple[float, float]) -> Rates:
    def rate(since: float, until: float) -> float:
        return sum(since <= answer.started < until for answer in answers) / (until - since)

    began, back = faults[0].began, max(fault.back for fault in faults)
    return Rates(rate(span[0], began), rate(began, back), rate(back, span[1]))
