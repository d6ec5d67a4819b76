"""Sessions in a Redis or Valkey that any number of servers share.

One connection, on which the operations go in the order they were called. Like the writer of the SQLite file, a task
takes all that queued up while it waited for the last answers and sends it as one pipeline: hundreds of messages share a
round trip.

What "safe" means is Redis's to say: with `appendonly yes` and `appendfsync always` a message is on its disk when it is
acknowledged, with Redis's defaults it may lose the last seconds if it crashes, and a fail-over to a replica may lose
what had not reached it. A Redis that evicts keys under memory pressure loses sessions: `open` warns of that.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError

from backend.errors import StoreError
from backend.session import Session, Version
from backend.store import redis_scripts as scripts
from backend.store.base import Appended, AppendResult, Conflict, Duplicate, Extended, StoreOptions, new_epoch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backend.session import Message
    from backend.store.url import RedisAddress

_log = logging.getLogger(__name__)

KEY_PREFIX = b"districhat:chat:"
"""Before a chat id, in UTF-8, it is the key of the chat's hash."""
_PIPELINE_LIMIT = 512
"""Operations in one pipeline: bounds how much of its answer is in memory."""


def _sha(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()  # how Redis names scripts


_SCRIPTS = {
    _sha(script): script for script in (scripts.APPEND, scripts.EXTEND, scripts.SET_REPLY, scripts.LOAD, scripts.END)
}
_APPEND, _EXTEND, _SET_REPLY, _LOAD, _END = _SCRIPTS


@dataclass(slots=True, eq=False)
class _Job:
    sha: str
    arguments: tuple[bytes | str | int, ...]
    repeatable: bool
    """It may be sent again when its answer was lost."""
    done: asyncio.Future[Any]


class RedisStore:
    """See `SessionStore`. Made by `open`; belongs to the event loop it was opened on."""

    def __init__(self, client: redis.asyncio.Redis, address: RedisAddress, options: StoreOptions) -> None:
        self._client = client
        self._address = address
        self._window = options.dedupe_window
        self._ttl = 0 if options.session_ttl is None else max(1, round(options.session_ttl * 1000))
        # Bounded by the calls in progress: each waits for its job.
        self._jobs: asyncio.Queue[_Job | None] = asyncio.Queue()
        self._closing = False
        self._task = asyncio.get_running_loop().create_task(self._run(), name=str(address))

    @classmethod
    async def open(
        cls, address: RedisAddress, options: StoreOptions | None = None, *, answer_timeout: float = 2.0
    ) -> RedisStore:
        """Connects. `answer_timeout`: seconds for a connect and for an answer; after that the operation fails, and the
        connection is made anew. Raises StoreError if there is no usable Redis.
        """
        client = redis.asyncio.Redis(
            host=address.host,
            port=address.port,
            db=address.database,
            username=address.username,
            password=address.password,
            socket_timeout=answer_timeout,
            socket_connect_timeout=answer_timeout,
            # What may be sent again is decided here, not there.
            retry=Retry(NoBackoff(), 0),
        )
        try:
            memory = await client.info("memory")
            for script in _SCRIPTS.values():
                await client.script_load(script)
        except (RedisError, OSError) as error:
            await client.aclose()
            raise StoreError(f"{address}: {_reason(error)}") from error
        policy = memory.get("maxmemory_policy", "noeviction")
        if memory.get("maxmemory") and policy != "noeviction":
            _log.warning("%s: maxmemory-policy %s may evict sessions; set it to noeviction", address, policy)
        return cls(client, address, options or StoreOptions())

    async def append(self, chat_id: str, message: Message, *, expected: Version) -> AppendResult:
        """See `SessionStore.append`."""
        kind, epoch, number = await self._submit(
            _APPEND,
            chat_id,
            *(self._window, self._ttl, new_epoch(), expected.epoch, expected.length),
            *_fields(message),
            repeatable=bool(message.message_id),
        )
        if kind == b"appended":
            return Appended(int(number), int(epoch))
        if kind == b"duplicate":
            return Duplicate(int(number), int(epoch))
        return Conflict(Version(int(epoch), int(number)))

    async def extend(self, chat_id: str, messages: Sequence[Message], *, whole: bool = False) -> Extended:
        """See `SessionStore.extend`."""
        fields = [field for message in messages for field in _fields(message)]
        repeatable = all(message.message_id for message in messages)
        answer = await self._submit(
            _EXTEND,
            chat_id,
            *(self._window, self._ttl, new_epoch(), "whole" if whole else "window"),
            *fields,
            repeatable=repeatable,
        )
        epoch_before, length_before, epoch, length = map(int, answer)
        return Extended(Version(epoch_before, length_before), Version(epoch, length))

    async def load(self, chat_id: str, *, recent: int, until: int | None = None) -> Session | None:
        """See `SessionStore.load`."""
        if until is not None and until < 1:
            return None
        answer = await self._submit(_LOAD, chat_id, recent, -1 if until is None else until)
        if answer is None:
            return None
        epoch, length, *rest = answer
        messages = tuple(map(scripts.unpack, rest[::2], rest[1::2]))
        return Session(chat_id, int(length), messages, int(epoch))

    async def set_reply(self, chat_id: str, epoch: int, position: int, reply: str) -> str | None:
        """See `SessionStore.set_reply`."""
        kept: bytes | None = await self._submit(_SET_REPLY, chat_id, epoch, position, reply)
        return None if kept is None else kept.decode()

    async def end(self, chat_id: str) -> int:
        """See `SessionStore.end`. When the answer is lost and it is sent again, it may say 0 for a chat it ended."""
        return int(await self._submit(_END, chat_id))

    async def sweep(self) -> int:
        """See `SessionStore.sweep`: Redis does that by itself."""
        return 0

    async def close(self) -> None:
        """See `SessionStore.close`."""
        if not self._closing:
            self._closing = True
            self._jobs.put_nowait(None)
        await asyncio.shield(self._task)

    async def _submit(self, sha: str, chat_id: str, *arguments: bytes | str | int, repeatable: bool = True) -> Any:
        if self._closing:
            raise StoreError("the store is closed")
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._jobs.put_nowait(_Job(sha, (KEY_PREFIX + chat_id.encode(), *arguments), repeatable, done))
        return await done

    async def _run(self) -> None:
        while batch := await self._next_batch():
            await self._run_batch(batch)
        with suppress(RedisError, OSError):
            await self._client.aclose()

    async def _next_batch(self) -> list[_Job]:
        """The jobs that are there, at least one; empty when the store was closed."""
        batch: list[_Job] = []
        job = await self._jobs.get()
        while job is not None:
            batch.append(job)
            if len(batch) >= _PIPELINE_LIMIT or self._jobs.empty():
                return batch
            job = self._jobs.get_nowait()
        if batch:
            self._jobs.put_nowait(None)  # this batch first, then the end
        return batch

    async def _run_batch(self, batch: list[_Job]) -> None:
        answers: list[Any] = []
        for attempt in (1, 2):
            try:
                answers = await self._send(batch)
            except Exception as error:  # the task must outlive any batch
                # A connection that broke while idle, such as by a restart of Redis, is made anew, once. Not after a
                # timeout: whoever waits has waited long enough.
                broken = isinstance(error, RedisConnectionError | OSError) and not isinstance(error, TimeoutError)
                again = [job for job in batch if job.repeatable and broken and attempt == 1]
                self._fail([job for job in batch if job not in again], error)
                batch = again
            else:
                break
        for job, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Exception):
                self._fail([job], answer)
            elif not job.done.done():
                job.done.set_result(answer)

    async def _send(self, batch: list[_Job]) -> list[Any]:
        """The answers, errors among them. Raises RedisError or OSError when there are none."""
        answers = await self._pipeline(batch)
        missing = [index for index, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if missing:  # Redis was restarted and has forgotten the scripts
            for script in _SCRIPTS.values():
                await self._client.script_load(script)
            for index, answer in zip(missing, await self._pipeline([batch[index] for index in missing]), strict=True):
                answers[index] = answer
        return answers

    async def _pipeline(self, batch: list[_Job]) -> list[Any]:
        if not batch:
            return []
        async with self._client.pipeline(transaction=False) as pipeline:
            for job in batch:
                pipeline.execute_command("EVALSHA", job.sha, 1, *job.arguments)
            answers: list[Any] = await pipeline.execute(raise_on_error=False)
            return answers

    def _fail(self, batch: list[_Job], error: Exception) -> None:
        for job in batch:
            if not job.done.done():
                job.done.set_exception(StoreError(f"{self._address}: {_reason(error)}"))


def _reason(error: BaseException) -> str:
    """Why, in the system's words where it was the system: the library only says where it wanted to connect."""
    cause: BaseException | None = error
    while isinstance(cause, RedisConnectionError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, OSError) and cause.errno:
        return os.strerror(cause.errno)
    return str(error) or type(error).__name__


def _fields(message: Message) -> tuple[str, bytes, str]:
    """A message as the scripts want it."""
    return message.message_id, scripts.pack(message), "" if message.reply is None else f"+{message.reply}"
