"""How commands print: rich on a terminal, plain columns in a pipe, the same words in both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


def console(*, stderr: bool = False) -> Console:
    """A console that prints what it is given: ids are data, so no markup, no emoji codes, no line wrapping."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)


def print_table(
    out: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Collection[str] = ()
) -> None:
    """Rows under their columns; the columns named in `numeric` are aligned to the right."""
    if out.is_terminal:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in columns:
            table.add_column(name, justify="right" if name in numeric else "left", no_wrap=True)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        out.print(table)
        return
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        cells = zip(columns, row, widths, strict=True)
        aligned = (cell.rjust(width) if name in numeric else cell.ljust(width) for name, cell, width in cells)
        out.print("  ".join(aligned).rstrip())
