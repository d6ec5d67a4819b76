"""The guard of the hot path: how many bytecodes a call costs, counted, not timed.

Run as a program (`make bench-guard`) it counts the bytecodes that the interpreter executes in the proxy's own functions
for a call in memory, and the C functions they call, and compares both with `guard.json`. The counts are exact: they
depend on the code and on the minor version of Python alone, not on the machine, its load or its mood, so a change of
10 % is a change of 10 %. What they do not see is the time inside C functions: the engine's, which is pinned, and that
of a call such as `sorted(everything)`; the benchmark does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.inmemory import Calls
from bench.process import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

    from _typeshed import TraceFunction

BUDGETS = Path(__file__).parent / "guard.json"
TOLERANCE = 0.10
"""How much dearer than its budget a call may be."""
_WARM_UP = 8
_CALLS = 16
_OURS = f"{ROOT / 'proxy'}/"


@dataclass(frozen=True)
class Count:
    """What one unit of a kind of call costs, on average over a few."""

    bytecodes: float
    c_calls: float
    functions: dict[str, float]
    """Bytecodes by function."""


class _Tracer:
    """Counts what happens in frames of the proxy's files. Only one tracer may be at work in a thread."""

    def __init__(self) -> None:
        self.bytecodes: Counter[CodeType] = Counter()
        self.c_calls = 0

    def trace(self, frame: FrameType, _event: str, _argument: object) -> TraceFunction | None:
        """For sys.settrace: a frame begins."""
        if not frame.f_code.co_filename.startswith(_OURS):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._opcode

    def _opcode(self, frame: FrameType, event: str, _argument: object) -> TraceFunction:
        if event == "opcode":
            self.bytecodes[frame.f_code] += 1
        return self._opcode

    def profile(self, frame: FrameType, event: str, _argument: object) -> None:
        """For sys.setprofile: a C function is called."""
        if event == "c_call" and frame.f_code.co_filename.startswith(_OURS):
            self.c_calls += 1


def count(call: Callable[[], None], units: int) -> Count:
    """Count `call`, which does `units` of what is counted, after a few that warm it up."""
    for _ in range(_WARM_UP):
        call()
    tracer = _Tracer()
    sys.settrace(tracer.trace)
    try:
        for _ in range(_CALLS):
            call()
    finally:
        sys.settrace(None)
    sys.setprofile(tracer.profile)
    try:
        for _ in range(_CALLS):
            call()
    finally:
        sys.setprofile(None)
    total = _CALLS * units
    functions = {code.co_qualname: number / total for code, number in tracer.bytecodes.most_common()}
    return Count(sum(functions.values()), tracer.c_calls / total, functions)


def verdict(name: str, found: Count, budget: dict[str, float]) -> list[str]:
    """What is wrong with a count: a line for each figure that is above its budget by more than the tolerance."""
    return [
        f"{name}: {value:.1f} {figure.replace('_', ' ')}, {value / budget[figure] - 1:+.1%} of the budget of"
        f" {budget[figure]:.1f}"
        for figure, value in (("bytecodes", found.bytecodes), ("c_calls", found.c_calls))
        if value > budget[figure] * (1 + TOLERANCE)
    ]


def main() -> int:
    """The program. 0 within the budgets, 1 above one, 2 without budgets for this Python."""
    parser = argparse.ArgumentParser(prog="python -m bench.guard", description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="take the counts for the new budgets")
    parser.add_argument(
        "--functions", type=int, default=0, metavar="N", help="also show the N dearest functions of each"
    )
    options = parser.parse_args()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    budgets = json.loads(BUDGETS.read_text(encoding="utf-8"))
    known = budgets.setdefault(python, {})
    wrong: list[str] = []
    for name, (call, units) in Calls().kinds().items():
        found = count(call, units)
        print(f"{name:34} {found.bytecodes:8.1f} bytecodes {found.c_calls:7.1f} C calls")
        for function, number in list(found.functions.items())[: options.functions]:
            print(f"    {number:8.1f}  {function}")
        if options.write:
            known[name] = {"bytecodes": round(found.bytecodes, 1), "c_calls": round(found.c_calls, 1)}
        elif name in known:
            wrong += verdict(name, found, known[name])
    if options.write:
        BUDGETS.write_text(json.dumps(budgets, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        print(f"wrote the budgets of Python {python}")
        return 0
    if not known:
        print(f"bench.guard: no budgets for Python {python}: make bench-guard ARGS=--write", file=sys.stderr)
        return 2
    for line in wrong:
        print(f"bench.guard: {line}", file=sys.stderr)
    if wrong:
        print("bench.guard: make it cheaper, or say in the commit why it is worth it and --write", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
