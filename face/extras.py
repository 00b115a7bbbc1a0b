"""Optional parts of the distribution: a missing library is named with its install command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dff.face.errors import MissingExtra


@contextmanager
def require_extra(name: str) -> Iterator[None]:
    """Imports within the block need the extra ``name`` of ``deep-face-feature``.

        with require_extra("serve"):
            from fastapi import FastAPI

    Raises MissingExtra where a library is not installed. Blocks nest: the outer one, which
    corresponds to what the user asked for, decides which extra is named. A module of ``dff`` itself
    that does not exist is a bug and stays a ModuleNotFoundError.
    """
    try:
        yield
    except MissingExtra as error:
        raise MissingExtra(error.library, name) from error
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "dff":
            raise
        raise MissingExtra(error.name, name) from error
