"""What calls the ledger servers ran, written so that nothing short of a power cut loses it.

Two kinds of evidence, both made by one system call, so that a SIGKILL leaves either all of it or nothing:

- The ledger: a file that all servers append one line to (O_APPEND) when a call begins and when it ends. For a method
  that may not run twice, its beginning is its execution.
- The applied ids: for the method with an idempotency key, one symbolic link per `x-request-id`, made by the server that
  applies the call. Who finds the link there does not apply it again.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.messages import field, varint

if TYPE_CHECKING:
    from collections.abc import Iterator

ONCE = "/ledger.Ledger/Once"
"""Unary; may not run twice."""
KEYED = "/ledger.Ledger/Keyed"
"""Unary; may arrive any number of times, is applied once by its `x-request-id`."""
STREAM = "/ledger.Ledger/Stream"
"""One request, many responses; may not run twice."""
BIDI = "/ledger.Ledger/Bidi"
"""Echoes message by message; may not run twice."""
METHODS = {"once": ONCE, "keyed": KEYED, "stream": STREAM, "bidi": BIDI}

ROUTES = (
    f'method = "{KEYED}"\nkey = {{ field = "1" }}\nidempotency_key = true',
    'method = "/ledger.Ledger/*"\nkey = { field = "1" }',
)
"""The lines of the routes for a proxy before ledger servers."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a call asks for."""

    chat: str
    call: str
    """Unique for each call of a client, the same on each attempt of a proxy."""
    delay_ms: int = 0
    """How long one response takes."""
    responses: int = 1
    """How many, of the streaming method."""

    def encode(self) -> bytes:
        """As the protobuf message on the wire."""
        return field(1, self.chat) + field(2, self.call) + field(3, self.delay_ms) + field(4, self.responses)

    @classmethod
    def decode(cls, message: bytes) -> Request:
        """The reverse of `encode`, for messages made by it."""
        found: dict[int, int | str] = {}
        position = 0
        while position < len(message):
            tag, position = _varint(message, position)
            value, position = _varint(message, position)
            if tag & 7 == 2:
                found[tag >> 3] = message[position : position + value].decode()
                position += value
            else:
                found[tag >> 3] = value
        return cls(str(found[1]), str(found[2]), int(found[3]), int(found[4]))


def _varint(message: bytes, position: int) -> tuple[int, int]:
    length = 1
    while message[position + length - 1] & 0x80:
        length += 1
    value = sum((byte & 0x7F) << 7 * index for index, byte in enumerate(message[position : position + length]))
    assert varint(value) == message[position : position + length]
    return value, position + length


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger."""

    call: str
    server: str
    pid: int
    event: str
    """`start`, then `finish` or `cancel`. With an idempotency key: `arrive`, then `duplicate`, or `start` and `finish`
    once its link was made."""
    at: float
    """time.monotonic(), which all processes of the machine share."""
    method: str


class LedgerWriter:
    """One server's pen."""

    def __init__(self, directory: Path, server: str) -> None:
        self._file = os.open(directory / "ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._applied = directory / "applied"
        self._applied.mkdir(exist_ok=True)
        self._server = server

    def write(self, call: str, event: str, method: str) -> None:
        """Append one line."""
        entry = Entry(call, self._server, os.getpid(), event, time.monotonic(), method)
        line = json.dumps(asdict(entry)).encode() + b"\n"
        assert os.write(self._file, line) == len(line)

    def apply(self, request_id: str, call: str) -> bool:
        """Whether this is the first time that the id is applied, by whichever server."""
        try:
            (self._applied / request_id).symlink_to(f"{self._server} {call}")
        except FileExistsError:
            return False
        return True

    def close(self) -> None:
        """Write no more."""
        os.close(self._file)


def _shared(value: object) -> Any:
    return sys.intern(value) if isinstance(value, str) else value  # an hour's ledger has millions of each


class Ledger:
    """What all servers wrote in a directory, read at one moment."""

    def __init__(self, directory: Path | None = None) -> None:
        """None: nothing yet."""
        self.entries: defaultdict[str, list[Entry]] = defaultdict(list)
        """By call, in the order in which they were written."""
        self.applied: defaultdict[str, list[str]] = defaultdict(list)
        """By call: the servers that applied it."""
        if directory is None:
            return
        file = directory / "ledger"
        if file.exists():
            with file.open("rb") as lines:
                for line in lines:
                    entry = Entry(**{key: _shared(value) for key, value in json.loads(line).items()})
                    self.entries[entry.call].append(entry)
        for link in (directory / "applied").glob("*"):
            server, _, call = str(link.readlink()).partition(" ")
            self.applied[call].append(server)

    def note(self, call: str, kind: str, server: str) -> None:
        """An execution by a server in this process."""
        if kind == "keyed":
            self.applied[call].append(server)
        self.entries[call].append(Entry(call, server, os.getpid(), "start", time.monotonic(), METHODS[kind]))

    def executions(self, call: str, kind: str) -> list[str]:
        """The servers that executed the call, one entry per execution."""
        if kind == "keyed":
            return self.applied.get(call, [])
        return [entry.server for entry in self.entries.get(call, ()) if entry.event == "start"]

    def unfinished(self) -> Iterator[Entry]:
        """The `start`s without an end. What a killed process began stays so."""
        for entries in self.entries.values():
            for entry in entries:
                if entry.event == "start" and not any(
                    other.pid == entry.pid and other.event in ("finish", "cancel") for other in entries
                ):
                    yield entry

    def in_hand(self, server: str, at: float) -> set[str]:
        """The calls that the server had begun at that time, and not ended."""
        found = set()
        for call, entries in self.entries.items():
            here = [entry for entry in entries if entry.server == server]
            began = [entry.at for entry in here if entry.event in ("start", "arrive")]
            ended = [entry.at for entry in here if entry.event in ("finish", "cancel", "duplicate")]
            if any(begin <= at for begin in began) and not any(end <= at for end in ended):
                found.add(call)
        return found
