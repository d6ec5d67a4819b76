"""Where the logs go. The one place that configures `logging`.

The service's own log and slow calls go to stderr, the access log to stdout or a file. Lines of calls are written by a
thread: a reader that has stopped reading must not stop the event loop, so what it does not take is dropped and counted.
"""

from __future__ import annotations

import logging
import queue
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.handlers import QueueHandler, QueueListener, WatchedFileHandler
from typing import Final, Literal, TextIO

from pydantic import BaseModel, ConfigDict, Field

from proxy.durations import SecondsOrZero
from proxy.errors import ConfigError

_log = logging.getLogger(__name__)

CALLS: Final = "districhat"
"""Parent of the loggers whose lines are about single calls."""
MAX_WAITING: Final = 10_000
"""Lines that wait for their reader."""


class LogSettings(BaseModel):
    """`[log]`: what is logged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Of the service's own log, on stderr."""
    access_sample: int = Field(default=0, ge=0, le=1_000_000_000)
    """One call in so many has a line in the access log, as JSON. 0: none; 1: every call, which makes each dearer."""
    access_file: str = ""
    """Where the access log goes; it is opened anew when it was moved away. Empty: stdout."""
    slow_calls: SecondsOrZero = 0.0
    """Seconds after which a call has a line in the log of slow calls, as JSON on stderr. 0: none has."""

    @property
    def slow_after(self) -> float:
        """The same; infinite instead of 0."""
        return self.slow_calls or float("inf")


class DroppingHandler(QueueHandler):
    """Hands lines to a thread, and drops those that it cannot keep up with."""

    def __init__(self, waiting: queue.Queue[logging.LogRecord]) -> None:
        super().__init__(waiting)
        self.dropped = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        """See `QueueHandler`."""
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1


class _Losing(logging.StreamHandler[TextIO]):
    """A handler that says once when lines get lost, and once when none do any more: a full disk, or a reader that has
    left, would cost a traceback a line otherwise.
    """

    lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """See `Handler`."""
        before = self.lost
        try:
            super().emit(record)
        except OSError:  # when a file is to be opened anew; it would end the thread that writes
            self.handleError(record)
        if before and before == self.lost:
            self.lost = 0
            _log.warning("lines of %s are written again; %d were lost", record.name, before)

    def close(self) -> None:
        """See `Handler`."""
        with suppress(OSError):  # what is still in its buffer is lost, too
            super().close()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """See `Handler`."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self.lost += 1
        if self.lost == 1:
            why = (error.strerror or str(error)).lower()
            _log.error("lines of %s cannot be written and are lost: %s", record.name, why)


class _LosingFile(_Losing, WatchedFileHandler):
    """The same of a file."""


@contextmanager
def logging_as(settings: LogSettings, process: str = "") -> Iterator[None]:
    """Log by these settings, until the end of the block, which waits for the lines of calls to be written. `process`:
    the name of this one, if there are several.

    Raises ConfigError if the access log cannot be opened.
    """
    prefix = process and f"{process}: "
    text = f"%(asctime)s %(levelname)s {prefix}%(name)s: %(message)s"
    logging.basicConfig(format=text, level=settings.level.upper(), force=True)
    writer: logging.Handler = _Losing(sys.stdout)
    if settings.access_file:
        try:
            writer = _LosingFile(settings.access_file, encoding="utf-8")
        except (OSError, ValueError) as error:  # the latter if the name holds a NUL
            why = str(getattr(error, "strerror", None) or error).lower()
            raise ConfigError([f"log.access_file: cannot write {settings.access_file!r}: {why}"]) from error
    slow_writer = logging.StreamHandler()
    access, slow = logging.getLogger(f"{CALLS}.access"), logging.getLogger(f"{CALLS}.slow")
    with _written_by_a_thread(access, writer), _written_by_a_thread(slow, slow_writer):
        yield


@contextmanager
def _written_by_a_thread(logger: logging.Logger, writer: logging.Handler) -> Iterator[None]:
    waiting: queue.Queue[logging.LogRecord] = queue.Queue(MAX_WAITING)
    handler = DroppingHandler(waiting)
    listener = QueueListener(waiting, writer)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    listener.start()
    try:
        yield
    finally:
        logger.removeHandler(handler)
        listener.stop()
        writer.close()
        if handler.dropped:
            _log.warning("%d lines of %s were dropped", handler.dropped, logger.name)
