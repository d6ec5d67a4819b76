"""The proxy, three servers, a hundred good clients, and the measures taken while somebody attacks.

And a control group, whose clients call the same servers through another proxy, which nobody attacks: what slows that
down too, as six processes on two cores slow each other down, is not the attack's doing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.balancing.hash_ring import HashRing
from tests.attack.attacker import Attacker
from tests.support import processes
from tests.support.proxy_process import environment, toml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.proxy_process import Table

ROOT = Path(__file__).parents[2]
VICTIM = "Server-X"
QUIET_WINDOWS = 6
"""Windows without an attack, the last ones, whose worst counts as quiet: other load on the machine comes in bursts."""
START = 60.0
"""Seconds for processes to start."""
GOOD_CLIENTS = 100
QUIET = 0.4
"""Seconds of a window without an attack."""
AT_LEAST = 1.0
"""Seconds of an attack: one that is stopped sooner begins again. Fewer are too few calls for a 99th percentile."""


@dataclass(frozen=True)
class Call:
    """A good client's call that has ended."""

    way: str
    """proxy, or control."""
    ended: float
    seconds: float
    status: str


@dataclass
class Measures:
    """What one attack did to the proxy and to the good clients."""

    bytes: int = 0
    """That the attacker sent."""
    connections: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    """Seconds of the proxy, beyond what the good clients cost it at other times."""
    memory: int = 0
    """Bytes that the proxy grew by at most."""
    calls: list[Call] = field(default_factory=list)
    p99: float = 0.0
    control_p99: float = 0.0
    """Of the control group, meanwhile."""
    quiet_p99: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.bytes / 1e6:.2f} MB on {self.connections} connections in {self.seconds:.2f} s; "
            f"proxy: {self.cpu:.2f} s of CPU, {self.memory / 1e6:+.1f} MB; "
            f"{len(self.calls)} good calls, p99 {1e3 * self.p99:.1f} ms "
            f"(quiet {1e3 * self.quiet_p99:.1f} ms, control group {1e3 * self.control_p99:.1f} ms)"
        )


def p99(calls: list[Call]) -> float:
    """Of their seconds; 0.0 without calls."""
    times = sorted(call.seconds for call in calls)
    return times[min(len(times) - 1, len(times) * 99 // 100)] if times else 0.0


class Arena:
    """The field, ready. `key` is a chat of the server that attackers may use; no good client's chat lives there."""

    def __init__(
        self, proxy: subprocess.Popen[bytes], port: int, log: Path, crowd: subprocess.Popen[bytes], key: bytes
    ):
        self.port = port
        self.key = key
        self._proxy = proxy
        self._log = log
        self.calls: list[Call] = []
        self._reader = threading.Thread(target=self._listen, args=(crowd,), daemon=True)
        self._reader.start()
        self._quiet: deque[float] = deque(maxlen=QUIET_WINDOWS)
        self._rate = 0.0
        """Seconds of the proxy's CPU per second that the good clients cost."""
        self.cost_of_a_call = 0.0
        """Seconds of the proxy's CPU."""
        self._settle()

    def _listen(self, crowd: subprocess.Popen[bytes]) -> None:
        assert crowd.stdout is not None
        for line in crowd.stdout:
            way, ended, seconds, status = line.decode().split()
            self.calls.append(Call(way, float(ended), float(seconds), status))

    def _settle(self) -> None:
        until = time.monotonic() + START
        while len(self.calls) < 300:
            assert time.monotonic() < until, "the good clients do not get going"
            time.sleep(0.05)
        cpu, started, count = self.cpu(), time.monotonic(), len(self.calls)
        time.sleep(2.0)
        self._rate = (self.cpu() - cpu) / (time.monotonic() - started)
        self.cost_of_a_call = (self.cpu() - cpu) / (len(self.calls) - count)

    def cpu(self) -> float:
        """Seconds of CPU that the proxy has used."""
        return processes.cpu_seconds(self._proxy.pid)

    def memory(self) -> int:
        """Bytes that the proxy has in memory."""
        return processes.memory(self._proxy.pid)

    def log(self) -> str:
        """What the proxy wrote to stderr."""
        return self._log.read_text(encoding="utf-8")

    def between(self, start: float, end: float, way: str = "proxy") -> list[Call]:
        """The good calls that ended then and went that way."""
        return [call for call in self.calls if start <= call.ended < end and call.way == way]

    def measure(self, attack: Callable[[], int]) -> Measures:
        """Run `attack`, which returns the bytes it sent, again and again, between two quiet windows."""
        measures = Measures(connections=-Attacker.made)
        quiet = time.monotonic()
        time.sleep(QUIET)
        start, memory, cpu = time.monotonic(), self.memory(), self.cpu()
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.02):
                measures.memory = max(measures.memory, self.memory() - memory)

        failure: list[BaseException] = []

        def run() -> None:
            # A thread can have a priority of its own. The attacker's own work is no part of what is measured.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
            try:
                measures.bytes = attack()
                while time.monotonic() < start + AT_LEAST:
                    measures.bytes += attack()
            except BaseException as error:
                failure.append(error)

        threads = [threading.Thread(target=watch), threading.Thread(target=run)]
        for thread in threads:
            thread.start()
        threads[1].join()
        end = time.monotonic()
        done.set()
        threads[0].join()
        if failure:
            raise failure[0]
        measures.seconds = end - start
        measures.connections += Attacker.made
        measures.cpu = max(0.0, self.cpu() - cpu - self._rate * measures.seconds)
        time.sleep(QUIET)
        after = time.monotonic()
        self._catch_up(after)
        measures.calls = self.between(start, after)
        measures.p99 = p99(self.between(start, end + 0.05))
        measures.control_p99 = p99(self.between(start, end + 0.05, "control"))
        self._quiet += (p99(self.between(quiet, start)), p99(self.between(end + QUIET / 3, after)))
        measures.quiet_p99 = max(self._quiet)
        return measures

    def _catch_up(self, moment: float) -> None:
        until = time.monotonic() + 10.0
        while not self.calls or self.calls[-1].ended < moment:
            assert time.monotonic() < until, "the good clients have come to a halt"
            time.sleep(0.02)


@contextmanager
def arena(directory: Path, listener: Table) -> Iterator[Arena]:
    """Everything started; ended by process id. `listener`: settings of the proxy."""
    python = [sys.executable, "-W", "default"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": ROOT, "env": environment()}
    started: list[subprocess.Popen[bytes]] = []
    log = directory / "proxy.stderr"
    with log.open("wb") as stderr:
        try:
            crowd = subprocess.Popen([*python, "-m", "tests.attack.crowd"], **pipes)  # type: ignore[call-overload]
            started.append(crowd)
            victim = subprocess.Popen([*python, "-m", "tests.attack.victim"], **pipes)  # type: ignore[call-overload]
            started.append(victim)
            endpoints = json.loads(crowd.stdout.readline())
            endpoints[VICTIM] = victim.stdout.readline().decode().strip()
            config = directory / "proxy.toml"
            routes = ['method = "*"\nkey = { field = "1" }\nmissing_key = "reject"']
            # A sliver of the ring: no good client's chat falls into it.
            text = toml(endpoints, weights={VICTIM: 0.05}, routes=routes, listener=listener)
            config.write_text(text, encoding="utf-8")
            serve = [*python, "-m", "proxy", "serve", "--config", str(config)]
            addresses = []
            for _ in range(2):
                proxy = subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=stderr, cwd=ROOT, env=environment())
                started.append(proxy)
                assert proxy.stdout is not None
                addresses.append(proxy.stdout.readline().decode().split()[-1])
            control, address = addresses
            bad, good = _chats(endpoints)
            orders = {"address": address, "control": control, "chats": good}
            crowd.stdin.write(json.dumps(orders).encode() + b"\n")
            crowd.stdin.flush()
            yield Arena(proxy, int(address.rpartition(":")[2]), log, crowd, bad.encode())
        finally:
            for process in started:
                if process.stdin is not None:
                    process.stdin.close()
            for proxy in started[2:]:
                proxy.kill()
            for process in started:
                try:
                    process.wait(10.0)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                if process.stdout is not None:
                    process.stdout.close()


def _chats(endpoints: dict[str, str]) -> tuple[str, list[str]]:
    """A chat of the attackers' server, and a hundred of the others."""
    ring = HashRing(100, "murmur3")
    for id_, address in endpoints.items():
        ring.add_node(id_, 5 if id_ == VICTIM else 100, address)
    chats = [f"chat-{number}" for number in range(1000)]
    bad = [chat for chat in chats if ring.get_node(chat)[0] == VICTIM]
    return bad[0], [chat for chat in chats if chat not in bad][:GOOD_CLIENTS]
