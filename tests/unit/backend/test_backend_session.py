from __future__ import annotations

from backend.session import Message, Session


def test_a_message_makes_a_new_session_and_leaves_the_old_one() -> None:
    old = Session("chat")
    new = old.appended(Message("a"), keep=2)
    assert (old, new) == (Session("chat"), Session("chat", 1, (Message("a"),)))


def test_length_counts_messages_no_longer_held() -> None:
    session = Session("chat")
    for text in "abc":
        session = session.appended(Message(text), keep=2)
    assert session == Session("chat", 3, (Message("b"), Message("c")))
