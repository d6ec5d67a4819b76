"""How the state of a proxy is written: tables, numbers, sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.text import Text

from proxy.admin.schema import EndpointStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from proxy.admin import schema

UNKNOWN: Final = "-"

_STYLES: Final[Mapping[EndpointStatus, str]] = {
    "available": "green",
    "draining": "yellow",
    "ejected": "red",
    "unhealthy": "red",
    "unreachable": "red",
}


def status_text(status: EndpointStatus) -> Text:
    """A state in its colour."""
    return Text(status, _STYLES.get(status, ""))


def rate(value: float | None) -> str:
    """Something a second."""
    if value is None:
        return UNKNOWN
    return f"{value:.1f}" if 0 < value < 10 else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """A share of one; what is not nothing never reads 0 %."""
    if value is None:
        return UNKNOWN
    return "<0.1%" if 0 < value < 0.0005 else f"{value:.1%}"


def duration(seconds: float | None) -> str:
    """In the unit that gives up to three digits before the point."""
    if seconds is None:
        return UNKNOWN
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s"


def plural(number: int, noun: str) -> str:
    """`1 call`, `2 calls`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def reasons(blocks: Sequence[schema.Block]) -> str:
    """What speaks against a server."""
    return "; ".join(block.reason for block in blocks)


def headline(told: schema.Endpoints) -> Text:
    """The state of the whole proxy in a line."""
    available = sum(each.available for each in told.endpoints)
    text = Text()
    text.append(f"not ready: {told.not_ready}" if told.not_ready else "ready", "red" if told.not_ready else "green")
    text.append(f"; {available} of {plural(len(told.endpoints), 'server')} available")
    text.append(f", {plural(told.active_calls, 'call')} under way")
    return text
