from __future__ import annotations

import asyncio

import pytest

from backend.engine import EchoEngine
from backend.session import Message, Session


async def reply(session: Session, **settings: float) -> list[str]:
    return [token async for token in EchoEngine(**settings).reply(session, session.recent[-1])]


async def test_first_message_is_called_the_first() -> None:
    assert "".join(await reply(Session("chat", 1, (Message("hi"),)))) == "This is message 1, the first of our chat."


async def test_reply_tells_the_number_and_the_message_before() -> None:
    tokens = await reply(Session("chat", 7, (Message("well,  then"), Message("hi"))))
    assert "".join(tokens) == 'This is message 7 of our chat. Before it came: "well,  then"'
    assert tokens[:3] == ["This", " is", " message"]


async def test_reply_without_the_message_before_tells_the_number() -> None:
    assert "".join(await reply(Session("chat", 7, (Message("hi"),)))) == "This is message 7 of our chat."


async def test_a_long_message_is_not_quoted_whole() -> None:
    text = "".join(await reply(Session("chat", 2, (Message("x" * 1_000_000), Message("hi")))))
    assert text.endswith('x..."')
    assert len(text) < 300


async def test_token_delay_waits_before_each_token(monkeypatch: pytest.MonkeyPatch) -> None:
    delays: list[float] = []

    async def sleep(delay: float) -> None:
        delays.append(delay)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    session = Session("chat", 1, (Message("hi"),))
    tokens = await reply(session, token_delay=0.25)
    assert delays == [0.25] * len(tokens)
    await reply(session)
    assert len(delays) == len(tokens)
