"""Configs of the accessories, read from the tables of ``data/*.toml``."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

DATA = Path(__file__).parent / "data"

Colour = tuple[float, float, float]
"""Linear RGB albedo, each 0 to 1."""

Range = tuple[float, float]
"""Lower and upper end of a uniform distribution."""

T = TypeVar("T")


def read_config(kind: type[T], file: str, table: str) -> T:
    """The table of a file in ``data`` as a frozen dataclass.

    Raises ValueError when the table does not name its source or its values do not fit the class.
    """
    with (DATA / file).open("rb") as stream:
        values = tomllib.load(stream)[table]
    if not values.pop("source", ""):
        raise ValueError(f"{file}: [{table}] has no source")
    known: Any = kind
    unknown = set(values) - {field.name for field in fields(known)}
    if unknown:
        raise ValueError(f"{file}: [{table}] has unknown values {sorted(unknown)}")
    config: T = TypeAdapter(kind).validate_python(values)
    return config
