"""The way of one call along the ring, once its first choice could not take it.

Made only then: a call that its owner took, which is nearly every call, never has one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from proxy.cluster.endpoint import Endpoint
from proxy.cluster.snapshot import ClusterSnapshot
from proxy.forwarding.failback import PREVIOUS_OWNER
from proxy.forwarding.headers import PREVIOUS_ATTEMPTS, Headers
from proxy.forwarding.retry import UNPROCESSED, Outcome, RetryClass, classify

if TYPE_CHECKING:
    from proxy.forwarding.forwarder import Forwarder
    from proxy.forwarding.headers import RequestHead

MAX_REASONS = 16
"""Servers that the final message names; a cluster may have a thousand."""


class Walk:
    """Who was tried and why each failed, who comes next, and what it costs to go there."""

    __slots__ = (
        "_candidates",
        "_forwarder",
        "_outcomes",
        "_postponed",
        "_reasons",
        "_repeating",
        "_skipped",
        "_snapshot",
        "_unprocessed",
        "answer",
        "left",
        "refusals",
        "repeats",
        "resubmitted",
    )

    def __init__(self, forwarder: Forwarder, snapshot: ClusterSnapshot, candidates: Iterator[Endpoint]) -> None:
        self._forwarder = forwarder
        self._snapshot = snapshot
        self._candidates = candidates
        self._skipped: list[Endpoint] = []
        """Passed over because they are not available."""
        self._reasons: list[str] = []
        self._unprocessed = 0
        """Servers that left the call unprocessed, at no charge."""
        self._repeating = False
        """Holds a place in the retry budget."""
        self._outcomes: list[Outcome] = []
        """Of those in `left`."""
        self.left: list[Endpoint] = []
        """Servers that were offered the call and did not take it."""
        self.repeats = 0
        """Servers that may have run it."""
        self.resubmitted = False
        """Was given to the same server once more, after its GOAWAY."""
        self.refusals = 0
        """How often it waits again for the same server, because of its stream limit."""
        self._postponed: Endpoint | None = None
        self.answer: Headers | None = None
        """What a server answered before the call was tried again: the client's, if no other server takes the call."""

    def leave(self, endpoint: Endpoint, why: str, outcome: Outcome) -> None:
        """`endpoint` did not take the call: `why`, for people."""
        self.left.append(endpoint)
        self._outcomes.append(outcome)
        self._note(endpoint, why)

    @property
    def outcome(self) -> Outcome | None:
        """How the last attempt failed; None: there was none."""
        return self._outcomes[-1] if self._outcomes else None

    @property
    def was_refused(self) -> bool:
        """Whether a server has answered before that it cannot serve the call."""
        return Outcome.ANSWERED in self._outcomes

    def may_move(self, outcome: Outcome, head: RequestHead, endpoint: Endpoint, *, blame: bool = True) -> bool:
        """Whether the call may go on to another server after `outcome` on `endpoint`; takes from the budget if that
        costs. Not `blame`: the failure has been counted already, with another call that it met.
        """
        retry_class = classify(outcome, self._unprocessed)
        if retry_class is RetryClass.NEVER:
            return False
        if retry_class is RetryClass.TRANSPARENT:
            self._unprocessed += outcome in UNPROCESSED
            return True
        permitted = retry_class is RetryClass.PERMITTED
        gone = not endpoint.available
        if permitted and not self._is_permitted(head, blame=blame and not gone):
            return False
        budget = self._forwarder.budget
        if gone:
            allowed = True  # nobody sends it anything now: its calls come over once, and no more follow
        elif outcome is Outcome.LOST:
            allowed = not budget.exhausted
        else:
            allowed = self._repeating = self._repeating or budget.take(self._forwarder.active)
        self.repeats += permitted and allowed
        return allowed

    def _is_permitted(self, head: RequestHead, *, blame: bool) -> bool:
        if not head.route.repeatable:
            return False
        if blame:
            self._forwarder.budget.failed()
        return head.previous_attempts + self.repeats < self._forwarder.max_attempts

    def put_back(self, endpoint: Endpoint | None) -> None:
        """`endpoint`, which `next` gave, was not made use of: it comes next again."""
        self._postponed = endpoint

    def next(self, avoid: Endpoint | None = None) -> Endpoint | None:
        """The next server that is available and was not offered the call; None: there is none, or it had its tries.

        `avoid`: the one that has the call now.
        """
        if len(self.left) >= self._forwarder.max_attempts:
            return None
        postponed, self._postponed = self._postponed, None
        if postponed is not None and postponed.available:
            return postponed
        for endpoint in self._candidates:
            if endpoint in self.left or endpoint is avoid:
                continue
            if endpoint.available:
                return endpoint
            self._skipped.append(endpoint)
            self._note(endpoint, endpoint.reason)
        return self._in_panic()

    def _in_panic(self) -> Endpoint | None:
        """When nobody is available, one that is only said to be sick is better than none."""
        if self._forwarder.retry.panic == "try_all" and not any(each.available for each in self._snapshot):
            for endpoint in self._skipped:
                if endpoint.may_be_tried and endpoint not in self.left:
                    return endpoint
        return None

    def with_history(self, headers: Headers, head: RequestHead, key: bytes, endpoint: Endpoint | None) -> Headers:
        """The request's `headers`, and what `endpoint` is told that is not the call's first choice, or gets a chat that
        another one had.
        """
        if self.repeats:
            attempts = b"%d" % (head.previous_attempts + self.repeats)
            headers = (*(each for each in headers if each[0] != PREVIOUS_ATTEMPTS), (PREVIOUS_ATTEMPTS, attempts))
        if key and endpoint is not None:
            forwarder = self._forwarder
            owner = self._snapshot.owner(key)
            if before := forwarder.displaced.moved_from(key, owner, endpoint, forwarder.now()):
                headers = (*headers, (PREVIOUS_OWNER, before.encode()))
        return headers

    def arrived(self, endpoint: Endpoint | None, key: bytes) -> None:
        """`endpoint`, which the walk came to, answers: the chat of `key` may stay with it."""
        if endpoint is None:
            return
        forwarder = self._forwarder
        stats = forwarder.stats
        if self.outcome is not None:
            stats.failovers += 1
        if not key:
            return
        owner = self._snapshot.owner(key)
        if owner is endpoint:
            forwarder.displaced.came_home(key)
            return
        reason = self._why_left(owner)
        stats.off_owner[reason] += 1
        if forwarder.displaced.served(key, endpoint, forwarder.now()):
            stats.chats_moved[reason] += 1

    def _why_left(self, owner: Endpoint) -> str:
        """What keeps the call from the owner of its key, in one word for statistics."""
        if owner in self.left:
            return self._outcomes[self.left.index(owner)].name.lower()
        return next((cause.value for cause in owner.blocks), "passed")

    def story(self) -> str:
        """Which servers were tried or passed over, and why each."""
        more = len(self._reasons) - MAX_REASONS
        return "; ".join(self._reasons[:MAX_REASONS]) + (f"; and {more} more" if more > 0 else "")

    def end(self) -> None:
        """The call is over."""
        if self._repeating:
            self._repeating = False
            self._forwarder.budget.give_back()

    def _note(self, endpoint: Endpoint, why: str) -> None:
        self._reasons.append(f"{endpoint.id}: {why}")
