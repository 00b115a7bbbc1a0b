"""Searches for reference cycles beside requests."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from dff.aligner.service.app import create_app
from dff.aligner.service.garbage import exempt_objects
from dff.face.model.morphable import MorphableModel
from tests.aligner.known_aligner import KnownAligner


class Node:
    """An object that refers to itself."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def searched_again() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_exempt_objects_are_not_searched_until_the_next_time() -> None:
    node = Node()
    there = weakref.ref(node)
    exempt_objects()
    del node
    gc.collect()
    assert there() is not None
    exempt_objects()
    assert there() is None


def test_other_weights_free_the_former_ones(toy_model: MorphableModel) -> None:
    aligner: KnownAligner | None = KnownAligner(toy_model)
    aligner.itself = aligner  # type: ignore[attr-defined, union-attr]
    there = weakref.ref(aligner)
    app = create_app(aligner, on_warm=exempt_objects)  # type: ignore[arg-type]
    aligner = None
    with TestClient(app) as client:
        while client.get("/readyz").status_code != 200:
            pass
        app.state.service.replace_aligner(KnownAligner(toy_model))
        assert client.get("/readyz").status_code == 200
        assert there() is None
