"""Which of the faces that a photo may show are answered."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dff.aligner.alignment import Alignment
from dff.aligner.found_faces import accept_faces
from dff.face.geometry.camera import Box
from dff.face.geometry.transform import Rigid
from dff.face.model.morphable import MorphableModel
from tests.aligner.known_aligner import known_alignment

BOX = Box(100, 100, 200, 200)


def face(
    model: MorphableModel, *, confidence: float, down: float = 0.0, upside_down: bool = False
) -> Alignment:
    """A face in ``BOX``, moved ``down`` by so many of its own sides."""
    one = known_alignment(model, Box(100, 100 + 100 * down, 200, 200 + 100 * down))
    rotation = one.cam_from_head.rotation
    if upside_down:
        rotation = np.diag([-1.0, -1.0, 1.0]) @ rotation
    pose = Rigid(rotation, one.cam_from_head.translation)
    return replace(one, face_confidence=confidence, cam_from_head=pose)


def test_the_surest_fit_of_a_face_is_answered(open_head: MorphableModel) -> None:
    fits = [face(open_head, confidence=c, down=d) for c, d in ((0.6, 0.0), (0.9, 0.1), (0.8, 2.0))]
    assert accept_faces(fits) == [fits[1], fits[2]]
    assert accept_faces([replace(one, failed=True) for one in fits]) == []


@pytest.mark.parametrize(
    ("confidence", "down", "upside_down", "answered"),
    [
        (0.5, 0.55, True, False),
        (0.8, 0.55, True, True),  # it is sure, too
        (0.5, 0.55, False, True),  # such as the next person in a row
        (0.5, 1.1, True, True),  # beside it
    ],
)
def test_an_unsure_face_does_not_lie_on_a_sure_one_that_is_upside_down(
    open_head: MorphableModel,
    confidence: float,
    down: float,
    upside_down: bool,
    answered: bool,
) -> None:
    sure = face(open_head, confidence=0.99)
    other = face(open_head, confidence=confidence, down=down, upside_down=upside_down)
    assert accept_faces([other, sure]) == ([sure, other] if answered else [sure])
