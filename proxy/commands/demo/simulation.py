"""`districhat demo`: plays the scenario."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from proxy.commands.demo.client import CallFailedError, ChatClient
from proxy.commands.demo.cluster import running
from proxy.commands.demo.ledger import Ledger
from proxy.commands.demo.processes import ChildError
from proxy.commands.demo.report import Report
from proxy.commands.demo.scenario import SERVERS, VICTIM, Scenario
from proxy.commands.ring import candidates

if TYPE_CHECKING:
    from districhat import chat_pb2

    from proxy.commands.demo.cluster import DemoCluster

_GIVE_UP_AFTER = 3  # failures in a row; each may take the whole request timeout, and the verdict is clear by then


def run(scenario: Scenario, *, delay: float, port: int, store: str) -> int:
    """Play it and print it; `delay` seconds after each message. `port`, `store`: see `cluster.running`.

    Returns 0 if all held, else 1.
    """
    report = Report(scenario)
    report.title()
    report.starting()
    try:
        with running(port, store, keep_logs=True) as cluster:
            return _Simulation(scenario, cluster, report, delay).play()
    except ChildError as error:
        print(error, file=sys.stderr)
        report.verdict(f"FAILED: {error.headline}", [], passed=False)
        return 1


class _Simulation:
    def __init__(self, scenario: Scenario, cluster: DemoCluster, report: Report, delay: float) -> None:
        self._scenario = scenario
        self._cluster = cluster
        self._report = report
        self._delay = delay
        ring = cluster.ring
        self._ledger = Ledger({c: [node.id for node in candidates(ring, c)] for c in scenario.chat_ids()})

    def play(self) -> int:
        """All phases after the start. Raises ChildError when a process dies that was not killed."""
        cluster, report, scenario = self._cluster, self._report, self._scenario
        vnodes = {node.id: node.vnodes for node in cluster.ring.nodes}
        report.started(cluster.addresses, vnodes, cluster.address, cluster.store)
        chats: dict[str, list[str]] = {server.id: [] for server in SERVERS}
        for chat_id in scenario.chat_ids():
            chats[self._ledger.owner(chat_id)].append(chat_id)
        report.routing(chats)
        with ChatClient(cluster.address) as client:
            self._send_all(client)
            caches = self._ask_caches(client)
        cluster.children.check()
        report.statistics(self._ledger.statistics, caches)
        passed, line = self._ledger.verdict()
        report.verdict(line, self._ledger.problems, passed=passed)
        return 0 if passed else 1

    def _send_all(self, client: ChatClient) -> None:
        scenario = self._scenario
        before = scenario.kill_after if scenario.kills() else scenario.messages
        self._report.sending(1, before)
        if not self._send(client, range(1, before + 1)) or not scenario.kills():
            return
        victim = self._cluster.servers[VICTIM]
        victim.kill()
        self._report.killed(victim.pid, self._ledger.killed(VICTIM))
        if before < scenario.messages:
            self._report.sending(before + 1, scenario.messages)
            self._send(client, range(before + 1, scenario.messages + 1))

    def _send(self, client: ChatClient, numbers: range) -> bool:
        """Send these messages. False: too many failed, the rest was not sent."""
        in_a_row = 0
        for number in numbers:
            chat_id = self._scenario.chat_of(number)
            try:
                answer = client.post(chat_id, f"message {number}", message_id=f"demo-{number}")
            except CallFailedError as error:
                self._cluster.children.check()
                self._ledger.failed(number, chat_id, str(error))
                self._report.failed(number, chat_id, str(error))
                in_a_row += 1
                if in_a_row == _GIVE_UP_AFTER:
                    self._ledger.noticed(f"gave up after message {number}: {in_a_row} failures in a row")
                    return False
            else:
                in_a_row = 0
                right = self._ledger.answered(number, chat_id, answer)
                self._report.answered(number, chat_id, self._ledger.owner(chat_id), answer, right=right)
            if self._delay:
                time.sleep(self._delay)  # for the eyes of who watches
        return True

    def _ask_caches(self, client: ChatClient) -> dict[str, chat_pb2.StatsResponse | str]:
        caches: dict[str, chat_pb2.StatsResponse | str] = {}
        for server in SERVERS:
            if self._cluster.servers[server.id].dismissed:
                caches[server.id] = "killed; what it counted died with it"
                continue
            try:
                caches[server.id] = client.cache_statistics(server.id)
            except CallFailedError as error:
                caches[server.id] = str(error)
                self._ledger.noticed(f"cache statistics of {server.id}: {error}")
        return caches
