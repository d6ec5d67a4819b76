from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.cluster.health import HealthState, Sign

SIGNS = {"+": Sign.PASSED, "-": Sign.FAILED, "n": Sign.REFUSED}


def history(signs: str, unhealthy: int = 3, healthy: int = 2) -> str:
    """`H` or `u` after each sign."""
    state = HealthState(unhealthy, healthy)
    return "".join((state.observe(SIGNS[sign]), "H" if state.healthy else "u")[1] for sign in signs)


@pytest.mark.parametrize(
    ("signs", "expected"),
    [
        # The first sign decides alone.
        ("+", "H"),
        ("-", "u"),
        ("n", "u"),
        # One pass is enough for a server that never passed, however often it failed.
        ("-+", "uH"),
        ("-----+", "uuuuuH"),
        ("n-+", "uuH"),
        # Then the thresholds hold: three failures in a row, two passes in a row.
        ("+--+--+---", "HHHHHHHHHu"),
        ("+---+-++", "HHHuuuuH"),
        ("-+---++", "uHHHuuH"),
        # The server's own word holds at once, both ways.
        ("+n", "Hu"),
        ("+n+", "HuH"),
        ("+nnn+", "HuuuH"),
        ("+---n+", "HHHuuH"),
        # After it was silent it has to prove itself, whatever it said before.
        ("+n-++", "HuuuH"),
        ("+n-+n+", "HuuuuH"),
        # One failure does not survive a pass, nor a refusal.
        ("+--n+--", "HHHuHHH"),
        ("+--n+---", "HHHuHHHu"),
    ],
)
def test_what_a_history_of_signs_comes_to(signs: str, expected: str) -> None:
    assert history(signs) == expected


@pytest.mark.parametrize(
    ("unhealthy", "healthy", "signs", "expected"),
    [
        (1, 1, "+-+-", "HuHu"),
        (1, 3, "+-+++", "HuuuH"),
        (5, 1, "+-----+", "HHHHHuH"),
    ],
)
def test_the_thresholds_are_the_settings(unhealthy: int, healthy: int, signs: str, expected: str) -> None:
    assert history(signs, unhealthy, healthy) == expected


def test_it_is_calm_while_there_is_nothing_to_look_into() -> None:
    state = HealthState(3, 2)
    seen = []
    for sign in "+-+---++n+":
        state.observe(SIGNS[sign])
        seen.append(state.calm)
    assert seen == [True, False, True, False, False, False, False, True, False, True]


@given(st.lists(st.sampled_from(list(Sign))), st.integers(1, 5), st.integers(1, 5))
def test_a_flip_is_told_exactly_when_it_happens_and_never_by_a_contrary_sign(
    signs: list[Sign], unhealthy: int, healthy: int
) -> None:
    state = HealthState(unhealthy, healthy)
    for sign in signs:
        before = state.healthy
        flipped = state.observe(sign)
        assert flipped == (state.healthy != before)
        if flipped:
            assert state.healthy == (sign is Sign.PASSED)
        if sign is Sign.REFUSED:
            assert not state.healthy
