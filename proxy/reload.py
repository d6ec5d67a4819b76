"""A new configuration for a running proxy: what differs, and what of it needs a restart.

The file and the environment are read as at the start. A mistake anywhere in them changes nothing. What needs a restart
stays as it is and is said by name, each time until the restart; all else is applied.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, NamedTuple

from pydantic import BaseModel

from proxy.errors import ConfigError
from proxy.settings import Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

NEEDS_RESTART: Final = (
    "listener.address",
    "listener.socket_mode",
    "listener.tls",
    "listener.workers",
    "upstream.tls",
    "admin",
    "metrics",
    "decisions",
    "log",
    "tracing",
)
"""Keys, or whole sections, that a running process cannot change: of ports that are bound, of files that are watched by
themselves, and of processes."""


class Change(NamedTuple):
    """A key whose value differs, with both values as text; secrets are masked. None: it is not there."""

    key: str
    """`limits.max_calls`; endpoints go by their ids: `endpoints[Server-A].weight`, routes by their place."""
    old: str | None
    new: str | None

    def __str__(self) -> str:
        if self.old is None:
            return f"{self.key}: {self.new} (new)"
        return f"{self.key}: {self.old} -> {'(gone)' if self.new is None else self.new}"


class Reloaded(NamedTuple):
    """What a reload did."""

    applied: tuple[Change, ...]
    needs_restart: tuple[Change, ...]
    version: int
    """Of the snapshot that holds now; the same as before unless members, weights or the ring changed."""


class Reloader:
    """Knows where the configuration comes from, and what holds now."""

    def __init__(self, path: Path | None, settings: Settings, apply: Callable[[Settings], Awaitable[int]]) -> None:
        """`path`: as for `load_settings`. `apply` makes settings hold and returns the snapshot's version."""
        self._path = path
        self.settings = settings
        """What holds now."""
        self._apply = apply
        self._one_at_a_time = asyncio.Lock()
        self._wanted = asyncio.Event()

    async def reload(self) -> Reloaded:
        """Read and apply the configuration. Returns, and logs, what changed. Raises ConfigError, with nothing changed,
        if there is a mistake in it. A second reload waits for the first.
        """
        async with self._one_at_a_time:
            # In a thread, though that only helps between the pieces: a file with a thousand servers takes a tenth of a
            # second to read, and its validation holds the interpreter. A parent of workers carries no calls.
            new, found = await asyncio.get_running_loop().run_in_executor(None, self._read)
            held = held_back(self.settings, new)
            waiting = tuple(each for each in found if among(each.key, held))
            applied = tuple(each for each in found if not among(each.key, held))
            effective = keeping(self.settings, new)
            version = await self._apply(effective)
            self.settings = effective
        for change in applied:
            log.info("reload: %s", change)
        for change in waiting:
            log.warning("reload: %s: needs a restart, and is ignored until then", change)
        log.info("reloaded: %d changes, %d more need a restart; snapshot %d", len(applied), len(waiting), version)
        return Reloaded(applied, waiting, version)

    def _read(self) -> tuple[Settings, tuple[Change, ...]]:
        new = load_settings(self._path)
        return new, tuple(differences(self.settings, new))

    def want(self) -> None:
        """Have `follow` reload, now or when it runs: for signals. Many at a time are one."""
        self._wanted.set()

    async def follow(self) -> None:
        """Reload whenever it is wanted, until cancelled. Mistakes are log lines."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await self._reload_or_log()

    async def _reload_or_log(self) -> None:
        try:
            await self.reload()
        except ConfigError as error:
            for problem in error.problems:
                log.error("reload: %s", problem)  # noqa: TRY400 - the operator's mistake, not ours: no traceback
            log.error("the configuration has mistakes: nothing is changed")  # noqa: TRY400
        except Exception:
            log.exception("a bug ended the reload")


def held_back(old: Settings, new: Settings) -> tuple[str, ...]:
    """The keys and sections that stay as they are until a restart. With `[upstream.tls]` the endpoints are among them:
    those that are to be reached over a TLS that is not there yet must not be reached without.
    """
    return NEEDS_RESTART if old.upstream.tls == new.upstream.tls else (*NEEDS_RESTART, "endpoints")


def among(key: str, held: Iterable[str]) -> bool:
    """Whether `key` is one of those, or in one of those sections."""
    return any(key == each or key.startswith((f"{each}.", f"{each}[")) for each in held)


def keeping(old: Settings, new: Settings) -> Settings:
    """`new`, with what is held back as it was in `old`."""
    kept: dict[str, object] = {}
    for path in held_back(old, new):
        section, _, key = path.partition(".")
        if key:
            table = kept.get(section, getattr(new, section))
            assert isinstance(table, BaseModel)  # noqa: S101 - what has keys is a model
            kept[section] = table.model_copy(update={key: getattr(getattr(old, section), key)})
        else:
            kept[section] = getattr(old, section)
    return new.model_copy(update=kept)


def differences(old: Settings, new: Settings) -> Iterator[Change]:
    """Every key whose value is another, in the order of the settings; keys that are gone come last in their section. Of
    an item of a list that is new or gone, such as a server, only what is no default.
    """
    before, after = _flat(old), _flat(new)
    items_before, items_after = ({leaf.item for leaf in each.values()} for each in (before, after))
    for key in [*after, *(key for key in before if key not in after)]:
        one, other = before.get(key), after.get(key)
        if one is not None and other is not None and one.value == other.value:
            continue
        leaf = other or one
        if leaf is not None and leaf.plain and not (leaf.item in items_before and leaf.item in items_after):
            continue
        yield Change(key, _shown(one), _shown(other))


class _Leaf(NamedTuple):
    """A value of the settings."""

    value: object
    item: str
    """The path of the item of a list that it belongs to; empty: of none."""
    plain: bool
    """It goes without saying, if the item is new: a default, or the id, which the path has."""


def _flat(settings: Settings) -> dict[str, _Leaf]:
    return dict(_leaves("", settings, "", plain=False))


def _leaves(path: str, value: object, item: str, *, plain: bool) -> Iterator[tuple[str, _Leaf]]:
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            inner = getattr(value, name)
            usual = name == "id" or (not field.is_required() and inner == field.default)
            yield from _leaves(f"{path}.{name}" if path else name, inner, item, plain=usual)
    elif isinstance(value, tuple) and value and all(isinstance(each, BaseModel) for each in value):
        for index, each in enumerate(value):
            name = f"{path}[{getattr(each, 'id', index)}]"
            yield from _leaves(name, each, item or name, plain=False)
    else:
        yield path, _Leaf(value, item, plain)


def _shown(leaf: _Leaf | None) -> str | None:
    if leaf is None:
        return None
    if leaf.value is None or isinstance(leaf.value, bool):
        return str(leaf.value).lower()
    return str(leaf.value)
