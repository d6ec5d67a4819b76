"""What is fuzzed, and what must hold for any bytes. Each target takes bytes and raises if something does not hold."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from districhat import chat_pb2
from google.protobuf.message import DecodeError

from proxy.grpc_wire.errors import CallRejected
from proxy.grpc_wire.fields import ABSENT, PENDING, FieldPath
from proxy.grpc_wire.message import FirstMessage, find_key
from tests.conformance.memory import replay_client, replay_server

if TYPE_CHECKING:
    from proxy.grpc_wire.fields import Sentinel

PATHS: Final = tuple(FieldPath.parse(text) for text in ("1", "2", "3.1", "1.2.3", "16", "536870911"))
ENCODINGS: Final = (None, b"identity", b"gzip", b"deflate")
LIMIT: Final = 1 << 16
"""Bytes of a first message: small, so that inputs reach it."""
PREFIX: Final = 5
BACKOFF: Final = 1.0
"""Seconds after which a server that hung up is connected to again. Nothing else is waited for: that would cost most."""


def _verdict(path: FieldPath, encoding: bytes | None, pieces: list[bytes]) -> bytes | Sentinel | str:
    """The key, what is known without it, or why the call is refused; END_STREAM comes with the last piece."""
    reader = FirstMessage(path, encoding, LIMIT)
    found: bytes | Sentinel = PENDING
    try:
        for index, piece in enumerate(pieces):
            found = reader.feed(piece, index == len(pieces) - 1)
            if found is not PENDING:
                return found
    except CallRejected as rejected:
        return rejected.status.name
    return found


def key_extraction(data: bytes) -> None:
    """The first byte chooses path and encoding, the rest is a request's body.

    The verdict does not depend on the cuts, the fast way agrees with the thorough one, and both with protobuf's parser.
    """
    if not data:
        return
    path = PATHS[data[0] % len(PATHS)]
    encoding = ENCODINGS[data[0] // len(PATHS) % len(ENCODINGS)]
    body = data[1:]
    found = _verdict(path, encoding, [body])
    assert found is not PENDING, "no verdict at the end of the stream"
    if body[:1] == b"\0":
        key = find_key(body, path, True)
        assert key is None or key == found, "the fast way differs"
        # A cut may let the key be seen before the end of a message that is too short.
        early = {found} | ({"INTERNAL"} if isinstance(found, bytes) else set())
        bytewise = _verdict(path, encoding, [body[at : at + 1] for at in range(len(body))] or [b""])
        assert bytewise in early or found == "INTERNAL", "the verdict depends on the cuts"
        if path == PATHS[0] and int.from_bytes(body[1:PREFIX], "big") == len(body) - PREFIX:
            _agrees_with_protobuf(body[PREFIX:], found)


def _agrees_with_protobuf(message: bytes, found: bytes | Sentinel | str) -> None:
    parsed = chat_pb2.ChatRequest()
    try:
        parsed.ParseFromString(message)
    except DecodeError:
        return
    if found is ABSENT:
        assert not parsed.chat_id
    elif parsed.SerializeToString() == message and isinstance(found, bytes):
        assert found == parsed.chat_id.encode()


def downstream(data: bytes) -> None:
    """A client's whole connection: cut somewhere, before servers that echo."""
    replay_client(data, _somehow(data), paced=len(data) % 2 == 0, patience=0.0)


def upstream(data: bytes) -> None:
    """A server's whole connection, after its SETTINGS and our request."""
    replay_server(data, _somehow(data), paced=len(data) % 2 == 0, patience=BACKOFF)


def _somehow(data: bytes) -> Callable[[bytes], list[bytes]]:
    """Into two pieces or three, differently for different data."""
    places = sorted(random.Random(data).choices(range(len(data) + 1), k=2))

    def cut(each: bytes) -> list[bytes]:
        one, two = (min(place, len(each)) for place in places)
        return [piece for piece in (each[:one], each[one:two], each[two:]) if piece]

    return cut


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "key_extraction": key_extraction,
    "downstream": downstream,
    "upstream": upstream,
}
