"""What fuzzing starts from, and how inputs are changed with an eye for HTTP/2's frames."""

from __future__ import annotations

import gzip
import random
import zlib
from typing import TYPE_CHECKING

import hpack

from tests.conformance.replays import CLIENT_STREAMS, SERVER_STREAMS, streams
from tests.support.frames import PREFACE, frame
from tests.support.messages import field, framed, keyed, message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LONGEST = 4096
"""Bytes of an input: enough for many frames; longer ones only take longer."""

REQUEST = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/chat.ChatService/StreamReply"),
    (":authority", "fuzz"),
    ("content-type", "application/grpc"),
    ("grpc-timeout", "1S"),
    ("x-bin", "AA=="),
]
RESPONSE = [(":status", "200"), ("content-type", "application/grpc")]
TRAILERS = [("grpc-status", "14"), ("grpc-message", "a%20b"), ("grpc-retry-pushback-ms", "1")]


def seeds(target: str) -> dict[str, bytes]:
    """Name -> input, to begin with."""
    if target == "key_extraction":
        bodies = [message(), framed(keyed("k" * 300, bytes(500))), framed(field(3, field(1, "deep"))), framed(b""), b""]
        compressed = [
            framed(compress(keyed("chat-1", bytes(200))), flag=1) for compress in (gzip.compress, zlib.compress)
        ]
        everything = [bytes([first]) + body for body in [*bodies, *compressed] for first in range(24)]
        return {str(index): data for index, data in enumerate(everything)}
    prefixes = CLIENT_STREAMS if target == "downstream" else SERVER_STREAMS
    return {name.replace("/", "-"): data for name, data in streams(*prefixes).items() if len(data) <= LONGEST}


def unpack(target: str, folder: Path) -> None:
    """Write the seeds into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in seeds(target).items():
        (folder / name).write_bytes(data)


def _frames(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        length = 9 + int.from_bytes(data[at : at + 3], "big")
        yield data[at : at + length]
        at += length


def mutate(data: bytes, longest: int, seed: int, blindly: Callable[[bytes, int], bytes]) -> bytes:
    """One input made of another: half of the time `blindly`, else by whole frames, so that more than the first one
    gets past the framing.
    """
    chance = random.Random(seed)
    if chance.random() < 0.5:
        return blindly(data, longest)
    preface = PREFACE if data.startswith(PREFACE) else b""
    frames = list(_frames(data[len(preface) :]))
    if not frames:
        return blindly(data, longest)
    at = chance.randrange(len(frames))
    what = chance.randrange(7)
    if what == 0:
        del frames[at]
    elif what == 1:
        frames.insert(at, chance.choice(frames))
    elif what == 2:
        other = chance.randrange(len(frames))
        frames[at], frames[other] = frames[other], frames[at]
    elif what == 3:
        frames.insert(at, _fresh(chance))
    else:
        frames[at] = _changed(frames[at], what, chance, blindly)
    return (preface + b"".join(frames))[:longest]


def _fresh(chance: random.Random) -> bytes:
    """A frame that is good in itself."""
    stream = chance.choice((0, 1, 1, 1, 3, 5, 2, 2**31 - 1))
    number = chance.choice((0, 1, 2, 7, 8, 1000, 65_535, 2**31 - 1)).to_bytes(4, "big")
    fields = chance.choice((REQUEST, RESPONSE, TRAILERS))
    block = hpack.Encoder().encode(fields, huffman=chance.random() < 0.5)
    frames = (
        (0, chance.choice((0, 1)), chance.choice((message(), b"", bytes(chance.randrange(2000))))),
        (1, chance.choice((4, 5)), block),
        (3, 0, number),
        (4, 0, chance.randrange(1, 7).to_bytes(2, "big") + number),
        (4, 1, b""),
        (6, 0, bytes(8)),
        (7, 0, chance.choice((bytes(4), number)) + chance.randrange(14).to_bytes(4, "big")),
        (8, 0, number),
    )
    kind, flags, payload = chance.choice(frames)
    return frame(kind, flags, stream, payload)


def _changed(old: bytes, what: int, chance: random.Random, blindly: Callable[[bytes, int], bytes]) -> bytes:
    """The frame with another flag, stream or payload; its length stays true."""
    old = old.ljust(9, b"\0")
    kind, flags, stream, payload = old[3], old[4], int.from_bytes(old[5:9], "big"), old[9:]
    if what == 4:
        flags ^= 1 << chance.randrange(8)
    elif what == 5:
        stream = chance.choice((0, 1, 3, 5, stream + 2, stream ^ 1)) & 0xFFFFFFFF
    else:
        payload = blindly(payload, LONGEST) if payload else b"\0"
    return frame(kind, flags, stream, payload)
