"""Rows of batched values: frozen dataclasses whose arrays share a leading batch axis.

Fields that are such dataclasses are handled recursively. Other fields are common to all rows and
kept as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, cast

import numpy as np

from dff.face.arrays import Bools, Ints

T = TypeVar("T")


def take_rows(value: T, rows: Bools | Ints | slice) -> T:
    """The ``rows`` of a batched value."""
    return cast(T, _mapped(lambda array: array[rows], value))


def replace_rows(value: T, rows: Ints, part: T) -> T:
    """A new value like ``value`` whose (N,) ``rows`` are those of ``part``."""

    def merged(whole: Any, new: Any) -> Any:
        out = whole.copy()
        out[rows] = new
        return out

    return cast(T, _mapped(merged, value, part))


def join_rows(parts: Sequence[T]) -> T:
    """A value with the rows of all parts, in order."""
    if len(parts) == 1:
        return parts[0]
    return cast(T, _mapped(lambda *arrays: np.concatenate(arrays), *parts))


def choose_rows(condition: Bools, yes: T, no: T) -> T:
    """A value whose rows are those of ``yes`` where (B,) ``condition`` holds, else of ``no``."""

    if condition.all():
        return yes

    def chosen(a: Any, b: Any) -> Any:
        return np.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return cast(T, _mapped(chosen, yes, no))


def with_fields(value: T, **fields: Any) -> T:
    """A value with other ``fields``, which are not checked: those of a valid value fit."""
    out = object.__new__(type(value))
    vars(out).update(vars(value), **fields)
    return out


def _mapped(function: Callable[..., Any], *values: Any) -> Any:
    first: Any = values[0]
    if isinstance(first, np.ndarray):
        return function(*values)
    kind: Any = type(first)
    names = _field_names(kind)
    if names is None:
        return first
    # The parts of valid values are valid, so that no check runs again: fits map them all the time.
    out = object.__new__(kind)
    own, tables = vars(out), [vars(value) for value in values]
    for name in names:
        parts = [table[name] for table in tables]
        # most fields are arrays: a call less for each of them
        own[name] = function(*parts) if type(parts[0]) is np.ndarray else _mapped(function, *parts)
    return out


@cache
def _field_names(kind: type) -> tuple[str, ...] | None:
    """The fields of a dataclass; None for other values."""
    return tuple(field.name for field in fields(kind)) if is_dataclass(kind) else None
