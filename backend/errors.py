"""The error tree of the reference server. A class says whose fault it is, and how a caller learns of it."""

from __future__ import annotations

from typing import ClassVar

import grpc


class BackendError(Exception):
    """Base of all errors of this package. Never raised itself."""


class ConfigError(BackendError):
    """The operator's configuration cannot be used.

    `problems` holds one line per mistake, each starting with the key path it is about (`cache.l1_capacity: ...`).
    The command prints them on stderr and exits with status 2.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class CallError(BackendError):
    """Ends one call. `code` is its grpc-status, the error's text its grpc-message. Never raised itself."""

    code: ClassVar[grpc.StatusCode]


class InvalidRequestError(CallError):
    """The client sent something no server would take; sending it again is pointless."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class ForbiddenError(CallError):
    """The caller is not one of those that this is for."""

    code = grpc.StatusCode.PERMISSION_DENIED


class DrainingError(CallError):
    """The server is stopping and has done nothing for the message: another server may have it."""

    code = grpc.StatusCode.UNAVAILABLE

    def __init__(self) -> None:
        super().__init__("server is shutting down")


class StoreError(CallError):
    """The store cannot say that the message is safe. It may have been written all the same (an answer was lost)."""

    code = grpc.StatusCode.UNAVAILABLE


class ContentionError(CallError):
    """Other servers kept writing to the same chat; the message was not written."""

    code = grpc.StatusCode.UNAVAILABLE


class EngineError(CallError):
    """The engine made no reply. The message itself is stored. For engines to raise."""

    code = grpc.StatusCode.INTERNAL


class EngineUnavailableError(EngineError):
    """The engine made no reply now; it may make one if the call is repeated, which adds no second message."""

    code = grpc.StatusCode.UNAVAILABLE
