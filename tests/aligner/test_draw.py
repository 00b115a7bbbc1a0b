from dataclasses import replace

import cv2
import numpy as np
import pytest

from dff.aligner.align import Aligner
from dff.aligner.draw import (
    FAILED,
    TRACKS,
    FilmDrawing,
    draw,
    draw_landmarks,
    feather_border,
)
from dff.face.geometry.camera import Box
from dff.face.model.morphable import MorphableModel
from tests.aligner.oracle import PositionCode, make_scene


@pytest.fixture(scope="module")
def aligned(oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode):
    scene = make_scene(open_head, code, yaw=20.0, rng=np.random.default_rng(3))
    return scene.image, oracle_aligner.align(scene.image, [scene.box])[0]


def test_landmarks_are_drawn_where_they_are() -> None:
    image = np.zeros((200, 200, 3), np.uint8)
    points = np.random.default_rng(0).uniform(40, 160, (68, 2))
    draw_landmarks(image, points, np.ones(68))
    assert all(image[int(y), int(x)].max() > 60 for x, y in points)
    assert not image[:10].any()


def test_hidden_landmarks_are_hollow() -> None:
    points = np.full((68, 2), 100.5)
    points[0] = 40.5  # all lines lie on the diagonal that ends at the dot
    shown, hidden = np.zeros((2, 200, 200, 3), np.uint8)
    draw_landmarks(shown, points, np.ones(68))
    draw_landmarks(hidden, points, np.zeros(68))
    inside, ring = (99, 101), (100, 103)
    assert shown[inside].max() > hidden[inside].max()
    assert hidden[ring].max() > shown[ring].max()


def test_the_mesh_covers_the_face_and_leaves_the_photo_alone_elsewhere(
    aligned, open_head: MorphableModel
) -> None:
    image, face = aligned
    drawn = draw(image, [face], open_head)
    assert drawn.shape == image.shape
    assert not np.array_equal(drawn, image)
    px = face.vertices_px
    outside = np.ones(image.shape[:2], bool)
    (x0, y0), (x1, y1) = px[:, :2].min(0) - 30, px[:, :2].max(0) + 30
    outside[max(int(y0), 0) : int(y1), max(int(x0), 0) : int(x1)] = False
    assert np.array_equal(drawn[outside], image[outside])
    nose = face.landmarks_3d[28, :2].astype(int)
    assert not np.array_equal(drawn[nose[1], nose[0] + 4], image[nose[1], nose[0] + 4])


def test_the_faces_of_a_frame_have_numbers_and_their_colours(
    aligned, open_head: MorphableModel
) -> None:
    image, face = aligned
    plain, first, second = (
        draw(image, [face], open_head, mesh=False, tracks=tracks) for tracks in (None, [0], [1])
    )
    for drawn, colour in ((first, TRACKS[0]), (second, TRACKS[1])):
        x, y = face.landmarks_2d[33].astype(int)
        assert (drawn[y, x] == colour).all()
        assert (drawn == colour).all(-1).sum() > (plain == TRACKS[0]).all(-1).sum() + 50


def test_lines_of_a_film_are_as_thick_in_each_frame(
    aligned, open_head: MorphableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The face's size lies near one at which lines would get thicker, and varies by 10 %."""
    image, face = aligned

    def thicknesses(size: float, film: FilmDrawing) -> tuple[int, ...]:
        used: list[int] = []
        centre, own = face.landmarks_2d.mean(0), Box.around(face.landmarks_2d).size
        scaled = centre + (face.landmarks_2d - centre) * size / own
        with monkeypatch.context() as patch:
            for name, place in (("polylines", 4), ("line", 4), ("circle", 4), ("putText", 6)):
                patch.setattr(cv2, name, lambda *a, place=place: used.append(a[place]))
            one = replace(face, landmarks_2d=scaled)
            draw(image, [one], open_head, mesh=False, tracks=[3], film=film)
        return tuple(used)

    film = FilmDrawing()
    drawn = [thicknesses(size, film) for size in (310.0, 285.0, 315.0, 290.0)]
    assert len(set(drawn)) == 1
    assert len({thicknesses(size, FilmDrawing()) for size in (310.0, 285.0)}) == 2
    assert thicknesses(700.0, film) == thicknesses(700.0, FilmDrawing()), "it comes nearer"


def test_a_failed_face_is_only_its_box(oracle_aligner: Aligner, open_head: MorphableModel) -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    face = oracle_aligner.align(image, [Box(20, 20, 80, 80)])[0]
    drawn = draw(image, [face], open_head)
    assert (drawn[20, 30] == FAILED).all()
    assert not drawn[30:70, 30:70].any()


def test_the_border_between_face_and_scalp_has_no_teeth() -> None:
    y, x = np.indices((120, 120))
    teeth = y > 60 + 3 * np.abs(x % 8 - 4) / 2  # six pixels high
    opacity = feather_border(np.ones((120, 120), bool), teeth, 150.0)
    border = np.argmax(opacity > 0.5, axis=0)[20:100]
    assert np.ptp(np.argmax(teeth, axis=0)) == 6
    assert np.ptp(border) <= 1
    assert opacity[:40].max() == 0.0
    assert opacity[80:110, 10:110].min() == 1.0
