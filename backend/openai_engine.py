"""Replies of a language model behind any OpenAI-compatible HTTP endpoint (vLLM, llama.cpp, Ollama, OpenAI itself).

One POST to `chat/completions` with `stream: true` per reply; the answer is a stream of server-sent events, each a line
`data: ` and a JSON object whose `choices[0].delta.content` is the next piece, the last one `data: [DONE]`. The model
sees the messages that the session holds in memory, each with its reply.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx

from backend.errors import EngineError, EngineUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from backend.session import Message, Session

_TRY_AGAIN = frozenset({408, 409, 429, 500, 502, 503, 504})
"""HTTP statuses after which the same request may do better later."""
_EXCERPT = 200
"""Characters of an error's body that are passed on."""
_MAX_LINE = 1 << 20
"""Characters of an event line; a longer one is no event of this API."""


class OpenAIEngine:
    """See `ReplyEngine`.

    `url`: the API's root, up to and without `/chat/completions`. `api_key`: empty for none. `timeout`: seconds for the
    connect, and for each next piece. `max_reply`: characters after which a reply is cut off.
    """

    keeps_replies = True

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str = "",
        system_prompt: str = "",
        timeout: float = 30.0,
        max_reply: int = 262_144,
    ) -> None:
        self._url = f"{url.rstrip('/')}/chat/completions"
        self._model = model
        self._system_prompt = system_prompt
        self._max_reply = max_reply
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        # trust_env: no proxy of the environment between us and a model that is often on this machine.
        self._client = httpx.AsyncClient(headers=headers, timeout=timeout, trust_env=False)

    async def reply(self, session: Session, message: Message) -> AsyncIterator[str]:
        """See `ReplyEngine.reply`. A token is a piece as the endpoint sends it. Raises EngineUnavailableError where it
        may help to repeat the call, else EngineError.
        """
        del message  # the last one of the session
        body = {"model": self._model, "messages": self._conversation(session), "stream": True}
        left = self._max_reply
        try:
            async with self._client.stream("POST", self._url, json=body) as response:
                if response.status_code != 200:
                    raise await _refusal(response)
                async for piece in _pieces(response):
                    yield piece[:left]
                    left -= len(piece)
                    if left <= 0:
                        return
        except httpx.HTTPError as error:
            raise EngineUnavailableError(f"the model's endpoint: {str(error) or type(error).__name__}") from error

    async def close(self) -> None:
        """See `ReplyEngine.close`."""
        await self._client.aclose()

    def _conversation(self, session: Session) -> list[dict[str, str]]:
        messages = [{"role": "system", "content": self._system_prompt}] if self._system_prompt else []
        for message in session.recent:
            messages.append({"role": "user", "content": message.text})
            if message.reply is not None:
                messages.append({"role": "assistant", "content": message.reply})
        return messages


async def _refusal(response: httpx.Response) -> EngineError:
    body = b""
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > 4 * _EXCERPT:
            break
    text = " ".join(body.decode("utf-8", "replace").split())[:_EXCERPT]
    kind = EngineUnavailableError if response.status_code in _TRY_AGAIN else EngineError
    return kind(f"the model's endpoint answered HTTP {response.status_code}: {text}")


async def _pieces(response: httpx.Response) -> AsyncIterator[str]:
    """The pieces of a reply. Raises EngineUnavailableError if the stream ends early, EngineError if it is none."""
    async for line in _lines(response):
        data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
        if data == "[DONE]":
            return
        if data and (piece := _content(data)):
            yield piece
    raise EngineUnavailableError("the model's endpoint broke off in the middle of a reply")


async def _lines(response: httpx.Response) -> AsyncIterator[str]:
    """The lines of the body, however they were cut. httpx's own `aiter_lines` has no limit for one line."""
    rest = b""
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", "replace")
        if len(rest) > _MAX_LINE:
            raise EngineError("the model's endpoint sent a line that is too long")


def _content(data: str) -> str:
    try:
        event: Any = json.loads(data)
        if "error" in event:
            raise EngineUnavailableError(f"the model's endpoint: {event['error']}"[: 2 * _EXCERPT])
        choices = event["choices"]
        content = choices[0]["delta"].get("content") if choices else None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise EngineError("the model's endpoint sent something that is no chat completion") from error
    return content if isinstance(content, str) else ""
