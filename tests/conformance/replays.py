"""Recorded byte streams of clients and servers, and of fuzzers that changed them.

data/replays.tar.xz holds them by name, which is the beginning of the content's SHA-256:

- `nghttp2/h2spec`, `nghttp2/nghttp`: nghttp2 1.52.0, fuzz/corpus; MIT, see data/LICENSE.nghttp2
- `grpc/client-streams`, `grpc/server-streams`: gRPC 1.51.1, test/core/end2end/fuzzers/server_fuzzer_corpus and
  client_fuzzer_corpus (named after the side that they are fed to); Apache-2.0, see data/LICENSE.grpc
"""

from __future__ import annotations

import random
import tarfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

ARCHIVE = Path(__file__).parent / "data" / "replays.tar.xz"
CLIENT_STREAMS = {"nghttp2/": "nghttp2 1.52.0", "grpc/client-streams/": "gRPC 1.51.1"}
SERVER_STREAMS = {"grpc/server-streams/": "gRPC 1.51.1"}
"""Beginning of the names -> where they come from."""


@cache
def _everything() -> dict[str, bytes]:
    with tarfile.open(ARCHIVE) as archive:
        return {entry.name: file.read() for entry in archive if (file := archive.extractfile(entry))}


def streams(*prefixes: str) -> dict[str, bytes]:
    """Name -> bytes, of all whose names begin so."""
    return {name: data for name, data in _everything().items() if name.startswith(prefixes)}


def random_cut(seed: str, data: bytes) -> Iterable[bytes]:
    """Pieces of 1 to 40 bytes; of long streams, of a hundredth. The same for the same seed."""
    chance = random.Random(seed)
    largest = max(40, len(data) // 100)
    at = 0
    while at < len(data):
        size = chance.randint(1, largest)
        yield data[at : at + size]
        at += size
