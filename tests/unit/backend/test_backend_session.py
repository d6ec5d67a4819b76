from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backend.cache.levels import Resident
from backend.session import Message, Session


def test_a_message_makes_a_new_session_and_leaves_the_old_one() -> None:
    old = Session("chat", 1, (Message("a"),), 7)
    resident = Resident(old)
    new = resident.append(Message("b"), 7, keep=5)
    assert resident.size == new.size > old.size
    assert old == Session("chat", 1, (Message("a"),), 7)
    assert new == Session("chat", 2, (Message("a"), Message("b")), 7)


@given(st.integers(1, 6), st.lists(st.text(max_size=3), max_size=12))
def test_length_counts_all_messages_and_the_last_ones_are_held(keep: int, texts: list[str]) -> None:
    session = Session("chat")
    resident = Resident(session)
    for text in texts:
        session = resident.append(Message(text), 3, keep=keep)
        assert session is resident.session
        assert resident.size == session.size
    assert session.length == len(texts)
    assert [message.text for message in session.recent] == texts[-keep:]


def test_a_session_as_of_an_earlier_message_ends_with_it() -> None:
    a, b, c = Message("a"), Message("b"), Message("c")
    session = Session("chat", 10, (a, b, c), 7)
    assert session.as_of(10) == session
    assert session.as_of(8) == Session("chat", 8, (a,), 7)
    assert session.as_of(7) is None
    assert session.as_of(11) is None
