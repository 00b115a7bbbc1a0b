"""Meshes of alignments that are computed when they are first read."""

from __future__ import annotations

import pickle
from functools import partial

import numpy as np

from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment, DeferredField
from dff.face.model.morphable import MorphableModel
from tests.aligner.oracle import PositionCode, make_scene


class Holder:
    """Has a deferred field."""

    mesh = DeferredField("mesh")


def test_a_deferred_field_is_computed_once_and_only_when_it_is_read() -> None:
    calls: list[int] = []

    def compute() -> str:
        calls.append(1)
        return "mesh"

    one, other = Holder(), Holder()
    one.mesh, other.mesh = compute, "given"
    assert not calls
    assert (one.mesh, one.mesh, other.mesh) == ("mesh", "mesh", "given")
    assert len(calls) == 1


def test_an_alignment_is_pickled_with_its_mesh(
    oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode
) -> None:
    scene = make_scene(open_head, code, yaw=20.0, rng=np.random.default_rng(3))
    (face,) = oracle_aligner.align(scene.image, [scene.box])
    mesh = face.vertices
    vars(face)["vertices"] = partial(np.add, mesh, 1.0)  # as it is before the first read
    again = pickle.loads(pickle.dumps(face))
    assert isinstance(again, Alignment)
    np.testing.assert_array_equal(again.vertices, mesh + 1.0)
    assert isinstance(vars(again)["vertices"], np.ndarray)
