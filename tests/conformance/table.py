"""`docs/conformance.md`: what each suite has, and what of it passed. `make conformance` writes it, each run checks it.

A suite is one line. Its cases either pass, or fail for a reason that is written down; anything else fails the test.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "conformance.md"

SUITES = {
    "h2spec, strict": "HTTP/2 server side: the listener, answers by nghttpd through the pool",
    "h2spec, the case that is new": "`hpack/2.3.3/2`, which 2.2.1 lacks: a literal whose name has an invalid index",
    "h2specd": "HTTP/2 client side: a pool's connection to a server that breaks the rules",
    "exact error codes, downstream": "the code that RFC 9113 names for each broken rule, where h2spec takes any close",
    "exact error codes, upstream": "the same for servers that break the rules",
    "gRPC interop, Go client, Go server": "all four kinds of call, cancellation, deadlines, status, metadata",
    "gRPC interop, Python client, Go server": "the same by C-core's client",
    "gRPC interop, Go client, Python server": "the same with C-core's server",
    "gRPC interop, Go soak": "20,000 calls on 8 threads: one channel, then a channel for each of 1,000",
    "gRPC negative HTTP/2, Go client": "GOAWAY, resets, PINGs, stream limit: direct and through the proxy alike",
    "replay of client streams, nghttp2": "recorded of h2spec and nghttp; whole and cut; judged as by Envoy or nghttpd",
    "replay of client streams, gRPC": "the corpus of C-core's server fuzzer, likewise",
    "replay of server streams, gRPC": "the corpus of C-core's client fuzzer, judged as by Envoy or nghttp",
    "replay of client streams over TCP": "the same to a proxy process, whole and cut in two ways, beside good calls",
    "replay of server streams over TCP": "likewise; every call of a grpcio client ends, and disturbs no other",
    "fuzzing": "a minute each of key extraction, a client's and a server's connection, begun from the replays",
}
"""Every suite there is, with what it looks at."""

HEAD = """\
# Conformance

What others wrote to test HTTP/2 and gRPC, run against the production listener, engine, calls and pools. This file is
written by `make conformance`; each run of the tests checks it: a suite with another number of cases, or another
outcome, fails. A case passes, or differs for a reason given below; none is skipped.

| suite | looks at | version | cases | passed | differences explained |
|---|---|---|---|---|---|
"""

DIFFERENCES = """
h2spec 2.6.0 has 147 cases. As a Go module nothing newer than 2.2.1 is served, which has 146 of them, by the same names.
The one that it lacks was written anew, and is ours.

## Differences

After each reason: our answer, and that of others to the same bytes. `none` is neither RST_STREAM nor GOAWAY.
"""


@dataclass(frozen=True)
class Row:
    """The outcome of a suite."""

    suite: str
    """One of `SUITES`."""
    version: str
    cases: int
    differences: tuple[tuple[str, str], ...] = ()
    """The cases that did not pass: name, and why that is right."""
    reasons_in: str = ""
    """The file that has the reasons instead, if they are many: relative to the repository."""

    @property
    def passed(self) -> int:
        """Cases that did pass."""
        return self.cases - len(self.differences)

    def line(self) -> str:
        """The line of the table."""
        explained = str(len(self.differences))
        if self.reasons_in:
            explained = f"{explained} ([reasons](../{self.reasons_in}))"
        cells = (self.suite, SUITES[self.suite], self.version, f"{self.cases:,}", f"{self.passed:,}", explained)
        return f"| {' | '.join(cells)} |"


def render(rows: list[Row]) -> str:
    """The document."""
    order = list(SUITES)
    rows = sorted(rows, key=lambda row: order.index(row.suite))
    text = HEAD + "".join(f"{row.line()}\n" for row in rows)
    text += DIFFERENCES
    for row in rows:
        if row.differences and not row.reasons_in:
            text += f"\n### {row.suite}\n\n"
            text += "".join(f"- `{case}`: {why}\n" for case, why in row.differences)
    return text


def committed(text: str | None = None) -> dict[str, str]:
    """Suite -> its line in the document."""
    if text is None:
        text = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else ""
    lines = [line for line in text.splitlines() if re.match(r"\| (?!suite \|)[^-]", line)]
    return {line.split("|")[1].strip(): line for line in lines}
