"""Writes the tables of the documentation that code knows better: `docs/metrics.md` and `docs/settings.md`.

`make docs` writes them; with `--check` it only says which are stale, with exit status 1.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from pydantic import BaseModel, SecretStr
from pydantic_core import PydanticUndefined

from proxy.admin import metrics
from proxy.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pydantic.fields import FieldInfo

HERE = Path(__file__).parent

METRICS = """\
# Metrics

What `GET /metrics` of the admin server tells Prometheus. Generated from the table that renders it
(`proxy/admin/metrics.py`); do not edit: `make docs`.

Labels are bounded by the configuration: `route` is the pattern of the route that a call fell under, never the name of a
method; `endpoint` the id of a server, empty where no server had the call; `status` one of the seventeen of gRPC; chats
never appear. With `[metrics] enabled = false` calls are not counted, and states are told all the same. Counters of a
server that leaves the configuration leave with it.

"""

SETTINGS = """\
# Settings

Every key of the configuration with its default. Generated from the settings themselves; do not edit:
`make docs`. `config/proxy.toml` shows the same as a file to start from, `districhat check` says what is wrong with
yours. An environment variable is stronger than the file: `DISTRICHAT_LISTENER__ADDRESS` for `listener.address`. Seconds
are at least 0.001, or 0 where that has a meaning, and at most 31,536,000, a year.

"""


def settings_markdown() -> str:
    """A table for each section."""
    sections = []
    for name, field in Settings.model_fields.items():
        model, is_list = _model_of(field)
        title = f"[[{name}]]" if is_list else f"[{name}]"
        sections.append(_section(title, _rows(model)))
        # Of the tables inside, those that are all there or not at all have a section of their own.
        for key, inner in model.model_fields.items():
            table = _table_in(inner)
            if table is not None and inner.default is None and not is_list:
                sections.append(_section(f"[{name}.{key}]", _rows(table)))
    return "\n\n".join(sections) + "\n"


def _section(title: str, rows: Iterable[str]) -> str:
    return "\n".join([f"## `{title}`", "", "| key | default | meaning |", "|---|---|---|", *rows])


def _model_of(field: FieldInfo) -> tuple[type[BaseModel], bool]:
    annotation = field.annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    return next(each for each in get_args(annotation) if isinstance(each, type) and issubclass(each, BaseModel)), True


def _rows(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    texts = _docstrings(model)
    for name, field in model.model_fields.items():
        table = _table_in(field)
        if name not in texts:
            raise SystemExit(f"{model.__name__}.{name}: say under the field what it means")
        meaning = texts[name]
        if table is not None:
            keys = ", ".join(f"`{key}`" for key in table.model_fields)
            meaning = f"{meaning} A table of {keys}."
        yield f"| `{prefix}{name}` | {_default(field)} | {meaning} |"


def _table_in(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a field that is a table, or may be one."""
    inner = [each for each in (field.annotation, *get_args(field.annotation)) if isinstance(each, type)]
    return next((each for each in inner if issubclass(each, BaseModel)), None)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "none"
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, BaseModel):
        return ""
    return f'`"{value}"`' if isinstance(value, str) else f"`{list(value) if isinstance(value, tuple) else value}`"


def _docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The text under each field of the class, and of those it inherits from."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if not (issubclass(cls, BaseModel) and cls is not BaseModel):
            continue
        [definition] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(definition, ast.ClassDef)  # noqa: S101 - it is the source of a class
        for statement, following in zip(definition.body, definition.body[1:], strict=False):
            match statement, following:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    items = re.sub(r"\n\s*- ", " <br>- ", text)  # a list, in a cell of a table
                    found[name] = " ".join(items.split()).replace("|", "\\|")
    return found


def main() -> int:
    """Write the files, or check them. Returns the exit status."""
    files = {
        HERE / "metrics.md": METRICS + metrics.markdown(),
        HERE / "settings.md": SETTINGS + settings_markdown(),
    }
    stale = [path for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"docs/{path.name} is stale: run make docs", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(files[path], encoding="utf-8")
        print(f"wrote docs/{path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
