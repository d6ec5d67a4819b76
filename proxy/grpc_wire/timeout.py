"""`grpc-timeout`: how long the caller will still wait.

PROTOCOL-HTTP2.md, "Requests": `Timeout -> "grpc-timeout" TimeoutValue TimeoutUnit`, a value of at most 8 ASCII digits
and one of the units H M S m u n. Nearly every call brings another value, so nothing is memoised.
"""

from __future__ import annotations

from proxy.errors import DistriChatError

MAX_TIMEOUT = 100 * 365 * 86400.0
"""Seconds; longer timeouts are read and written as this. The format allows 11,407 years, which event loops do not."""

_MAX_DIGITS = 8
# By the byte of the unit. Dividing gives the nearest float to the decimal value, multiplying by 1e-3 does not.
_PER_SECOND = {ord("m"): 1000, ord("u"): 1_000_000, ord("n"): 1_000_000_000}
_SECONDS = {ord("S"): 1.0, ord("M"): 60.0, ord("H"): 3600.0}


class InvalidTimeout(DistriChatError, ValueError):  # noqa: N818 - named after what the peer sent
    """A `grpc-timeout` that is not 1 to 8 digits and a unit."""

    def __init__(self, value: bytes) -> None:
        # Cut: the value is the client's, and may be as long as the header limit allows.
        super().__init__(f"grpc-timeout {value[:32]!r} is not 1 to 8 digits and one of H M S m u n")


def parse_timeout(value: bytes) -> float:
    """The seconds in a `grpc-timeout`, at most `MAX_TIMEOUT`; 0.0 means that the deadline has passed.

    Raises `InvalidTimeout` for anything but 1 to 8 ASCII digits and a unit: signs, spaces, other digits, no unit.
    """
    digits = value[:-1]
    # isdigit() of bytes knows ASCII only and is False for b"", so int() never sees its own extras ("_", "+", spaces).
    if digits.isdigit() and len(digits) <= _MAX_DIGITS:
        unit = value[-1]
        if per_second := _PER_SECOND.get(unit):
            return int(digits) / per_second
        if seconds := _SECONDS.get(unit):
            return min(int(digits) * seconds, MAX_TIMEOUT)
    raise InvalidTimeout(value)


def format_timeout(seconds: float) -> bytes:
    """A `grpc-timeout` for the seconds that are left, in the finest unit that has room.

    Rounded down, so the peer never gets more than is left, except that anything above zero gives at least `1n`, since
    the format has no less. Zero and negative give `0n`, for the caller not to send; more than `MAX_TIMEOUT` gives it.
    """
    if seconds < 0.1:
        return b"%dn" % (_floor(seconds, 1_000_000_000) or 1) if seconds > 0 else b"0n"
    if seconds < 100:
        return b"%du" % _floor(seconds, 1_000_000)
    if seconds < 100_000:
        return b"%dm" % _floor(seconds, 1000)
    whole = int(min(seconds, MAX_TIMEOUT))
    return b"%dS" % whole if whole < 10**_MAX_DIGITS else b"%dM" % (whole // 60)


def _floor(seconds: float, per_second: int) -> int:
    """The whole units in `seconds`. The product may have been rounded up to a whole unit: check, and step back."""
    count = int(seconds * per_second)
    return count - 1 if count / per_second > seconds else count
