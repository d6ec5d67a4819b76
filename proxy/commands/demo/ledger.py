"""What must hold for every answer of the simulation. Pure: no processes, no clock, no printing.

The rule: a message is answered by the first server alive on its chat's walk round the ring, and says that the session
holds one message more than after the last answer. So a chat moves only when its owner is dead, only to the next
server, and takes its session along.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Answer(NamedTuple):
    """What a server said to one message."""

    server: str
    level: str
    """Where the session was found: `L1 hit`, `L2 hit`, `disk`, `miss`."""
    messages: int
    """How many the session holds, this one included."""


class Move(NamedTuple):
    """A chat that has to change its server."""

    chat_id: str
    before: str
    after: str


@dataclass(slots=True)
class ClientStatistics:
    """What the original's smart client counted."""

    requests: int = 0
    successes: int = 0
    failures: int = 0
    primary_hits: int = 0
    """Answered by the owner."""
    failovers: int = 0
    """Answered by another server."""


class Ledger:
    """Keeps account of one simulation. `candidates`: for each chat its servers in ring order, the owner first."""

    def __init__(self, candidates: Mapping[str, Sequence[str]]) -> None:
        self.statistics = ClientStatistics()
        self.problems: list[str] = []
        """Everything that went wrong, a line each, in the order it was seen."""
        self.moved: list[Move] = []
        """The chats that had to move."""
        self._candidates = candidates
        self._dead: set[str] = set()
        self._counts = dict.fromkeys(candidates, 0)
        self._needless_moves = 0
        self._lost_counts = 0
        self._other_problems = 0

    def owner(self, chat_id: str) -> str:
        """Who owns the chat while all servers live."""
        return self._candidates[chat_id][0]

    def expected(self, chat_id: str) -> str:
        """Who has to answer the chat's next message. ValueError when no server is left."""
        for server in self._candidates[chat_id]:
            if server not in self._dead:
                return server
        raise ValueError(f"no server is left for {chat_id}")

    def killed(self, server: str) -> list[Move]:
        """From now on `server` is dead. Returns its chats with their next server."""
        owned = [chat_id for chat_id in self._candidates if self.expected(chat_id) == server]
        self._dead.add(server)
        moves = [Move(chat_id, server, self.expected(chat_id)) for chat_id in owned]
        self.moved += moves
        return moves

    def answered(self, number: int, chat_id: str, answer: Answer) -> bool:
        """Enter an answer. Returns whether it is as it must be."""
        self.statistics.requests += 1
        self.statistics.successes += 1
        if answer.server == self.owner(chat_id):
            self.statistics.primary_hits += 1
        else:
            self.statistics.failovers += 1
        before = len(self.problems)
        expected = self.expected(chat_id)
        if answer.server != expected:
            self._needless_moves += 1
            self.problems.append(f"message {number}: {chat_id} belongs to {expected}, but {answer.server} answered")
        count = self._counts[chat_id] + 1
        if answer.messages != count:
            self._lost_counts += 1
            said = f"{answer.server} counts {answer.messages}"
            self.problems.append(f"message {number}: {chat_id} has {_counted(count, 'message')}, but {said}")
        # What the server says goes on, so that one lost message is reported once and not in every answer after it.
        self._counts[chat_id] = answer.messages
        return len(self.problems) == before

    def failed(self, number: int, chat_id: str, reason: str) -> None:
        """Enter a message that got no answer, or one that says it failed."""
        self.statistics.requests += 1
        self.statistics.failures += 1
        self.problems.append(f"message {number}: {chat_id} failed: {reason}")

    def noticed(self, problem: str) -> None:
        """Enter something else that must not be, such as a server that died by itself."""
        self._other_problems += 1
        self.problems.append(problem)

    def verdict(self) -> tuple[bool, str]:
        """Whether all held, and one line that says so."""
        counts = self.statistics
        if not self.problems:
            moved = f"{_counted(len(self.moved), 'chat')} moved" if self.moved else "no chat moved"
            of_whom = f", each of them {' and '.join(sorted(self._dead))}'s" if self.moved else ""
            return True, (
                f"PASSED: {_counted(counts.successes, 'message')} sent and answered, "
                f"{moved}{of_whom}, no session lost its count"
            )
        wrong = (
            (counts.failures, f"{_counted(counts.failures, 'message')} of {counts.requests} failed"),
            (self._needless_moves, f"{_counted(self._needless_moves, 'answer')} came from a server that need not have"),
            (self._lost_counts, f"{_counted(self._lost_counts, 'answer')} showed that a session lost its count"),
            (self._other_problems, f"{_counted(self._other_problems, 'other problem')}"),
        )
        return False, "FAILED: " + ", ".join(text for number, text in wrong if number)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
