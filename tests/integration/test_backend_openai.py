"""The engine that asks an OpenAI-compatible endpoint, against a stub of that API: alone, and in a server."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from districhat.chat_pb2 import ChatRequest

from backend.errors import EngineError, EngineUnavailableError
from backend.openai_engine import OpenAIEngine
from backend.server import ChatServer
from backend.session import Message, Session
from backend.settings import BackendSettings
from tests.support.backend_server import chat_stub
from tests.support.openai_server import DONE, OpenAIStub, openai_stub, piece
from tests.support.polling import eventually
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SESSION = Session("chat", 2, (Message("hi", reply="hello"), Message("how are you?")))


@asynccontextmanager
async def engine_on(stub: OpenAIStub, **settings: Any) -> AsyncIterator[OpenAIEngine]:
    engine = OpenAIEngine(stub.url, "a-model", **settings)
    yield engine
    await engine.close()


async def reply(engine: OpenAIEngine, session: Session = SESSION) -> list[str]:
    return [token async for token in engine.reply(session, session.recent[-1])]


@pytest.mark.parametrize("cut", [0, 1, 7])
async def test_a_reply_comes_in_the_pieces_that_the_endpoint_sends(cut: int) -> None:
    async with openai_stub() as stub, engine_on(stub, api_key="secret", system_prompt="Be kind.") as engine:
        stub.cut = cut
        assert await reply(engine) == ["Hello", " world"]
        assert stub.requests == [
            {
                "model": "a-model",
                "stream": True,
                "messages": [
                    {"role": "system", "content": "Be kind."},
                    {"role": "user", "content": "hi"},
                    {"role": "assistant", "content": "hello"},
                    {"role": "user", "content": "how are you?"},
                ],
            }
        ]
        assert stub.headers[0]["authorization"] == "Bearer secret"


async def test_a_reply_is_cut_off_at_its_limit() -> None:
    async with openai_stub() as stub, engine_on(stub, max_reply=7) as engine:
        assert await reply(engine) == ["Hello", " w"]


async def test_text_of_any_kind_comes_through() -> None:
    async with openai_stub() as stub, engine_on(stub) as engine:
        stub.cut = 1
        stub.body = [piece("data: [DONE]\n"), piece("ünï 🦀"), piece(""), DONE, b"anything after the end"]
        assert "".join(await reply(engine)) == "data: [DONE]\nünï 🦀"


async def test_a_reply_that_nobody_wants_any_more_is_stopped_at_the_endpoint() -> None:
    async with openai_stub() as stub, engine_on(stub) as engine:
        stub.gate.clear()
        async with aclosing(engine.reply(SESSION, SESSION.recent[-1])) as tokens:  # type: ignore[type-var]
            assert await anext(tokens) == "Hello"  # type: ignore[arg-type]
        async with asyncio.timeout(60):
            await stub.gone.wait()


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (500, [b"out of\n memory"], EngineUnavailableError, "answered HTTP 500: out of memory"),
        (429, [b"slow down"], EngineUnavailableError, "answered HTTP 429: slow down"),
        (404, [b"x" * 10_000], EngineError, "answered HTTP 404: xxx"),
        (401, [b"no key"], EngineError, "answered HTTP 401: no key"),
        (200, [piece("Hel")], EngineUnavailableError, "broke off in the middle"),
        (200, [b""], EngineUnavailableError, "broke off in the middle"),
        (200, [b"data: {not json}\n\n"], EngineError, "no chat completion"),
        (200, [b"data: [1]\n\n"], EngineError, "no chat completion"),
        (200, [b'data: {"choices": [{}]}\n\n'], EngineError, "no chat completion"),
        (200, [b'data: {"error": "overloaded"}\n\n'], EngineUnavailableError, "overloaded"),
        (200, [b"<html>" * 200_000], EngineError, "a line that is too long"),
    ],
)
async def test_an_endpoint_that_fails_is_told_as_it_is(
    status: int, body: list[bytes], kind: type[EngineError], words: str
) -> None:
    async with openai_stub() as stub, engine_on(stub) as engine:
        stub.status, stub.body = status, body
        with pytest.raises(EngineError, match=words) as caught:
            await reply(engine)
        assert type(caught.value) is kind
        assert len(str(caught.value)) < 500


async def test_an_endpoint_that_says_nothing_for_too_long_is_unavailable() -> None:
    async with openai_stub() as stub, engine_on(stub, timeout=0.1) as engine:
        stub.gate.clear()
        with pytest.raises(EngineUnavailableError, match="endpoint"):
            await reply(engine)


async def test_an_endpoint_that_is_not_there_is_unavailable() -> None:
    engine = OpenAIEngine(f"http://127.0.0.1:{free_port()}/v1", "a-model")
    with pytest.raises(EngineUnavailableError, match="endpoint"):
        await reply(engine)
    await engine.close()


# In a server.


@asynccontextmanager
async def serving_with(stub: OpenAIStub, **settings: Any) -> AsyncIterator[Any]:
    engine = {"kind": "openai", "url": stub.url, "model": "a-model"}
    values = {"address": "127.0.0.1:0", "drain": {"grace": 0.0}, "engine": engine, **settings}
    server = await ChatServer.start(BackendSettings.model_validate(values))
    try:
        async with chat_stub(server.address) as client:
            yield client
    finally:
        await server.drain()


STORES = ["memory:", "sqlite"]


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("durability", ["write_through", "write_back"])
async def test_replies_are_part_of_the_session_and_a_repeated_message_gets_the_first_one(
    tmp_path: Path, kind: str, durability: str
) -> None:
    url = kind if kind == "memory:" else f"sqlite:///{tmp_path}/a.db"
    async with openai_stub() as stub, serving_with(stub, store={"url": url, "durability": durability}) as client:
        first = await client.PostMessage(ChatRequest(chat_id="chat", message="one", message_id="1"))
        assert (first.reply, first.duplicate) == ("Hello world", False)
        stub.body = [piece("Something else"), DONE]
        again = await client.PostMessage(ChatRequest(chat_id="chat", message="one", message_id="1"))
        assert (again.reply, again.duplicate, again.message_count) == ("Hello world", True, 1)
        assert len(stub.requests) == 1, "the model was asked again"
        chunks = [each async for each in client.StreamReply(ChatRequest(chat_id="chat", message="two"))]
        assert chunks[-1].response.reply == "Something else"
        assert stub.requests[1]["messages"] == [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "Hello world"},
            {"role": "user", "content": "two"},
        ]


async def test_replies_are_there_after_a_restart(tmp_path: Path) -> None:
    store = {"url": f"sqlite:///{tmp_path}/a.db", "durability": "write_back", "write_interval": 3600.0}
    async with openai_stub() as stub:
        async with serving_with(stub, store=store) as client:
            await client.PostMessage(ChatRequest(chat_id="chat", message="one", message_id="1"))
        async with serving_with(stub, store=store) as client:
            again = await client.PostMessage(ChatRequest(chat_id="chat", message="one", message_id="1"))
            assert (again.reply, again.duplicate) == ("Hello world", True)
            assert len(stub.requests) == 1


async def test_a_message_whose_reply_failed_is_answered_when_it_comes_again(tmp_path: Path) -> None:
    async with openai_stub() as stub, serving_with(stub) as client:
        stub.status = 503
        with pytest.raises(grpc.aio.AioRpcError, match="HTTP 503") as caught:
            await client.PostMessage(ChatRequest(chat_id="chat", message="one", message_id="1"))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        stub.status = 200
        again = await client.PostMessage(ChatRequest(chat_id="chat", message="one", message_id="1"))
        assert (again.reply, again.duplicate, again.message_count) == ("Hello world", True, 1)


@pytest.mark.parametrize("method", ["PostMessage", "StreamReply", "Chat"])
async def test_a_client_that_cancels_stops_the_model(method: str) -> None:
    async with openai_stub() as stub, serving_with(stub) as client:
        stub.gate.clear()
        request = ChatRequest(chat_id="chat", message="one")
        call = client.Chat() if method == "Chat" else getattr(client, method)(request)
        if method == "Chat":
            await call.write(request)
        await eventually(lambda: stub.requests, "the model being asked")
        call.cancel()
        async with asyncio.timeout(60):
            await stub.gone.wait()
