"""May a call be tried on another server after its attempt failed?

The question behind it: can the call have run? The classes are those of gRFC A6 ("transparent retries") and RFC 9113.

| outcome | basis | class |
|---|---|---|
| CONNECT_FAILED | never left the proxy | T |
| NOT_SENT | not one byte of the stream was written | T |
| REFUSED | RST_STREAM(REFUSED_STREAM): not processed (RFC 9113, 8.7) | T once, then counted |
| UNPROCESSED | GOAWAY with a lower last stream id: not processed (RFC 9113, 6.8) | T once, then counted |
| LOST | connection lost after the request was written | P, see below |
| RESET | any other RST_STREAM before the response | P |
| ANSWERED | a trailers-only UNAVAILABLE, RESOURCE_EXHAUSTED or ABORTED; HTTP 502, 503, 504 | P |
| TIMED_OUT | no response within `per_try_timeout` | P |
| UNSUITABLE | RST_STREAM(INADEQUATE_SECURITY, HTTP_1_1_REQUIRED): the set-up is wrong, everywhere | N |
| OVERLOADED | too many calls wait for the server: its chats stay with it | N |

T: always, and it costs nothing. Counted: on every route, since the call cannot have run, but it takes from the budget,
so that a cluster that refuses is not asked three times as much. P: only on routes that say a call may run again, and
from the budget. One lost connection is one failure, and takes one token, however many calls were on it: they all may go
on, once each, since a server that is gone cannot be overloaded by them. The same holds for the calls of a server that
has been found out meanwhile (ejected, unhealthy): nothing new goes there, so this cannot swell. N: never.

Whatever the class: never after the first byte of a response, never without every byte of the request, never more than
`max_attempts` servers, never past the deadline.
"""

from __future__ import annotations

from enum import Enum, auto

from proxy.forwarding.settings import RetrySettings


class Outcome(Enum):
    """How an attempt ended without a response that counts."""

    CONNECT_FAILED = auto()
    NOT_SENT = auto()
    REFUSED = auto()
    UNPROCESSED = auto()
    LOST = auto()
    RESET = auto()
    ANSWERED = auto()
    TIMED_OUT = auto()
    UNSUITABLE = auto()
    OVERLOADED = auto()


class RetryClass(Enum):
    """What it takes to try again."""

    TRANSPARENT = auto()
    COUNTED = auto()
    PERMITTED = auto()
    NEVER = auto()


UNPROCESSED = frozenset({Outcome.REFUSED, Outcome.UNPROCESSED})
"""The server had the call and says that it did not touch it."""
_NEVER = frozenset({Outcome.UNSUITABLE, Outcome.OVERLOADED})
_NEVER_LEFT = frozenset({Outcome.CONNECT_FAILED, Outcome.NOT_SENT})


def classify(outcome: Outcome, transparent_retries: int) -> RetryClass:
    """The class of `outcome` for a call that a server left unprocessed `transparent_retries` times before."""
    if outcome in _NEVER_LEFT:
        return RetryClass.TRANSPARENT
    if outcome in UNPROCESSED:
        return RetryClass.COUNTED if transparent_retries else RetryClass.TRANSPARENT
    if outcome in _NEVER:
        return RetryClass.NEVER
    return RetryClass.PERMITTED


class RetryBudget:
    """Keeps repeats a small part of the load: when everything fails, retries must not make it worse.

    Two limits, both must allow: repeats under way (Envoy's retry budget), and the tokens of gRFC A6.
    """

    __slots__ = ("_min", "_ratio", "_share", "max_tokens", "repeating", "tokens")

    def __init__(self, settings: RetrySettings) -> None:
        self.tokens = self.max_tokens = settings.tokens
        self.repeating = 0
        """Calls under way that are repeats."""
        self.configure(settings)

    def configure(self, settings: RetrySettings) -> None:
        """From now on by these settings; a bucket that was full stays full."""
        full = self.tokens >= self.max_tokens
        self._share = settings.budget_percent / 100
        self._min = settings.min_budget
        self._ratio = settings.token_ratio
        self.max_tokens = settings.tokens
        self.tokens = self.max_tokens if full else min(self.tokens, self.max_tokens)

    def failed(self) -> None:
        """An attempt failed in a way that could be tried again."""
        self.tokens = max(0.0, self.tokens - 1)

    def succeeded(self) -> None:
        """A call went well. Hot callers test `tokens < max_tokens` themselves."""
        self.tokens = min(self.max_tokens, self.tokens + self._ratio)

    @property
    def exhausted(self) -> bool:
        """So much has failed lately that nothing is repeated."""
        return self.tokens <= self.max_tokens / 2

    def take(self, active: int) -> bool:
        """Start a repeat, if there may be one more among `active` calls under way; end it with `give_back`."""
        if self.exhausted or self.repeating >= max(self._min, active * self._share):
            return False
        self.repeating += 1
        return True

    def give_back(self) -> None:
        """A repeat is over."""
        self.repeating -= 1
