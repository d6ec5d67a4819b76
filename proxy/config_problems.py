"""Turns what validation finds into lines for the person who wrote the configuration.

A line starts with the key path as it would be written in a bug report (`endpoints[1].weight`), says in plain words
what must hold and what was found instead, and, when the value came from the environment, which variable holds it.
Knows pydantic, but not which settings there are: the model is an argument.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, get_args

from pydantic import BaseModel, SecretStr, ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydantic_core import ErrorDetails

Location = tuple[int | str, ...]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_MAX_SHOWN = 80  # characters of an offending value; a pasted certificate should not fill the screen


def key_path(location: Location) -> str:
    """`("endpoints", 1, "weight")` as `endpoints[1].weight`."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            # A quoted TOML key may hold anything, even a line break.
            name = part if _BARE_KEY.fullmatch(part) else json.dumps(part, ensure_ascii=False)
            path += f".{name}" if path else name
    return path


def shown(value: object) -> str:
    """The value as TOML would have it, cut when long; tables and lists only by their kind."""
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}... ({len(text)} characters)"


def unknown_key(key: str, known: Sequence[str]) -> str:
    """What to say about a key nobody knows: the one that was probably meant, or all there are."""
    close = difflib.get_close_matches(key.lower(), known, n=1)
    if close:
        return f"unknown key; did you mean {close[0]}?"
    return f"unknown key; the known ones are {', '.join(known)}" if known else "unknown key"


def problems_of(
    error: ValidationError, model: type[BaseModel], data: Mapping[str, object], variables: Mapping[str, str]
) -> dict[str, str]:
    """One problem per key path, in the order of the data.

    `data` is what was validated; `variables` maps the dotted path of every environment variable to its name.
    """
    details = error.errors(include_url=False)
    problems: dict[str, str] = {}
    for detail in details:
        location = detail["loc"]
        if detail["type"] == "too_short" and any(
            other["loc"][: len(location)] == location and len(other["loc"]) > len(location) for other in details
        ):
            continue  # a list whose items were all refused counts as empty; the items' own lines say why
        value = _value_at(data, location)
        text = _describe(detail, value, model)
        problems.setdefault(key_path(location), text + _origin(detail["type"], location, value, variables))
    return problems


def _origin(kind: str, location: Location, value: object, variables: Mapping[str, str]) -> str:
    """Which variable the value came from, if any, and why what arrived may look different from what was meant."""
    parts = [str(part) for part in location]
    for length in range(len(parts), 0, -1):
        name = variables.get(".".join(parts[:length]))
        if name is None:
            continue
        if len(parts) == length == 1 and isinstance(value, str):  # a whole section
            try:
                json.loads(value)
            except ValueError as error:
                return f" (from {name}, which must be JSON: {error})"
        return f" (from {name})"
    if kind == "tuple_type":
        for path, name in variables.items():
            if path.startswith(f"{parts[0]}."):
                whole = name[: len(name) - len(path) - path.count(".") + len(parts[0])]
                return f" (from {name}; the environment sets a list only as a whole, as JSON in {whole})"
        if isinstance(value, Mapping):
            return f"; a list of tables has two brackets: [[{parts[0]}]]"
    return ""


def _describe(detail: ErrorDetails, value: object, model: type[BaseModel]) -> str:
    kind, location = detail["type"], detail["loc"]
    if kind == "missing":
        # Of the sections only lists can be missing: the others are tables of defaults.
        return "is required" if len(location) > 1 else f"is required: at least one [[{location[0]}]] table"
    if kind == "too_short":
        return f"must not be empty: at least one [[{location[0]}]] table is required"
    if kind == "extra_forbidden":
        owner = _model_at(model, location[:-1])
        return unknown_key(str(location[-1]), list(owner.model_fields) if owner else [])
    context: Mapping[str, object] = detail.get("ctx", {})
    if _is_secret(model, location):
        value = "a secret"  # what is printed ends up in logs
    if kind == "value_error":
        text = str(context["error"])
        if isinstance(value, str) and len(value) > _MAX_SHOWN:
            text = text.replace(repr(value), shown(value))
        # A validator of one value names it; one over a whole table has no single value to name.
        named = isinstance(value, Mapping | list) or shown(value) in text or repr(value) in text
        return text if named else f"{text}, got {shown(value)}"
    rule = _RULES.get(kind)
    text = f"{rule(context) if rule else detail['msg']}, got {shown(value)}"
    if kind == "string_type" and isinstance(value, int | float) and not isinstance(value, bool):
        text += f'; in quotes it is text: "{value}"'
    return text


def _number(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _choices(context: Mapping[str, object]) -> str:
    return "must be " + str(context["expected"]).replace("'", '"')


def _least_length(context: Mapping[str, object]) -> str:
    least = context["min_length"]
    return "must not be empty" if least == 1 else f"must have at least {least} characters"


_RULES: dict[str, Callable[[Mapping[str, object]], str]] = {
    "string_type": lambda _: "must be text",
    "int_type": lambda _: "must be a whole number",
    "int_from_float": lambda _: "must be a whole number",
    "float_type": lambda _: "must be a number",
    "finite_number": lambda _: "must be a finite number",
    "bool_type": lambda _: "must be true or false",
    "model_type": lambda _: "must be a table",
    "tuple_type": lambda _: "must be a list",
    "literal_error": _choices,
    "string_too_short": _least_length,
    "string_too_long": lambda context: f"must have at most {context['max_length']} characters",
    "greater_than": lambda context: f"must be greater than {_number(context['gt'])}",
    "greater_than_equal": lambda context: f"must be at least {_number(context['ge'])}",
    "less_than": lambda context: f"must be less than {_number(context['lt'])}",
    "less_than_equal": lambda context: f"must be at most {_number(context['le'])}",
}
"""By pydantic's name of the failure. What is not here keeps pydantic's own words."""


def _value_at(data: object, location: Location) -> object:
    """What stands at `location`; None where nothing does."""
    for part in location:
        match data, part:
            case dict(), str():
                data = data.get(part)
            case list(), int():
                data = data[part]
            case _:
                return None
    return data


def _model_at(model: type[BaseModel], location: Location) -> type[BaseModel] | None:
    """The model that describes the table at `location`."""
    current: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int):
            continue  # an item: the list's annotation already led to its model
        field = current.model_fields.get(part) if current else None
        current = _model_in(field.annotation) if field else None
    return current


def _is_secret(model: type[BaseModel], location: Location) -> bool:
    owner = _model_at(model, location[:-1])
    field = owner.model_fields.get(str(location[-1])) if owner and location else None
    return field is not None and field.annotation is SecretStr


def _model_in(annotation: object) -> type[BaseModel] | None:
    """`X` in `X`, `X | None` and `tuple[X, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _model_in(inner)) is not None), None)
