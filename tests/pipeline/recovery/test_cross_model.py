"""Faces of another model, rendered and recovered with the open head: the pixels must help."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.cross_model import ANNOTATION_NOISE, FIGURES, Ruler, made, measure_errors
from dff.face.geometry.transform import rotation_from_angles
from dff.face.io.assets import load_albedo, load_model
from dff.face.model.morphable import Coefficients, MorphableModel


@pytest.fixture(scope="module")
def ruler(shared: Path, open_head: MorphableModel) -> Ruler:
    return Ruler.of(
        load_model(str(shared / "models" / "ict-facekit-light" / "ict_facekit_light.npz")),
        open_head,
    )


def test_the_joint_fit_beats_its_start_on_faces_of_another_model(ruler: Ruler) -> None:
    """A sample of what ``benchmarks.cross_model`` measures."""
    own, albedo = load_albedo(model=ruler.truth), load_albedo()
    pairs = []
    for number, yaw in enumerate((0.0, -30.0, 60.0)):
        known = made(
            ruler.truth, own, yaw, noise=ANNOTATION_NOISE, rng=np.random.default_rng([5, number])
        )
        pairs.append(measure_errors(known, ruler, albedo))
    start, joint = (dict(zip(FIGURES, figures, strict=True)) for figures in np.array(pairs).mean(0))
    assert joint["3D error, mm"] < 0.9 * start["3D error, mm"]
    for figure in ("light", "albedo"):
        assert joint[figure] < start[figure]


def test_equal_shapes_have_no_error(open_head: MorphableModel) -> None:
    """Neither size nor pose is an error; a millimetre is one."""
    ruler = Ruler.of(open_head, open_head)
    rng = np.random.default_rng(0)
    shape = open_head.vertices(Coefficients(rng.normal(size=40), np.zeros(0)))
    turned = 1.3 * shape @ rotation_from_angles(10.0, 5.0, -8.0).T + np.array([0.1, 0.0, -0.2])
    surface, corresponding = ruler.surface_mm(shape, turned)
    assert surface < 0.02
    assert corresponding < 0.3  # the registration of a template with itself
    rough = shape + rng.normal(size=shape.shape) * 0.001
    assert 0.3 < ruler.surface_mm(rough, shape)[0] < 1.0
