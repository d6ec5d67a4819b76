"""The simulation as text, phase by phase. Decides nothing: it is told what happened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from proxy.commands.demo.scenario import L1_SESSIONS, L2_SESSIONS, SERVERS, VICTIM, Scenario
from proxy.commands.output import console, print_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from districhat import chat_pb2

    from proxy.commands.demo.ledger import Answer, ClientStatistics, Move

_STYLES = {"L1 hit": "green", "L2 hit": "yellow", "disk": "cyan", "miss": "magenta"}
_COLOURS = dict(zip((server.id for server in SERVERS), ("blue", "dark_orange", "cyan"), strict=True))
_NAME = max(len(server.id) for server in SERVERS)
_CHATS_PER_LINE = 8


class Report:
    """Prints to standard output: with colours on a terminal, plain in a pipe."""

    def __init__(self, scenario: Scenario) -> None:
        self._out = console()
        self._scenario = scenario
        self._phase = 0

    def title(self) -> None:
        """What is about to be seen."""
        scenario = self._scenario
        fate = f"{VICTIM} is killed after message {scenario.kill_after}" if scenario.kills() else "nobody is killed"
        text = f"DistriChat simulation: {scenario.messages} messages over {scenario.chats} chats; {fate}"
        self._out.print(text, style="bold")

    def starting(self) -> None:
        """Phase 1 begins."""
        self._begin("Starting servers")

    def started(self, addresses: Mapping[str, str], vnodes: Mapping[str, int], proxy: str, store: str) -> None:
        """Everything is ready."""
        for id_, address in addresses.items():
            caches = f"{vnodes[id_]} virtual nodes, L1 {L1_SESSIONS} and L2 {L2_SESSIONS} sessions"
            self._line((f"{id_:<{_NAME}}", _COLOURS[id_]), f"  {address:<15}  {caches}")
        self._line((f"{'proxy':<{_NAME}}", "bold"), f"  {proxy:<15}  all that the client knows")
        self._line(f"The three servers share {store}: here a session survives its server's death.")

    def routing(self, chats: Mapping[str, Sequence[str]]) -> None:
        """Phase 2: where every chat lives, by server."""
        self._begin("Routing: where every chat lives")
        for id_, owned in chats.items():
            rows = [owned[start : start + _CHATS_PER_LINE] for start in range(0, len(owned), _CHATS_PER_LINE)] or [()]
            for index, row in enumerate(rows):
                head = f"{id_:<{_NAME}} {len(owned):>4}  " if index == 0 else " " * (_NAME + 7)
                self._line((head, _COLOURS[id_]), " ".join(row))

    def sending(self, first: int, last: int) -> None:
        """Messages follow."""
        self._begin(f"Sending messages {first} to {last}")

    def answered(self, number: int, chat_id: str, owner: str, answer: Answer, *, right: bool) -> None:
        """One message and who answered it."""
        count = f"{answer.messages} message{'' if answer.messages == 1 else 's'}"
        moved = f"  (moved from {owner})" if answer.server != owner else ""
        self._line(
            f"{number:>4}  ",
            (f"{answer.server:<{_NAME}}", _COLOURS.get(answer.server, "")),
            "  ",
            (f"{answer.level:<6}", _STYLES.get(answer.level, "")),
            f"  {chat_id}  {count}{moved}",
            ("" if right else "  <- wrong, see below", "bold red"),
        )

    def failed(self, number: int, chat_id: str, reason: str) -> None:
        """One message that nobody answered."""
        self._line(f"{number:>4}  ", (f"{'FAILED':<{_NAME}}  ", "bold red"), f"        {chat_id}  {reason}")

    def killed(self, pid: int, moves: Sequence[Move]) -> None:
        """The failure, and every chat it moves."""
        self._begin(f"The failure: {VICTIM} (process {pid}) gets SIGKILL")
        for chat_id, before, after in moves:
            self._line(f"{chat_id}: ", (before, _COLOURS[before]), " -> ", (after, _COLOURS[after]))
        if not moves:
            self._line("It owned none of the chats: nothing moves.")

    def statistics(self, client: ClientStatistics, caches: Mapping[str, chat_pb2.StatsResponse | str]) -> None:
        """What client and servers counted; for a server that cannot say, why."""
        self._begin("Final statistics")
        self._line(
            f"client: {client.requests} requests, {client.successes} successes, {client.failures} failures, "
            f"{client.primary_hits} primary hits, {client.failovers} failovers"
        )
        columns = ("server", "requests", "L1 hits", "L2 hits", "disk", "misses", "in L1", "in L2", "demoted", "evicted")
        rows = []
        silent = []
        for id_, stats in caches.items():
            if isinstance(stats, str):
                silent.append(f"{id_}: {stats}")
                continue
            numbers = (stats.total_requests, stats.l1_hits, stats.l2_hits, stats.disk_hits, stats.cache_misses)
            sizes = (f"{stats.l1_size}/{stats.l1_capacity}", f"{stats.l2_size}/{stats.l2_capacity}")
            rows.append((id_, *map(str, numbers), *sizes, str(stats.demotions), str(stats.evictions)))
        self._out.print()
        print_table(self._out, columns, rows, numeric=columns[1:])
        for line in silent:
            self._line(line)

    def verdict(self, line: str, problems: Sequence[str], *, passed: bool) -> None:
        """What was wrong, and the last line."""
        self._out.print()
        for problem in problems:
            self._line((problem, "red"))
        self._out.print(line, style="bold green" if passed else "bold red")

    def _begin(self, name: str) -> None:
        self._phase += 1
        self._out.print()
        self._out.print(f"Phase {self._phase}: {name}", style="bold")

    def _line(self, *parts: str | tuple[str, str]) -> None:
        self._out.print(Text.assemble("  ", *parts))
