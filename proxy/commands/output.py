"""How commands print: coloured on a terminal, plain in a pipe, the same words in both.

Tables are aligned text of our own: rich's would cut ids and addresses where the terminal is narrow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


def console(*, stderr: bool = False) -> Console:
    """A console that prints what it is given: ids are data, so no markup, no emoji codes, no line wrapping."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)


def print_table(
    out: Console, columns: Sequence[str], rows: Sequence[Sequence[str | Text]], numeric: Collection[str] = ()
) -> None:
    """Rows under their columns; the columns named in `numeric` are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for style, row in (("bold underline", columns), *(("", row) for row in rows)):
        line = Text(style=style)
        for name, cell, width in zip(columns, row, widths, strict=True):
            space = " " * (width - len(cell))
            line.append(space if name in numeric else "").append(cell).append("  " if name in numeric else f"{space}  ")
        line.rstrip()
        out.print(line)
