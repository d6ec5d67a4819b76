"""One field of a protobuf message by its path, without generated code and without parsing the rest.

Rules (protobuf.dev/programming-guides/encoding):
- A message is a sequence of fields in any order: a tag varint (number << 3 | wire type) and a value.
- The FIRST occurrence of the field decides, as soon as all of its bytes are there; later ones are not looked at, even
  where a full parser would take the last. What follows the first occurrence is not validated either.
- In a path like `3.1` the first occurrence of field 3 is searched for its field 1, and nothing else is.
- Wrong UTF-8 is no matter here: the key is bytes.
- Nothing recurses, and nothing is kept but a torn varint and the bytes of the field itself, so neither deep groups nor
  huge lengths cost memory, and feeding a message byte by byte costs O(1) per byte.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from proxy.errors import DistriChatError

MAX_FIELD_NUMBER = (1 << 29) - 1
MAX_DEPTH = 8
"""Longest path: fields within fields."""

DEFAULT_MAX_KEY = 4096
"""Bytes of a key unless told otherwise."""

_MAX_TAG = (1 << 32) - 1
_MAX_LENGTH = (1 << 31) - 1  # protobuf's own limit of a message, 2 GiB
_MAX_VARINT = 10
_MAX_GROUPS = 100  # protobuf's default recursion limit: a parser would refuse deeper ones

MAX_FIELDS = 1_000
"""Fields looked at in search of a key. Each costs about 1 us, and 4 MiB of gzip-packed two-byte fields need only 4 KiB
on the wire: without this limit they would stop the event loop for seconds. At 10,000 a client that sends such calls one
after the other holds up the calls of others for 800 ms (tests/attack); keys come first, or nearly so."""

_UNKNOWN = 1 << 62  # stands for the length of a message that is not known: beyond all that can be received
_MAX_TOTAL = 1 << 61  # what is left of it never gets down to this

_VARINT, _FIXED64, _LENGTH, _START_GROUP, _END_GROUP, _FIXED32 = range(6)
_BEFORE_VARINT = (_VARINT, _LENGTH)
_VALUE_BYTES = (0, 8, 0, 0, 0, 4)  # of the wire types whose tag alone tells

Buffer = bytes | bytearray | memoryview


class Sentinel(Enum):
    """What a search gives when it does not give the key."""

    PENDING = "pending"
    ABSENT = "absent"


PENDING: Final = Sentinel.PENDING
"""Not known yet: more bytes are needed."""

ABSENT: Final = Sentinel.ABSENT
"""The field is not in the message, and cannot come any more."""


class FieldError(DistriChatError):
    """Base of what can be wrong with a message that is searched for a key. Always the sender's fault."""


class MalformedMessage(FieldError):  # noqa: N818 - named after what the peer sent
    """The bytes are not a protobuf message."""


class InvalidKey(FieldError):  # noqa: N818 - named after what the peer sent
    """The field is there, but not as a string, bytes or message, or it is longer than allowed."""


class TooManyFields(FieldError):  # noqa: N818 - named after what the peer sent
    """The key has not come within `MAX_FIELDS` fields."""


class FieldPath:
    """Where in a message the key is: field numbers from the outermost message inwards.

    `numbers` holds them; `tag` is the tag byte of a path that fast paths know (one field, numbered 1 to 15), else -1.
    """

    __slots__ = ("numbers", "tag")

    def __init__(self, numbers: tuple[int, ...]) -> None:
        """Raises `ValueError` unless there are 1 to `MAX_DEPTH` numbers of 1 to `MAX_FIELD_NUMBER`."""
        if not 1 <= len(numbers) <= MAX_DEPTH:
            raise ValueError(f"a field path has 1 to {MAX_DEPTH} numbers, not {len(numbers)}")
        for number in numbers:
            if not 1 <= number <= MAX_FIELD_NUMBER:
                raise ValueError(f"field number {number} is not within 1 .. {MAX_FIELD_NUMBER}")
        self.numbers = numbers
        self.tag = numbers[0] << 3 | _LENGTH if len(numbers) == 1 and numbers[0] <= 15 else -1

    @classmethod
    def parse(cls, text: str) -> FieldPath:
        """Compile text such as `1` or `3.1`. Raises `ValueError` naming the text and what is wrong with it."""
        parts = text.split(".")
        # isdigit() alone would let other scripts' digits through, and int() spaces, signs and underscores.
        if not all(part.isascii() and part.isdigit() and len(part) <= 10 for part in parts):
            raise ValueError(f"field path {text!r} is not field numbers separated by dots")
        try:
            return cls(tuple(map(int, parts)))
        except ValueError as error:
            raise ValueError(f"field path {text!r}: {error}") from None

    def __str__(self) -> str:
        return ".".join(map(str, self.numbers))

    def __repr__(self) -> str:
        return f"FieldPath.parse({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return self.numbers == other.numbers if isinstance(other, FieldPath) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.numbers)

    def find(
        self,
        message: Buffer,
        start: int,
        end: int,
        complete: bool,  # noqa: FBT001
        max_length: int = DEFAULT_MAX_KEY,
    ) -> bytes | Sentinel:
        """The key in the message of which `message[start:end]` is there so far; `complete` says that this is all of it.

        The bytes as soon as all of the field is there (`b""` for an empty field), `PENDING` while it may still come
        and the message is not complete, `ABSENT` when it cannot. Starts over on each call: to search a message that
        arrives in pieces, feed a `FieldScanner`.

        Raises `MalformedMessage`, and `InvalidKey` for a field that is not length-delimited or declares more than
        `max_length` bytes, at once when the length is seen.
        """
        # The field stands first and is short: nearly every message.
        if end - start >= 2 and message[start] == self.tag:
            length = message[start + 1]
            stop = start + 2 + length
            if length < 128 and stop <= end and length <= max_length:
                return bytes(message[start + 2 : stop])
        return FieldScanner(self, max_length).feed(message[start:end], complete)


class FieldScanner:
    """The search for one field in one message that arrives in pieces.

    Feed each piece once, in order. `total` is the message's length where it is known beforehand: lengths that reach
    beyond it are then refused at once. After a key, `ABSENT` or an error the search is over: do not feed it again.
    """

    __slots__ = (
        "_collected",
        "_depth",
        "_fields_left",
        "_groups",
        "_left",
        "_max_length",
        "_missing",
        "_numbers",
        "_skip",
        "_torn",
    )

    def __init__(self, path: FieldPath, max_length: int = DEFAULT_MAX_KEY, total: int | None = None) -> None:
        self._numbers = path.numbers
        self._depth = 0  # index into _numbers of the field looked for now
        self._max_length = max_length
        self._fields_left = MAX_FIELDS
        # Counted from the first byte that is not dealt with:
        self._left = _UNKNOWN if total is None else total  # bytes up to the end of the (sub)message searched now
        self._skip = 0  # bytes of a value that still have to come and do not matter
        self._torn = b""  # the beginning of a tag and a varint that are not all there; not dealt with
        self._groups: list[int] = []  # numbers of the groups that are open, outermost first
        self._collected: bytearray | None = None  # the key so far, once its length is known and not all of it there
        self._missing = 0  # bytes of the key that still have to come

    def feed(self, data: Buffer, complete: bool) -> bytes | Sentinel:  # noqa: FBT001
        """Take the next bytes; `complete` says that they are the last. Returns and raises as `FieldPath.find` does."""
        found = self._scan(data) if self._collected is None else self._collect(self._collected, data)
        if complete and isinstance(found, Sentinel):
            if self._torn or self._skip or self._groups or self._collected is not None:
                raise MalformedMessage("message ends inside a field")
            if found is PENDING and self._left <= _MAX_TOTAL:
                raise MalformedMessage("message ends before its declared length")
            return ABSENT
        return found

    def _scan(self, data: Buffer) -> bytes | Sentinel:
        """Field after field, from the first byte that is not dealt with."""
        if self._torn:
            data = self._torn + data
            self._torn = b""
        size = len(data)
        limit = self._left  # position in `data` (or after it) where the (sub)message ends
        pos = self._skip
        while pos < size and pos < limit:
            begin = pos
            tag, length, pos = _field_header(data, begin, min(size, limit))
            if not pos:
                return self._tear(data, begin, limit)
            self._fields_left -= 1
            if self._fields_left < 0:
                raise TooManyFields(f"more than {MAX_FIELDS} fields before the key")
            if length > limit - pos:
                raise MalformedMessage("a field reaches beyond the end of the message")
            if not self._is_wanted(tag):
                pos += length
            elif self._depth + 1 < len(self._numbers):
                self._depth += 1
                limit = pos + length
            else:
                return self._take(data, pos, length)
        self._skip = max(0, pos - size)
        self._left = limit - size
        if pos < limit:
            return PENDING
        if self._groups:
            raise MalformedMessage("message ends inside a group")
        return ABSENT

    def _tear(self, data: Buffer, begin: int, limit: int) -> Sentinel:
        """What begins at `begin` is not all there: keep it for the next piece."""
        if limit <= len(data):
            raise MalformedMessage("message ends inside a varint")
        self._torn = bytes(data[begin:])
        self._skip = 0
        self._left = limit - begin
        return PENDING

    def _is_wanted(self, tag: int) -> bool:
        """Whether this is the tag of the field looked for now. Keeps account of groups, whose fields never are."""
        wire_type = tag & 7
        if wire_type == _END_GROUP:
            if not self._groups or self._groups.pop() != tag >> 3:
                raise MalformedMessage(f"end of group {tag >> 3}, which is not the one that is open")
            return False
        wanted = not self._groups and tag >> 3 == self._numbers[self._depth]
        if wanted and wire_type != _LENGTH:
            raise InvalidKey(f"field {tag >> 3} has wire type {wire_type}, not 2 (length-delimited)")
        if wire_type == _START_GROUP:
            if len(self._groups) >= _MAX_GROUPS:
                raise MalformedMessage(f"more than {_MAX_GROUPS} nested groups")
            self._groups.append(tag >> 3)
        return wanted

    def _take(self, data: Buffer, pos: int, length: int) -> bytes | Sentinel:
        """The key begins at `pos`: return it, or begin to collect it."""
        if length > self._max_length:
            raise InvalidKey(f"the key has {length} bytes, more than {self._max_length}")
        if pos + length <= len(data):
            return bytes(data[pos : pos + length])
        self._collected = bytearray(data[pos:])
        self._missing = length - len(self._collected)
        return PENDING

    def _collect(self, collected: bytearray, data: Buffer) -> bytes | Sentinel:
        """More of a key whose length is known."""
        collected += data[: self._missing]
        self._missing -= len(data)
        return bytes(collected) if self._missing <= 0 else PENDING


def _field_header(data: Buffer, pos: int, end: int) -> tuple[int, int, int]:
    """What stands before a value: (tag, bytes of the value that follow, position after).

    The value of a varint field counts as part of the header, since only reading it tells its length. The position is
    0 when `end` comes first. Raises `MalformedMessage` for what no message has.
    """
    tag, pos = _varint(data, pos, end)
    if not pos:
        return 0, 0, 0
    wire_type = tag & 7
    if not 8 <= tag <= _MAX_TAG:
        raise MalformedMessage(f"field number {tag >> 3}")
    if wire_type in _BEFORE_VARINT:
        value, pos = _varint(data, pos, end)
        if wire_type == _VARINT:
            return tag, 0, pos
        if value > _MAX_LENGTH:
            raise MalformedMessage(f"field {tag >> 3} declares {value} bytes")
        return tag, value, pos
    if wire_type > _FIXED32:
        raise MalformedMessage(f"field {tag >> 3} has wire type {wire_type}, which does not exist")
    return tag, _VALUE_BYTES[wire_type], pos


def _varint(data: Buffer, pos: int, end: int) -> tuple[int, int]:
    """The varint at `pos` and the position after it, which is 0 when `end` comes first.

    Raises `MalformedMessage` for one of more than 10 bytes, also when the eleventh is still to come.
    """
    value = shift = 0
    for at in range(pos, min(end, pos + _MAX_VARINT)):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + 1
        shift += 7
    if end - pos >= _MAX_VARINT:
        raise MalformedMessage(f"a varint of more than {_MAX_VARINT} bytes")
    return 0, 0
