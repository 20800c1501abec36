"""Reads JSON text and settings that may be damaged, or not ours: whatever is wrong is an error of `UNFIT`."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import (
    Any,
    ForwardRef,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

__all__ = ["UNFIT", "check_types", "parse_json"]

UNFIT = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
"""What looking for a value in others raises where they are of other types, or missing."""


def parse_json(text: str | bytes) -> Any:
    """Return what a JSON text holds.

    Raises
    ------
    ValueError
        It is none, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def check_types(values: object) -> None:
    """Check that the attributes of a dataclass, and what is in them, are of the types that it names.

    Raises
    ------
    TypeError
        One is not; names it.
    """
    hints = _hints(type(values))  # type: ignore[arg-type] # mypy: any class can be a key
    for field in fields(values):  # type: ignore[arg-type] # mypy: it cannot be said that it is a dataclass
        if not _fits(getattr(values, field.name), hints[field.name]):
            raise TypeError(f"{field.name} is {getattr(values, field.name)!r:.60}")


@functools.cache
def _hints(of: type) -> Mapping[str, Any]:
    return get_type_hints(of)  # 1 ms


def _fits(value: object, hint: Any) -> bool:
    alias = get_origin(hint) or hint
    if hasattr(alias, "__value__"):  # of a ``type`` statement (PEP 695), as numpy 2.5 has them
        hint = alias.__value__
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, str | ForwardRef):  # of a type that names itself
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in arguments)
    if hint is None or hint is NoneType:
        return value is None
    if hint in (int, float):
        return isinstance(value, hint | int) and not isinstance(value, bool)
    if is_typeddict(hint):
        return isinstance(value, dict) and _has_entries(value, _hints(hint))
    if origin is tuple and arguments[-1:] != (...,):
        return isinstance(value, tuple) and len(value) == len(arguments) and all(map(_fits, value, arguments))
    if not isinstance(value, origin or hint):
        return False
    if isinstance(value, Mapping):
        return not arguments or all(
            _fits(key, arguments[0]) and _fits(each, arguments[1]) for key, each in value.items()
        )
    if isinstance(value, Sequence | frozenset) and arguments:
        return all(_fits(each, arguments[0]) for each in value)
    if is_dataclass(hint):
        check_types(value)
    return True


def _has_entries(values: Mapping[str, object], hints: Mapping[str, Any]) -> bool:
    return all(key in hints and _fits(value, hints[key]) for key, value in values.items())
