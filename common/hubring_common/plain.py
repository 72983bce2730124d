"""Dataclasses as plain JSON-able data, by field name, and back."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from enum import Enum
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


def dump(value: Any) -> Any:
    """Plain data: dicts with text keys, lists, numbers, text. Enums become their names."""
    if dataclasses.is_dataclass(value):
        return {f.name: dump(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): dump(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [dump(item) for item in value]
    return value.name if isinstance(value, Enum) else value


def load(kind: type[T], plain: Mapping[str, Any]) -> T:
    """The `kind` that was dumped. Fields that are missing take their defaults."""
    hints = _hints(typing.cast("Any", kind))
    return kind(**{name: _load(hints[name], value) for name, value in plain.items()})


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _load(hint: Any, plain: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return None if plain is None else _load(args[0], plain)
    if origin is tuple:
        return tuple(_load(args[0], item) for item in plain)
    if dataclasses.is_dataclass(hint):
        return load(typing.cast("Any", hint), plain)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint[plain]
    return math.nan if hint is float and plain is None else plain


def finite(value: Any) -> Any:
    """Plain data as strict JSON can carry it: NaN and infinities become None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
