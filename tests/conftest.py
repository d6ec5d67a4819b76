"""What every test gets: nothing it started may be left when it is over."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests.support import processes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

# An example takes as long as the machine is busy: no verdict about the code.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

_LEAK_PATIENCE = 200
"""Passes of the event loop in which tasks that are ending anyway may end."""


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if not thread.daemon}


@pytest.fixture(autouse=True)
def _no_process_or_thread_is_left() -> Iterator[None]:
    children, threads = processes.children(os.getpid()), _threads()
    yield
    assert processes.children(os.getpid()) <= children, "the test left a child process"
    assert _threads() <= threads, "the test left a thread"


@pytest.fixture
async def _no_task_is_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    for _ in range(_LEAK_PATIENCE):
        if not (left := asyncio.all_tasks() - before - {asyncio.current_task()}):
            return
        await asyncio.sleep(0)
    pytest.fail(f"the test left tasks: {left}")


@pytest.fixture(autouse=True)
def _leak_checks(request: pytest.FixtureRequest, _no_process_or_thread_is_left: None) -> None:
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        # The first fixture of the test's loop, so that it is the last to end.
        request.getfixturevalue("_no_task_is_left")
