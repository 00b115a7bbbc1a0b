"""What is told of a face beside the alignment: camera, landmark sets, eyes, blendshapes."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from dff.aligner.alignment import Alignment
from dff.aligner.eyes import find_irises
from dff.aligner.face_description import FaceDescriber, describe_blendshapes, parse_extras
from dff.aligner.intrinsics import Intrinsics
from dff.aligner.landmark_sets import WrongModel, load_landmark_sets
from dff.face.geometry.camera import Box, NearPerspective, Pinhole
from dff.face.geometry.transform import Rigid, rotation_from_angles
from dff.face.model.landmarks import BROWS, LEFT_EYE, RIGHT_EYE
from dff.face.model.morphable import Coefficients, MorphableModel
from dff.infra.photos.images import decode_image
from tests.aligner.known_aligner import known_alignment

CAMERA = Intrinsics.of(200, 180)


@pytest.fixture(scope="module")
def face(open_head: MorphableModel) -> Alignment:
    return known_alignment(open_head, Box(40, 40, 140, 140))


def with_expression(face: Alignment, model: MorphableModel, **units: float) -> Alignment:
    expression = np.zeros(len(model.expression))
    for name, value in units.items():
        expression[model.expression_names.index(name)] = value
    coefficients = Coefficients(np.zeros(len(model.identity)), expression)
    return replace(face, coefficients=coefficients, vertices=model.vertices(coefficients))


@pytest.mark.parametrize("offset", [(0.0, 0.0), (0.15, -0.1)])
def test_a_head_is_placed_where_it_was_photographed(
    face: Alignment, offset: tuple[float, float]
) -> None:
    truth = Rigid(rotation_from_angles(25.0, -5.0, 8.0), np.array([*offset, 0.8]))
    camera = Intrinsics(900.0, np.array([320.0, 240.0]), "given")
    # what a fit sees that takes the camera to look at the face, from the distance that is right
    ray = truth.translation / truth.translation[2]
    middle = camera.focal * ray[:2] + camera.centre
    distance = float(np.linalg.norm(truth.translation))
    towards, _ = Rotation.align_vectors([0.0, 0.0, 1.0], ray)
    seen = NearPerspective(camera.focal / truth.translation[2], middle, 1.0 / distance)
    turned = Rigid(towards.as_matrix() @ truth.rotation, np.zeros(3))
    placed = camera.place_head(face.vertices, seen, turned)
    away = np.linalg.norm(placed.translation - truth.translation)
    turn = Rotation.from_matrix(placed.rotation.T @ truth.rotation).magnitude()
    exact = offset == (0.0, 0.0)
    assert away < (1e-6 if exact else 0.02)
    assert np.rad2deg(turn) < (1e-4 if exact else 1.0)
    pinhole = Pinhole(camera.focal, camera.centre)
    px = seen.px_from_cam(turned.apply(face.vertices))
    error = np.linalg.norm(pinhole.px_from_cam(placed.apply(face.vertices)) - px, axis=1)
    assert error.mean() < 0.02 * seen.scale * 0.15  # 2 % of a face


def exif_photo(*, size: tuple[int, int], taken: tuple[int, int] | None) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    folder = exif.get_ifd(0x8769)
    folder[0xA405] = 26
    if taken:
        folder[0xA002], folder[0xA003] = taken
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def test_the_focal_length_of_exif_is_taken() -> None:
    image = decode_image(exif_photo(size=(60, 40), taken=(60, 40)))
    assert image.pixels.shape == (60, 40, 3)
    assert image.focal_35mm == 26.0
    camera = Intrinsics.of_photo(40, 60, focal=None, focal_35mm=26.0)
    assert camera.source == "exif"
    assert camera.focal == pytest.approx(26.0 / 43.27 * np.hypot(40, 60))
    assert Intrinsics.of_photo(40, 60, focal=77.0, focal_35mm=26.0).focal == 77.0


def test_the_focal_length_of_a_cropped_photo_is_not() -> None:
    assert decode_image(exif_photo(size=(60, 40), taken=(90, 60))).focal_35mm is None
    assert decode_image(exif_photo(size=(60, 40), taken=None)).focal_35mm == 26.0
    assert Intrinsics.of(60, 40).source == "assumed"


def test_sets_have_their_points(face: Alignment, open_head: MorphableModel) -> None:
    sets = load_landmark_sets()
    points = {name: each.place(face, open_head) for name, each in sets.items()}
    shapes = {name: each.shape for name, each in points.items()}
    assert shapes == {"5": (5, 2), "wflw98": (98, 2), "dense478": (478, 3), "aflw21": (21, 2)}
    assert all(each.source for each in sets.values())
    ibug, wflw = face.landmarks_2d, points["wflw98"]
    assert np.allclose(wflw[:33:2], ibug[:17])
    assert np.allclose(wflw[76:96], ibug[48:68])
    assert np.allclose(points["5"][0], ibug[RIGHT_EYE].mean(0))
    assert np.allclose(points["dense478"][:68], face.vertices_px[open_head.landmarks.vertex])
    # between its neighbours along the jaw, and below the brows' upper edges
    steps = np.linalg.norm(np.diff(wflw[:33], axis=0), axis=1)
    assert steps[::2] == pytest.approx(steps[1::2], rel=0.35)
    assert (wflw[[38, 39, 40, 41], 1] > ibug[BROWS, 1].min()).all()
    for pupil, lids in ((96, RIGHT_EYE), (97, LEFT_EYE)):
        low, high = ibug[lids].min(0), ibug[lids].max(0)
        assert ((wflw[pupil] > low) & (wflw[pupil] < high)).all()


def test_vertices_are_of_one_model(toy_model: MorphableModel) -> None:
    toy = known_alignment(toy_model, Box(40, 40, 140, 140))
    assert load_landmark_sets()["5"].place(toy, toy_model).shape == (5, 2)
    with pytest.raises(WrongModel, match="open-head"):
        load_landmark_sets()["wflw98"].place(toy, toy_model)
    assert find_irises(toy, toy_model) is None
    with pytest.raises(ValueError, match="'wflw99'"):
        FaceDescriber(toy_model, parse_extras("5, wflw99"))
    with pytest.raises(ValueError, match="',' names nothing: there are 5, "):
        parse_extras(",")
    assert parse_extras(None) == parse_extras("") == ()


def test_a_description_agrees_with_itself(face: Alignment, open_head: MorphableModel) -> None:
    smiling = with_expression(face, open_head, jawOpen=0.4, tongueOut=0.5, cheekPuff=-0.2)
    told = FaceDescriber(open_head, ("irises", "blendshapes", "5")).describe(smiling, CAMERA)
    placed = told["head_in_camera"]
    turned = Rotation.from_quat(placed["quaternion"]).as_matrix()
    assert np.allclose(turned, placed["rotation"], atol=1e-5)
    blendshapes: dict[str, float] = told["blendshapes"]
    assert len(blendshapes) == 52
    assert "tongueOut" not in blendshapes
    assert (blendshapes["jawOpen"], blendshapes["cheekPuff"]) == (0.4, 0.0)
    assert describe_blendshapes(face, open_head)["jawOpen"] == 0.0
    assert [*told["landmarks"]] == ["5"]
    assert "landmark_visibility" not in told
    aflw = FaceDescriber(open_head, ("aflw21", "5")).describe(smiling, CAMERA)
    assert [*aflw["landmark_visibility"]] == ["aflw21"]
    assert len(aflw["landmark_visibility"]["aflw21"]) == len(aflw["landmarks"]["aflw21"]) == 21
    pupil = load_landmark_sets()["wflw98"].place(smiling, open_head)[96]
    assert np.allclose(told["irises"]["right"], pupil, atol=0.01)
