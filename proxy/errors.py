"""The error tree of the proxy. A class says whose fault it is.

Nothing here is raised on the way of a good call: failures of calls travel as values (`proxy.forwarding`), and only
what ends a command or refuses a request is an exception.
"""

from __future__ import annotations


class DistriChatError(Exception):
    """Base of all errors of this program. Never raised itself."""


class ConfigError(DistriChatError):
    """The operator's configuration cannot be used.

    `problems` holds one line per mistake, each starting with the key path it is about (`endpoints[1].weight: ...`).
    A command prints them on stderr and exits with status 2.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class CommandError(DistriChatError):
    """A command cannot do what it was asked for. Its text, a line for each problem, is for the user: what is wrong, and
    what to do.
    """

    def __init__(self, text: str, exit_status: int) -> None:
        super().__init__(text)
        self.exit_status = exit_status
