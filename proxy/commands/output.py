"""How commands print: coloured on a terminal, plain in a pipe, the same words in both.

Tables are aligned text of our own: rich's would cut ids and addresses where the terminal is narrow.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""What a write fails with where there is no room for it."""


class PlainConsole(Console):
    """Prints what it is given: ids are data, so no markup, no emoji codes."""

    def __init__(self, *, stderr: bool = False, soft_wrap: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=soft_wrap)

    def on_broken_pipe(self) -> None:
        """See `Console`, which would end the process with status 1: that a server is out, say."""
        raise BrokenPipeError


def console(*, stderr: bool = False) -> Console:
    """A console that does not wrap lines, either."""
    return PlainConsole(stderr=stderr, soft_wrap=True)


def prepare_streams() -> None:
    """Have all three standard streams, and let no character end the program.

    Where a stream is closed, the next file or socket would get its number: what is printed would go there, and libuv
    aborts when it closes such a socket.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - to the end of the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """A line on stderr, if there is room for it: what is wrong is in the exit status, too."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr)


def give_stdout_up() -> None:
    """What is still to be written is not; Python would complain of it when it flushes stdout at the end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def print_table(
    out: Console, columns: Sequence[str], rows: Sequence[Sequence[str | Text]], numeric: Collection[str] = ()
) -> None:
    """Rows under their columns; the columns named in `numeric` are aligned to the right."""
    widths = [max(map(_cells, column)) for column in zip(columns, *rows, strict=True)]
    for style, row in (("bold underline", columns), *(("", row) for row in rows)):
        line = Text(style=style)
        for name, cell, width in zip(columns, row, widths, strict=True):
            space = " " * (width - _cells(cell))
            line.append(space if name in numeric else "").append(cell).append("  " if name in numeric else f"{space}  ")
        line.rstrip()
        out.print(line)


def _cells(text: str | Text) -> int:
    """Of the terminal: an emoji takes two, an accent that combines none."""
    return cell_len(text if isinstance(text, str) else text.plain)
