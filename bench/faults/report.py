"""From runs to something to read: tables side by side, `docs/failures.md`, JSON."""

from __future__ import annotations

import json
import os
import platform
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from bench.faults.analysis import SLACK, UNARY
from bench.faults.backend import GRACE, LAME_DUCK, TOKEN_COUNT, WORK
from bench.faults.load import CHANNELS, DEADLINE
from bench.faults.run import STANDSTILL, TRIES
from bench.faults.scenarios import SCENARIOS, SETTLE
from bench.machine import cpu_model, package_version, revision
from bench.peers.base import Resilience

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.faults.analysis import Numbers
    from bench.faults.run import Plan, Run

_COLUMNS = (
    *("peer", "unary calls", "failed, run once", "failed, repeatable", "failed streams"),
    *("ran twice", "ran but failed", "moved needlessly", "still away"),
    *("first answer, s", "failing for, s", "calls/s before/during/after"),
)


def row(run: Run) -> tuple[str, ...]:
    """The cells of one run."""
    numbers = run.numbers
    plain, repeatable, stream = (numbers.kinds[kind] for kind in ("plain", "repeatable", "stream"))
    rates = numbers.rates
    return (
        run.peer,
        f"{plain.calls + repeatable.calls:,}",
        *(str(kind.failed) for kind in (plain, repeatable)),
        f"{stream.failed} of {stream.calls}",
        str(plain.ran_twice + stream.ran_twice),
        str(plain.ran_but_failed + stream.ran_but_failed),
        str(numbers.chats.moved_needlessly),
        str(numbers.chats.away_at_end),
        " / ".join("never" if time is None else _seconds(time) for time in _of_unary(numbers, "first_answer")),
        " / ".join(_seconds(time) for time in _of_unary(numbers, "failing_for")),
        f"{rates.before:.0f} / {rates.during:.0f} / {rates.after:.0f}",
    )


def tables(runs: Sequence[Run]) -> list[str]:
    """A Markdown table for each scenario, aligned so that it can be read as it is, and what it has no room for."""
    lines: list[str] = []
    for name in dict.fromkeys(run.scenario for run in runs):
        those = [run for run in runs if run.scenario == name]
        scenario = SCENARIOS[name]
        lines += ["", f"### {scenario.title}", "", f"{_sentence(scenario.about)} {_away(those)}", ""]
        lines += _aligned([_COLUMNS, *(row(run) for run in those)])
        lines += ["", *(f"- {details(run)}" for run in those)]
    return lines[1:]


def details(run: Run) -> str:
    """What the table leaves out, in a line."""
    parts = [
        f"{kind}: {', '.join(f'{count} {status}' for status, count in numbers.statuses.items())}"
        for kind, numbers in run.numbers.kinds.items()
        if numbers.failed
    ]
    kinds, chats = run.numbers.kinds, run.numbers.chats
    parts.append(f"repeatable calls that ran more than once: {kinds['repeatable'].ran_twice}")
    bystanders = sum(kind.bystanders for kind in kinds.values())
    if bystanders:
        parts.append(f"failed although their chat's server was well: {bystanders}")
    home = "none came home" if chats.home_after is None else f"the last to come home {chats.home_after:.1f} s after"
    parts.append(f"{chats.displaced} of {chats.count} chats displaced, {home}")
    parts.append(f"slowest success {' / '.join(_seconds(time) for time in _of_unary(run.numbers, 'slowest'))} s")
    if run.standstill > STANDSTILL:
        parts.append(f"DISTURBED: the machine had no time for clients or servers for {run.standstill:.1f} s")
    if run.numbers.skipped:
        parts.append(f"{run.numbers.skipped} calls not made: 10,000 were in flight")
    lost = sum(kind.lost for kind in kinds.values())
    if lost:
        parts.append(f"{lost} CALLS WERE OK WITHOUT HAVING RUN")
    return f"`{run.peer}`: {'; '.join(parts)}"


def describe(plan: Plan) -> dict[str, str]:
    """Machine and versions, as label and text."""
    packages = dict.fromkeys(("grpcio", *(package for peer in plan.peers for package in peer.packages)))
    programs = dict.fromkeys(peer.version() for peer in plan.peers if peer.version)
    return {
        "cpu": f"{cpu_model(Path('/proc/cpuinfo').read_text(encoding='utf-8'))}, {os.cpu_count()} CPUs for everything",
        "load average": f"{os.getloadavg()[0]:.2f} before the start",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "proxies": ", ".join(programs) or "only ours",
        "packages": ", ".join(f"{name} {package_version(name)}" for name in packages),
        "revision": revision(),
    }


def document(plan: Plan, runs: Sequence[Run], machine: Mapping[str, str]) -> str:
    """`docs/failures.md`."""
    peers = "\n".join(f"| `{peer.name}` | {peer.settings} |" for peer in plan.peers)
    found = "\n".join(f"- {label}: {text}" for label, text in machine.items())
    results = "\n".join(tables(runs))
    return f"{_intro(plan)}\n## Results\n\n{results}\n\n## Proxies\n{_peers_intro()}\n{peers}\n\n## Machine\n{found}\n"


def write_json(plan: Plan, runs: Sequence[Run], machine: Mapping[str, str]) -> str:
    """Everything, for later comparison."""
    settings = {key: getattr(plan, key) for key in ("away", "rate", "streams", "chats")}
    content = {"machine": dict(machine), "settings": settings, "runs": [asdict(run) for run in runs]}
    return json.dumps(content, indent=2) + "\n"


def _paragraph(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _set_up(plan: Plan) -> str:
    return _paragraph(
        f"Three servers behind one proxy. grpcio clients ({CHANNELS} connections) make {plan.rate:,} unary calls per"
        f" second over {plan.chats} chats, by the clock (a hanging server does not slow them down), with a deadline of"
        f" {DEADLINE:.0f} s, and keep {plan.streams} streams of {TOKEN_COUNT} messages in 2 s running. A unary call"
        f" takes its server {WORK * 1000:.0f} ms. Every other one is of a method that must not run twice; the rest are"
        " *repeatable*: every proxy is told that these may be run again. Servers append each start and finish of a"
        " call to a ledger, which decides what ran, whatever proxies and clients believe. At SIGTERM a server says"
        f" NOT_SERVING for {LAME_DUCK:.0f} s, then sends GOAWAY, and ends when its calls are done (at most"
        f" {GRACE:.0f} s). After each fault there are {SETTLE:.0f} s for coming back."
    )


def _intro(plan: Plan) -> str:
    return f"""\
# When servers fail: DistriChat, Envoy, HAProxy, nginx

Written by `make bench-faults` (`python -m bench.faults --help`). Do not edit: the next run overwrites it.

{_set_up(plan)}

## How to read it
- **failed, run once**: unary calls that must not run twice and did not end with OK. Those in flight at a server that is
  killed are among them, and have to be: nobody can know whether they ran.
- **failed, repeatable**: those that may; a proxy could have saved every one.
- **ran twice**: calls that must not (streams too), and were begun more than once. The worst a proxy can do here.
- **ran but failed**: a server finished them, the client got an error; its user will send them again.
- **moved needlessly**: chats of which an answer came from another server than the one before, although that one was
  well (up, and back for more than {SLACK:.0f} s), except for going home.
- **still away**: chats not back at the server that had them before, {SETTLE:.0f} s after the last server was back. Not
  wrong in itself: DistriChat leaves a chat in use where it is (`failback`): going home means another cold session.
- **first answer**: from the fault until a call to a chat of the missing server that began after the fault was answered;
  **failing for**: from the fault until the beginning of the last such call that failed (0: none did). Run once /
  repeatable; the worst server, where several were away.

One run each, on one machine with little room: small differences mean nothing, orders of magnitude do. A run in which a
client or a healthy server had no CPU for more than {STANDSTILL:g} s is made again, up to {TRIES} times in all: to a
proxy such a pause looks like a fault, and it hits whoever is on. If all were disturbed, the least disturbed counts, and
says so.
"""


def _peers_intro() -> str:
    wanted = Resilience(repeatable="")
    text = _paragraph(
        f"For all, as far as they have it: a check every {wanted.interval:g} s with a timeout of {wanted.timeout:g} s,"
        f" {wanted.unhealthy_threshold} bad ones out, {wanted.healthy_threshold} good ones in,"
        f" {wanted.unhealthy_interval:g} s apart; {wanted.attempts} servers tried; repeatable calls"
        f" {wanted.per_try_timeout:g} s a try. The exact configurations are in `bench/peers/`."
    )
    return f"\n{text}\n\n| peer | how |\n|---|---|"


def _of_unary(numbers: Numbers, name: str) -> list[float | None]:
    return [getattr(numbers.kinds[kind], name) for kind in UNARY]


def _seconds(time: float | None) -> str:
    return f"{time or 0:.2f}".replace("0.00", "0")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _away(runs: Sequence[Run]) -> str:
    times = [time for run in runs for time in run.away]
    shortest, longest = f"{min(times):.1f}", f"{max(times):.1f}"
    return f"Away for {longest} s." if shortest == longest else f"Away for {shortest} to {longest} s each time."


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |" for cells in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return [lines[0], rule, *lines[1:]]
