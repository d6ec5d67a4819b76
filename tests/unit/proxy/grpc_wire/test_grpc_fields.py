from __future__ import annotations

import re
from contextlib import suppress

import pytest
from districhat.chat_pb2 import ChatRequest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.grpc_wire.fields import (
    ABSENT,
    DEFAULT_MAX_KEY,
    MAX_FIELDS,
    PENDING,
    FieldError,
    FieldPath,
    FieldScanner,
    InvalidKey,
    MalformedMessage,
    Sentinel,
    TooManyFields,
)

ONE = FieldPath.parse("1")
NESTED = FieldPath.parse("3.1")


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def tag(number: int, wire_type: int) -> bytes:
    return varint(number << 3 | wire_type)


def text(number: int, value: bytes) -> bytes:
    return tag(number, 2) + varint(len(value)) + value


NUMBERS = st.integers(1, 5) | st.sampled_from([15, 16, 2047, 2048, 2**29 - 1])
SCALARS = st.one_of(
    st.builds(lambda n, v: tag(n, 0) + varint(v), NUMBERS, st.integers(0, 2**64 - 1)),
    st.builds(lambda n, v: tag(n, 1) + v, NUMBERS, st.binary(min_size=8, max_size=8)),
    st.builds(lambda n, v: tag(n, 5) + v, NUMBERS, st.binary(min_size=4, max_size=4)),
    st.builds(text, NUMBERS, st.binary(max_size=20) | st.binary(min_size=120, max_size=300)),
)
FIELDS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.builds(lambda n, parts: tag(n, 3) + b"".join(parts) + tag(n, 4), NUMBERS, st.lists(inner, max_size=3)),
        st.builds(lambda n, parts: text(n, b"".join(parts)), NUMBERS, st.lists(inner, max_size=3)),
    ),
    max_leaves=8,
)
MESSAGES = st.lists(FIELDS, max_size=6).map(b"".join)
PATHS = st.lists(NUMBERS, min_size=1, max_size=3).map(lambda numbers: FieldPath(tuple(numbers)))


def by_protobuf(message: bytes, path: FieldPath) -> bytes | Sentinel | type[InvalidKey]:
    """The first occurrence as the real library sees it, or DecodeError.

    The library lets field number 0 pass, which the specification forbids, and Go and Java refuse: so do we here.
    """
    for depth, number in enumerate(path.numbers, 1):
        parsed = Empty()
        parsed.ParseFromString(message)
        if has_field_zero(UnknownFieldSet(parsed)):
            raise DecodeError("field number 0")
        first = next((field for field in UnknownFieldSet(parsed) if field.field_number == number), None)
        if first is None:
            return ABSENT
        if first.wire_type != 2:
            return InvalidKey
        message = first.data
        if depth == len(path.numbers):
            break
    return message


def has_field_zero(fields: UnknownFieldSet) -> bool:
    return any(f.field_number == 0 or (f.wire_type == 3 and has_field_zero(f.data)) for f in fields)


def by_scanner(pieces: list[bytes], path: FieldPath, total: int | None = None) -> bytes | Sentinel:
    """All pieces fed, the last as complete; stops at the first result."""
    scanner = FieldScanner(path, total=total)
    for index, piece in enumerate(pieces, 1):
        found = scanner.feed(piece, index == len(pieces))
        if found is not PENDING:
            return found
    raise AssertionError("pending although complete")


def verdict(pieces: list[bytes], path: FieldPath, total: int | None = None) -> bytes | Sentinel | type[FieldError]:
    try:
        return by_scanner(pieces, path, total)
    except FieldError as error:
        return type(error)


def cut(message: bytes, places: list[int]) -> list[bytes]:
    ends = sorted(min(place, len(message)) for place in places)
    return [message[start:end] for start, end in zip([0, *ends], [*ends, len(message)], strict=True)]


# --- paths ---


@pytest.mark.parametrize(
    ("spelling", "numbers"),
    [("1", (1,)), ("3.1", (3, 1)), ("536870911", (2**29 - 1,)), ("1.2.3.4.5.6.7.8", tuple(range(1, 9)))],
)
def test_paths_are_numbers_separated_by_dots(spelling: str, numbers: tuple[int, ...]) -> None:
    path = FieldPath.parse(spelling)
    assert path.numbers == numbers
    assert str(path) == spelling
    assert path == FieldPath(numbers)
    assert hash(path) == hash(FieldPath(numbers))


@pytest.mark.parametrize(
    "spelling",
    ["", ".", "1.", ".1", "1..2", "0", "3.0", "536870912", "-1", "+1", " 1", "1 ", "1_0", "a", "²", "٣", "9" * 5000],
)
def test_other_paths_are_refused_by_name(spelling: str) -> None:
    with pytest.raises(ValueError, match="field path"):
        FieldPath.parse(spelling)


def test_paths_of_more_than_eight_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="1 to 8 numbers, not 9"):
        FieldPath.parse("1.2.3.4.5.6.7.8.9")


# --- finding ---


def test_the_field_of_a_real_message_is_found() -> None:
    message = ChatRequest(chat_id="chat-000", message="x" * 500, sender_id="alice", timestamp=1700000000)
    data = message.SerializeToString()
    assert ONE.find(data, 0, len(data), True) == b"chat-000"
    assert FieldPath.parse("3").find(data, 0, len(data), True) == b"alice"
    assert FieldPath.parse("2").find(data, 0, len(data), True) == b"x" * 500
    assert FieldPath.parse("9").find(data, 0, len(data), True) is ABSENT


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("path", [ONE, FieldPath.parse("2")])
def test_any_buffer_is_searched_within_its_bounds_and_gives_bytes(kind: type[bytes], path: FieldPath) -> None:
    message = text(1, b"one") + text(2, b"two")
    data = kind(b"\xff\xff" + message + b"\xff")
    found = path.find(data, 2, 2 + len(message), True)
    assert type(found) is bytes
    assert found in (b"one", b"two")


def test_the_first_occurrence_decides_and_what_follows_is_not_read() -> None:
    data = text(1, b"first") + text(1, b"second") + b"\xff\xff"
    assert ONE.find(data, 0, len(data), True) == b"first"


def test_an_empty_field_is_empty_and_not_absent() -> None:
    assert ONE.find(text(1, b""), 0, 2, False) == b""


def test_a_key_is_found_before_the_message_is_complete() -> None:
    data = text(4, b"x" * 200) + text(1, b"chat-000")
    assert ONE.find(data, 0, len(data), False) == b"chat-000"
    assert ONE.find(data, 0, len(data) - 1, False) is PENDING


def test_an_empty_message_has_no_field() -> None:
    assert ONE.find(b"", 0, 0, True) is ABSENT
    assert ONE.find(b"", 0, 0, False) is PENDING
    assert FieldScanner(ONE, total=0).feed(b"", False) is ABSENT


def test_a_dotted_path_searches_the_first_parent_only() -> None:
    with_key, without = text(3, text(2, b"other") + text(1, b"key")), text(3, text(2, b"other"))
    assert by_scanner([text(1, b"outer") + with_key], NESTED) == b"key"
    assert by_scanner([without + with_key], NESTED) is ABSENT
    # Known as soon as the parent is there, or even announced to be skipped to its end.
    assert NESTED.find(without, 0, len(without), False) is ABSENT
    assert NESTED.find(with_key, 0, len(with_key), False) == b"key"


def test_fields_inside_groups_are_not_the_field() -> None:
    data = tag(7, 3) + text(1, b"inside") + tag(8, 3) + text(1, b"deeper") + tag(8, 4) + tag(7, 4) + text(1, b"outside")
    assert by_scanner([data], ONE) == b"outside"


def test_numbers_above_15_are_found_without_a_fast_path() -> None:
    data = text(16, b"key")
    assert FieldPath.parse("16").find(data, 0, len(data), True) == b"key"


@given(message=MESSAGES, path=PATHS)
@example(message=text(3, text(1, b"k")), path=NESTED)
def test_well_formed_messages_give_what_the_protobuf_library_finds(message: bytes, path: FieldPath) -> None:
    try:
        expected = by_protobuf(message, path)
    except DecodeError:
        # A parent is a string that is not a message. The key may stand before the damage, and in a path of three the
        # child may be complete, and lack it, before the damage.
        found = verdict([message], path)
        early = found is ABSENT and len(path.numbers) > 2
        assert early or isinstance(found, bytes) or found in (MalformedMessage, InvalidKey)
        return
    assert verdict([message], path) == expected


@given(
    message=st.binary(max_size=40) | st.lists(st.sampled_from([8, 9, 10, 11, 12, 13, 0, 1, 2, 3, 128, 255])).map(bytes)
)
def test_what_the_protobuf_library_refuses_is_refused_unless_the_key_came_before(message: bytes) -> None:
    found = verdict([message], ONE)
    try:
        expected = by_protobuf(message, ONE)
    except DecodeError:
        # The library takes tags and lengths of up to 5 bytes; we, like Go and Java, of up to 10.
        lenient = re.search(rb"[\x80-\xff]{5}", message) and found is ABSENT
        assert lenient or isinstance(found, bytes) or found in (MalformedMessage, InvalidKey)
    else:
        assert found == expected


@given(message=MESSAGES, path=PATHS, places=st.lists(st.integers(0, 400), max_size=8), known=st.booleans())
def test_pieces_give_what_the_whole_gives(message: bytes, path: FieldPath, places: list[int], known: bool) -> None:
    total = len(message) if known else None
    assert verdict(cut(message, places), path, total) == verdict([message], path)
    assert verdict([message[i : i + 1] for i in range(len(message))] or [b""], path, total) == verdict([message], path)


@given(message=MESSAGES, path=PATHS, data=st.data())
def test_the_fast_path_gives_what_the_scanner_gives(message: bytes, path: FieldPath, data: st.DataObject) -> None:
    end = data.draw(st.integers(0, len(message)))
    try:
        expected = FieldScanner(path, 100).feed(message[:end], False)
    except FieldError as error:
        with pytest.raises(type(error)):
            path.find(message, 0, end, False, 100)
    else:
        assert path.find(message, 0, end, False, 100) == expected


@given(message=st.binary(max_size=60), path=PATHS, complete=st.booleans(), total=st.none() | st.integers(0, 80))
def test_garbage_raises_field_errors_only(message: bytes, path: FieldPath, complete: bool, total: int | None) -> None:
    scanner = FieldScanner(path, total=total)
    with suppress(FieldError):
        scanner.feed(message, complete)


# --- errors ---

MALFORMED = {
    "field number 0": b"\x02\x00",
    "field number above 2**29-1": varint((1 << 32) | 2) + b"\x00",
    "wire type 6": tag(2, 6) + b"\x00",
    "wire type 7": tag(2, 7) + b"\x00",
    "wire type 6 of the key": tag(1, 6) + b"\x00",
    "end of a group that was not begun": tag(2, 4),
    "end of the key as a group that was not begun": tag(1, 4),
    "end of another group": tag(2, 3) + tag(3, 4),
    "group without an end": tag(2, 3) + tag(2, 0) + b"\x00",
    "101 nested groups": tag(2, 3) * 101 + tag(2, 4) * 101,
    "tag of 11 bytes": b"\x92" + b"\x80" * 9 + b"\x00",
    "value of 11 bytes": tag(2, 0) + b"\x80" * 10 + b"\x00",
    "length of 11 bytes": tag(2, 2) + b"\x80" * 10 + b"\x00",
    "length of 2 GiB": tag(2, 2) + varint(2**31),
    "truncated tag": b"\x80",
    "truncated value": tag(2, 0) + b"\x80",
    "missing value": tag(2, 0),
    "missing length": tag(2, 2),
    "truncated fixed64": tag(2, 1) + b"\x00" * 7,
    "truncated fixed32": tag(2, 5) + b"\x00" * 3,
    "truncated bytes": tag(2, 2) + b"\x05four",
    "truncated key": tag(1, 2) + b"\x05four",
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_broken_message_is_malformed(name: str, known: bool, whole: bool) -> None:
    message = MALFORMED[name]
    pieces = [message] if whole else [message[i : i + 1] for i in range(len(message))]
    assert verdict(pieces, ONE, len(message) if known else None) is MalformedMessage


@pytest.mark.parametrize("name", MALFORMED)
def test_broken_parent_is_malformed_though_more_follows(name: str) -> None:
    message = text(3, MALFORMED[name]) + b"\x08\x00" * 20
    assert verdict([message], NESTED) is MalformedMessage


@pytest.mark.parametrize("after", [b"\x80" * 10, tag(2, 0) + b"\xff" * 10])
def test_endless_varint_is_refused_before_its_end(after: bytes) -> None:
    with pytest.raises(MalformedMessage):
        FieldScanner(ONE).feed(after, False)


def test_length_beyond_the_known_end_is_refused_at_once() -> None:
    with pytest.raises(MalformedMessage):
        FieldScanner(ONE, total=10).feed(tag(2, 2) + b"\x09", False)
    with pytest.raises(MalformedMessage):
        FieldScanner(NESTED).feed(tag(3, 2) + b"\x04" + tag(1, 2) + b"\x03", False)


@pytest.mark.parametrize(
    "value", [tag(1, 0) + b"\x05", tag(1, 1) + b"\0" * 8, tag(1, 5) + b"\0" * 4, tag(1, 3) + tag(1, 4)]
)
def test_key_that_is_not_length_delimited_is_invalid(value: bytes) -> None:
    with pytest.raises(InvalidKey, match="wire type"):
        ONE.find(value, 0, len(value), True)


def test_parent_that_is_not_length_delimited_is_invalid() -> None:
    assert verdict([tag(3, 0) + b"\x00"], NESTED) is InvalidKey


def test_key_above_the_limit_is_invalid_as_soon_as_its_length_is_there() -> None:
    fits, exceeds = text(1, b"k" * DEFAULT_MAX_KEY), tag(1, 2) + varint(DEFAULT_MAX_KEY + 1)
    assert ONE.find(fits, 0, len(fits), False) == b"k" * DEFAULT_MAX_KEY
    with pytest.raises(InvalidKey, match="4097 bytes, more than 4096"):
        ONE.find(exceeds, 0, len(exceeds), False)
    with pytest.raises(InvalidKey):
        ONE.find(text(1, b"long"), 0, 6, True, max_length=3)


def test_parent_may_be_longer_than_a_key() -> None:
    data = text(3, text(2, b"x" * 10_000) + text(1, b"key"))
    assert NESTED.find(data, 0, len(data), False) == b"key"


def test_a_hundred_nested_groups_are_still_skipped() -> None:
    data = tag(2, 3) * 100 + tag(2, 4) * 100 + text(1, b"key")
    assert by_scanner([data], ONE) == b"key"


def test_the_key_must_come_within_a_bounded_number_of_fields() -> None:
    field = tag(2, 0) + b"\x00"
    assert by_scanner([field * (MAX_FIELDS - 1) + text(1, b"key")], ONE) == b"key"
    assert verdict([field * MAX_FIELDS + text(1, b"key")], ONE) is TooManyFields


def test_nothing_is_kept_of_what_is_skipped() -> None:
    scanner = FieldScanner(ONE)
    scanner.feed(tag(2, 2) + varint(2**31 - 1), False)
    for _ in range(100):
        assert scanner.feed(b"x" * 16384, False) is PENDING
    assert (scanner._torn, scanner._collected) == (b"", None)
