"""Protobuf messages made by hand: tests of the proxy need fields in places that no generated class would put them."""

from __future__ import annotations


def varint(value: int) -> bytes:
    """An unsigned number as protobuf writes it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def field(number: int, value: bytes | str | int) -> bytes:
    """One field: a varint for a number, else length-delimited."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def keyed(key: str | bytes, payload: bytes = b"") -> bytes:
    """A message whose field 1 is the key, with a payload in field 2."""
    return field(1, key) + (field(2, payload) if payload else b"")


def framed(message: bytes, flag: int = 0) -> bytes:
    """The message with gRPC's length prefix."""
    return bytes((flag,)) + len(message).to_bytes(4, "big") + message


def message(chat: str = "chat-000", text: str = "hello") -> bytes:
    """A ChatRequest with gRPC's length prefix."""
    return framed(field(1, chat) + field(2, text))
