from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.grpc_wire.status import (
    MAX_MESSAGE_BYTES,
    Status,
    from_http_status,
    from_rst_code,
    percent_encode,
    trailers,
    trailers_only,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def test_codes_are_those_of_grpcio() -> None:
    assert {status.name: status.value for status in Status} == {code.name: code.value[0] for code in grpc.StatusCode}


@pytest.mark.parametrize(
    ("message", "encoded"),
    [
        ("plain text ~!", b"plain text ~!"),
        ("100%", b"100%25"),
        ("a\r\nb\0\x7f", b"a%0D%0Ab%00%7F"),
        ("ü€😀", b"%C3%BC%E2%82%AC%F0%9F%98%80"),
        ("", b""),
    ],
)
def test_percent_encoding(message: str, encoded: bytes) -> None:
    assert percent_encode(message) == encoded
    assert unquote_to_bytes(encoded) == message.encode()


@given(message=TEXT)
def test_encoded_messages_are_printable_ascii_and_come_back(message: str) -> None:
    encoded = percent_encode(message)
    assert re.fullmatch(rb"([ -$&-~]|%[0-9A-F]{2})*", encoded)
    assert unquote_to_bytes(encoded) == message.encode()


def test_a_lone_surrogate_does_not_break_the_trailers() -> None:
    assert percent_encode("a\udc80b") == b"a?b"


def test_trailers_without_a_message_have_the_status_only() -> None:
    assert trailers(Status.OK) == [(b"grpc-status", b"0")]


def test_trailers_carry_the_encoded_message() -> None:
    assert trailers(Status.UNAUTHENTICATED, "wer da?\n") == [
        (b"grpc-status", b"16"),
        (b"grpc-message", b"wer da?%0A"),
    ]


def test_trailers_only_begins_with_http_status_and_content_type() -> None:
    assert trailers_only(Status.UNAVAILABLE, "gone") == [
        (b":status", b"200"),
        (b"content-type", b"application/grpc"),
        (b"grpc-status", b"14"),
        (b"grpc-message", b"gone"),
    ]


@given(message=TEXT.map(lambda text: text * 40) | st.sampled_from(["€" * 9000, "x" * 1024, "x" * 1025, "%" * 400]))
def test_long_messages_are_cut_between_characters(message: str) -> None:
    encoded = dict(trailers(Status.INTERNAL, message)).get(b"grpc-message", b"")
    assert len(encoded) <= MAX_MESSAGE_BYTES
    kept = unquote_to_bytes(encoded).decode()
    assert message.startswith(kept)
    if kept != message:
        assert len(percent_encode(message[: len(kept) + 1])) > MAX_MESSAGE_BYTES


HTTP = {
    400: "INTERNAL",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "UNIMPLEMENTED",
    429: "UNAVAILABLE",
    431: "INTERNAL",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "UNAVAILABLE",
}


@pytest.mark.parametrize("code", [*HTTP, 200, 204, 301, 405, 413, 415, 500, 501, 599])
def test_http_statuses_map_as_the_grpc_document_says(code: int) -> None:
    assert from_http_status(code).name == HTTP.get(code, "UNKNOWN")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (0, "INTERNAL"),
        (1, "INTERNAL"),
        (2, "INTERNAL"),
        (3, "INTERNAL"),
        (4, "INTERNAL"),
        (5, "INTERNAL"),
        (6, "INTERNAL"),
        (7, "UNAVAILABLE"),
        (8, "CANCELLED"),
        (9, "INTERNAL"),
        (10, "INTERNAL"),
        (11, "RESOURCE_EXHAUSTED"),
        (12, "PERMISSION_DENIED"),
        (13, "INTERNAL"),
        (0xFFFFFFFF, "INTERNAL"),
    ],
)
def test_reset_codes_map_as_the_grpc_document_says(code: int, status: str) -> None:
    assert from_rst_code(code).name == status
