"""Checks the axes that dataclasses of ``dff`` state for their arrays, whenever a test makes one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, get_type_hints

import numpy as np
from jaxtyping import AbstractArray, jaxtyped

PLAIN = dataclasses.dataclass


class WrongShape(AssertionError):
    """A field holds an array of another type or other axes than its annotation says."""


def array_fields(kind: type) -> dict[str, Any]:
    """The fields of a dataclass that are annotated as arrays with axes."""
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    return {
        name: hints[name]
        for name in names
        if isinstance(hints[name], type) and issubclass(hints[name], AbstractArray)
    }


def check(value: Any, fields: dict[str, Any]) -> None:
    """Raises WrongShape unless the fields of ``value`` agree with their annotations together."""
    with jaxtyped("context"):
        for name, hint in fields.items():
            found = getattr(value, name)
            if not isinstance(found, hint):
                what = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else found
                raise WrongShape(f"{type(value).__qualname__}.{name}: {hint}, not {what}")


def checked_dataclass(kind: type | None = None, /, **options: Any) -> Any:
    """``dataclasses.dataclass``, whose classes in ``dff`` check the arrays they are made with."""

    def decorate(kind: type) -> type:
        made = PLAIN(kind, **options)
        if made.__module__.startswith("dff."):
            made.__init__ = _checking(made, made.__init__)  # type: ignore[misc]
        return made

    return decorate if kind is None else decorate(kind)


def _checking(kind: type, init: Callable[..., None]) -> Callable[..., None]:
    fields: dict[str, Any] | None = None

    def __init__(self: Any, *arguments: Any, **named: Any) -> None:
        nonlocal fields
        init(self, *arguments, **named)
        if fields is None:  # annotations are resolved late: they may name what is defined below
            fields = array_fields(kind)
        check(self, fields)

    __init__.__wrapped__ = init  # type: ignore[attr-defined]  # keeps the signature
    return __init__


def install() -> None:
    """Before any module of ``dff`` is imported."""
    dataclasses.dataclass = checked_dataclass  # type: ignore[assignment]
