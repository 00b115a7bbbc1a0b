"""Crops are upright and masks cover the face."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dff.aligner.alignment import Alignment
from dff.aligner.cutouts import HEAD, SKIN, crop_face, mask_faces
from dff.face.geometry.camera import Box
from dff.face.model.landmarks import CHIN, NOSE_TIP
from dff.face.model.morphable import MorphableModel
from tests.aligner.known_aligner import known_alignment


@pytest.fixture(scope="module")
def face(open_head: MorphableModel) -> Alignment:
    return known_alignment(open_head, Box(60, 60, 160, 160))


@pytest.mark.parametrize("degrees", [0.0, 90.0, 160.0])
@pytest.mark.parametrize("size", [256, 32])
def test_a_crop_shows_the_face_upright(face: Alignment, degrees: float, size: int) -> None:
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    marks = (face.landmarks_2d - 110) @ turn.T + 110
    image = np.zeros((220, 220, 3), np.uint8)
    rows, columns = np.mgrid[:220, :220] + 0.5
    for point, channel in ((NOSE_TIP, 0), (CHIN, 1)):
        near = np.hypot(columns - marks[point, 0], rows - marks[point, 1]) < 6
        image[near, channel] = 255
    crop = crop_face(image, replace(face, landmarks_2d=marks), size).astype(float)
    assert crop.shape == (size, size, 3)
    places = [np.argwhere(crop[..., c] > 100).mean(0) / size for c in (0, 1)]
    (nose, chin) = places
    assert abs(nose[1] - chin[1]) < 0.03  # one below the other
    assert nose[1] == pytest.approx(0.5, abs=0.04)
    assert 0.15 < chin[0] - nose[0] < 0.35


def test_a_mask_covers_skin_and_head(face: Alignment, open_head: MorphableModel) -> None:
    mask = mask_faces((220, 220), [face, replace(face, failed=True)], open_head)
    x, y = face.landmarks_2d[NOSE_TIP].astype(int)
    assert mask[y, x] == SKIN
    high = face.vertices_px[open_head.template[:, 1].argmax()]
    assert mask[int(high[1]) + 2, int(high[0])] in (HEAD, SKIN)
    assert mask[2, 2] == 0
    assert set(np.unique(mask)) == {0, HEAD, SKIN}
    outside = known_alignment(open_head, Box(500, 500, 600, 600))
    assert not mask_faces((90, 90), [outside], open_head).any()
