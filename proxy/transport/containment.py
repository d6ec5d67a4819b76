"""A bug costs one call: connections are shared by many."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from proxy.forwarding.answered import AnsweredCall

log = logging.getLogger(__name__)


@contextmanager
def contained(call: AnsweredCall) -> Iterator[None]:
    """A bug of ours that meets `call` ends that call, and no other that shares its connection."""
    try:
        yield
    except Exception:
        log.exception("a bug ended a call")
        call.broken()
