from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.errors import DistriChatError
from proxy.grpc_wire.timeout import MAX_TIMEOUT, InvalidTimeout, format_timeout, parse_timeout

UNITS = {"H": Fraction(3600), "M": Fraction(60), "S": Fraction(1)} | {
    unit: Fraction(1, per_second) for unit, per_second in (("m", 10**3), ("u", 10**6), ("n", 10**9))
}


def exactly(value: bytes) -> Fraction:
    """What the text says, without rounding."""
    return int(value[:-1]) * UNITS[value[-1:].decode()]


@given(digits=st.from_regex(r"\A[0-9]{1,8}\Z"), unit=st.sampled_from("HMSmun"))
def test_parsing_gives_the_nearest_float(digits: str, unit: str) -> None:
    assert parse_timeout(f"{digits}{unit}".encode()) == min(float(int(digits) * UNITS[unit]), MAX_TIMEOUT)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"1S", 1.0),
        (b"100m", 0.1),
        (b"00000009m", 0.009),
        (b"1n", 1e-9),
        (b"2M", 120.0),
        (b"3H", 10800.0),
        (b"0S", 0.0),
    ],
)
def test_each_unit(value: bytes, seconds: float) -> None:
    assert parse_timeout(value) == seconds


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"S",
        b"1",
        b"12345678",
        b"123456789S",
        b"-1S",
        b"+1S",
        b" 1S",
        b"1 S",
        b"1S ",
        b"1_0S",
        b"1.5S",
        b"0x1S",
        b"1s",
        b"1h",
        b"1ms",
        b"1\xc2\xb2S",
        "٣S".encode(),
        b"1S\n",
        b"9" * 60_000,
    ],
)
def test_anything_else_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidTimeout) as caught:
        parse_timeout(value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, DistriChatError)
    assert len(str(caught.value)) < 300


@given(value=st.binary(max_size=12))
def test_only_the_grammar_is_accepted(value: bytes) -> None:
    if re.fullmatch(rb"[0-9]{1,8}[HMSmun]", value):
        parse_timeout(value)
    else:
        with pytest.raises(InvalidTimeout):
            parse_timeout(value)


def test_what_no_event_loop_could_wait_for_is_clamped() -> None:
    assert parse_timeout(b"99999999H") == MAX_TIMEOUT
    assert format_timeout(1e30) == format_timeout(float("inf")) == b"52560000M"
    assert parse_timeout(b"52560000M") == MAX_TIMEOUT


@given(seconds=st.floats(1e-9, MAX_TIMEOUT) | st.floats(1e-9, 1.0) | st.floats(1.0, 1e6))
@example(0.1)
@example(0.09999999999999999)
@example(0.29)
@example(99.99999999999999)
@example(99999.99999999999)
@example(99999999.99999999)
def test_a_formatted_timeout_is_never_longer_and_as_precise_as_eight_digits_allow(seconds: float) -> None:
    value = format_timeout(seconds)
    assert re.fullmatch(rb"[0-9]{1,8}[HMSmun]", value)
    assert parse_timeout(value) <= seconds
    assert exactly(value) > 0
    # One more in the last place would be too much, unless float arithmetic cannot tell; and no finer unit had room.
    step = UNITS[value[-1:].decode()]
    assert exactly(value) + 2 * step > Fraction(seconds)
    finer = {"M": "S", "S": "m", "m": "u", "u": "n"}.get(value[-1:].decode())
    assert finer is None or Fraction(seconds) / UNITS[finer] >= 10**8 * (1 - Fraction(1, 10**12))


@pytest.mark.parametrize(
    ("seconds", "value"),
    [
        (10.0, b"10000000u"),
        (0.05, b"50000000n"),
        (0.1, b"100000u"),
        (1.5, b"1500000u"),
        (100.0, b"100000m"),
        (7200.0, b"7200000m"),
        (100_000.0, b"100000S"),
        (1e8, b"1666666M"),
        (1e-9, b"1n"),
        (1e-12, b"1n"),
        (0.0, b"0n"),
        (-3.0, b"0n"),
    ],
)
def test_formatting(seconds: float, value: bytes) -> None:
    assert format_timeout(seconds) == value
