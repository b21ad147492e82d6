"""Configuration: TOML into frozen dataclasses and back into plain dicts for checkpoints.

A schema is a frozen dataclass whose fields are int, float, str, bool, Literal, Optional, tuple or further dataclasses
(TOML tables). What a value means is checked by the schema's own `__post_init__`, which raises ValueError.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mcode.errors import ConfigError

T = TypeVar("T")
_SCALARS = {int: "a whole number", float: "a finite number", str: "a text in quotes", bool: "true or false"}


def load(path: str | Path, schema: type[T]) -> T:
    """The TOML file at path as an instance of the dataclass schema.

    Raises ConfigError, one line naming file and key, for an unknown key, a missing key or a bad value.
    """
    return from_dict(read(path), schema, source=str(path))


def read(path: str | Path) -> dict[str, Any]:
    """What the TOML file at path says. Raises ConfigError."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot read this configuration: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a TOML file (not text)") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def from_dict(values: Mapping[str, Any], schema: type[T], *, source: str = "configuration", table: str = "") -> T:
    """values, as TOML or `to_dict` gives them, as an instance of the dataclass schema.

    source is named in errors; table is the dotted name of the TOML table that values stand in ("" at the top).
    """
    hints = get_type_hints(schema)
    fields = {field.name: field for field in dataclasses.fields(schema) if field.init}  # type: ignore[arg-type]
    place = f" in [{table}]" if table else ""
    for key in values:
        if key not in fields:
            raise ConfigError(f'{source}: unknown key "{key}"{place}; {_nearest(key, fields)}')
    for name, field in fields.items():
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if name not in values and not has_default:
            raise ConfigError(f'{source}: missing key "{name}"{place}, {_describe(hints[name])}')
    arguments = {
        name: _convert(value, hints[name], source, f"{table}.{name}" if table else name) for name, value in values.items()
    }
    try:
        return schema(**arguments)
    except ValueError as error:
        raise ConfigError(f"{source}:{f' [{table}]' if table else ''} {error}") from error


def to_dict(config: Any) -> dict[str, Any]:
    """A config as nested dicts, lists and scalars, for JSON: `from_dict(to_dict(c), type(c)) == c`."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config) if field.init}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _convert(value: Any, hint: Any, source: str, key: str) -> Any:
    """value checked against the type hint; lists become tuples, tables dataclasses. Raises ConfigError."""
    origin, arguments = get_origin(hint), get_args(hint)
    bad = ConfigError(f"{source}: {key} = {_show(value)} is not {_describe(hint)}{_suggestion(value, hint)}")
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        options = [option for option in arguments if option is not type(None)]
        if len(options) == 1:
            return _convert(value, options[0], source, key)
        for option in options:
            try:
                return _convert(value, option, source, key)
            except ConfigError:
                continue
        raise bad
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise bad
        return from_dict(value, hint, source=source, table=key)  # type: ignore[arg-type]
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise bad
        if arguments[-1:] == (Ellipsis,):
            arguments = arguments[:1] * len(value)
        if len(value) != len(arguments):
            raise bad
        return tuple(
            _convert(item, item_hint, source, f"{key}[{index}]")
            for index, (item, item_hint) in enumerate(zip(value, arguments, strict=True))
        )
    if origin is Literal:
        # true == 1 in Python, so the type is compared too
        if not any(value == choice and type(value) is type(choice) for choice in arguments):
            raise bad
        return value
    if hint is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if hint is not float and type(value) is hint:
        return value
    raise bad


def _describe(hint: Any) -> str:
    """What a value of this type is, in words that follow "is not"."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(option) for option in arguments if option is not type(None))
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(_show(choice) for choice in arguments)
    if origin is tuple:
        if arguments[-1:] == (Ellipsis,):
            return f"a list where each is {_describe(arguments[0])}"
        return f"a list of {len(arguments)}: {', '.join(map(_describe, arguments))}"
    if dataclasses.is_dataclass(hint):
        return "a table"
    if hint not in _SCALARS:
        raise TypeError(f"a config field cannot be of type {hint}")
    return _SCALARS[hint]


def _suggestion(value: Any, hint: Any) -> str:
    """The nearest choice of a Literal to a mistyped text."""
    choices = [choice for choice in get_args(hint) if isinstance(choice, str)] if get_origin(hint) is Literal else []
    near = difflib.get_close_matches(value, choices, n=1) if isinstance(value, str) else []
    return f'; did you mean "{near[0]}"?' if near else ""


def _nearest(key: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f'did you mean "{near[0]}"?' if near else f"known keys are {', '.join(known) or 'none'}"


def _show(value: Any) -> str:
    """value as TOML writes it, cut to a length that keeps the error on one line."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
