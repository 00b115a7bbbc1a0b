"""What is drawn for a view keeps its promises: ranges, co-occurrence, exposure, framing."""

from __future__ import annotations

import numpy as np
import pytest

from dff.face.geometry import lighting
from dff.face.geometry.transform import angles_from_rotation, rotation_from_angles
from dff.face.model.morphable import MorphableModel
from dff.pipeline.scene.camera_sensor import Framing, frame_face, sample_framing, sample_sensor
from dff.pipeline.scene.expressions import (
    ExpressionConfig,
    canonical_unit,
    load_movements,
    look_at_camera,
    sample_expression,
)
from dff.pipeline.scene.lights import directional_light, sample_light
from dff.pipeline.scene.poses import pose_angles, sample_rotation
from dff.pipeline.subjects.build import sample_coefficients


def test_poses_reach_both_profiles_evenly() -> None:
    rng = np.random.default_rng(1)
    rotations = np.array([sample_rotation(rng=rng) for _ in range(4000)])
    yaw = np.array([pose_angles(r)[0] for r in rotations])
    assert yaw.max() > 93
    assert yaw.min() < -93
    assert abs((yaw > 0).mean() - 0.5) < 0.03
    # The angle between where the face looks and where the camera is: yaw's, a little more by pitch.
    away = np.rad2deg(np.arccos(-rotations[:, 2, 2]))
    assert away.max() > 94
    assert 35 / 95 - 0.02 < (away > 60).mean() < 35 / 95 + 0.03
    assert 0.24 < (away < 30).mean() < 30 / 95 + 0.02


@pytest.mark.parametrize("yaw", [-95.0, -91.0, -60.0, 0.0, 89.0, 95.0])
def test_angles_name_a_rotation_also_beyond_the_profile(yaw: float) -> None:
    rotation = rotation_from_angles(yaw, 7.0, -4.0)
    angles = pose_angles(rotation)
    assert np.allclose(angles, (yaw, 7.0, -4.0), atol=1e-9)
    assert np.allclose(rotation_from_angles(*angles), rotation, atol=1e-12)
    if abs(yaw) < 90:
        assert np.allclose(angles, angles_from_rotation(rotation))


def test_every_unit_of_the_movements_is_one_of_the_model(open_head: MorphableModel) -> None:
    known = {canonical_unit(name) for name in open_head.expression_names}
    movements = load_movements()
    for part in (movements.mouth, movements.eyes, movements.brows):
        for movement in part.values():
            for unit in movement.units:
                plain = unit.lower()
                assert plain in known or {plain + "left", plain + "right"} <= known, unit
    for companions in movements.companions.values():
        assert set(companions.get("eyes", ())) <= set(movements.eyes)
        assert set(companions.get("brows", ())) <= set(movements.brows)


def test_a_share_of_the_expressions_has_closed_eyes(open_head: MorphableModel) -> None:
    names, rng = open_head.expression_names, np.random.default_rng(2)
    config = ExpressionConfig(closed_eyes=0.5)
    drawn = [sample_expression(names, rng=rng, config=config) for _ in range(400)]
    closed = np.array([m.split("+")[1] in ("shut", "squeezed") for _, m in drawn])
    assert 0.4 < closed.mean() < 0.6
    blink = np.array([values[list(names).index("eyeBlinkLeft")] for values, _ in drawn])
    assert blink[closed].min() > 0.2
    assert blink[~closed].mean() < 0.3


def test_expressions_are_plausible(open_head: MorphableModel) -> None:
    rng = np.random.default_rng(2)
    names = [canonical_unit(n) for n in open_head.expression_names]
    drawn = [sample_expression(open_head.expression_names, rng=rng) for _ in range(800)]
    values = np.array([v for v, _ in drawn])
    assert values.min() >= 0.0
    assert values.max() <= 1.0

    def unit(name: str) -> np.ndarray:
        return values[:, names.index(name)]

    # Pairs move together, a little unevenly; opposed muscles do not pull at once.
    even = ~np.array([movement.startswith("smirk") for _, movement in drawn])
    assert np.abs(unit("mouthsmileleft") - unit("mouthsmileright"))[even].max() <= 0.4
    assert np.corrcoef(unit("mouthsmileleft")[even], unit("mouthsmileright")[even])[0, 1] > 0.95
    assert np.minimum(unit("mouthsmileleft"), unit("mouthsmileright"))[~even].max() == 0.0
    assert (np.minimum(unit("mouthsmileleft"), unit("mouthfrownleft")) == 0).all()
    assert (np.minimum(unit("eyelookoutleft"), unit("eyelookinleft")) == 0).all()
    assert (unit("eyelookoutleft") == unit("eyelookinright")).all()
    # Every movement of the table happens.
    seen = {part for _, movement in drawn for part in movement.split("+")}
    movements = load_movements()
    assert seen == {*movements.mouth, *movements.eyes, *movements.brows}
    assert (unit("jawopen") > 0.5).mean() > 0.02


def test_eyes_meet_the_camera(open_head: MorphableModel) -> None:
    """The eyes turn against the head, to the side where the camera is; far turned heads keep their
    gaze.
    """
    names = [canonical_unit(n) for n in open_head.expression_names]
    rest = np.zeros(len(names), dtype=np.float32)
    eyes = open_head.find_triangles("eyes")
    for yaw, pitch in ((30.0, 0.0), (-20.0, 10.0), (0.0, -25.0)):
        rotation = rotation_from_angles(yaw, pitch, 8.0)
        looking = look_at_camera(rest, open_head.expression_names, rotation)
        moved = np.tensordot(looking, open_head.expression, axes=1)
        rows = np.unique(open_head.faces[eyes])
        front = rows[open_head.template[rows, 2] > np.quantile(open_head.template[rows, 2], 0.8)]
        towards = -rotation[2]
        assert (moved[front].mean(0)[:2] @ towards[:2]) > 0.6 * np.linalg.norm(
            moved[front].mean(0)[:2]
        ) * np.linalg.norm(towards[:2])
    away = look_at_camera(rest, open_head.expression_names, rotation_from_angles(70.0, 0.0, 0.0))
    assert (away == rest).all()


def test_identity_coefficients_are_truncated_normal() -> None:
    drawn = sample_coefficients(20_000, rng=np.random.default_rng(3), limit=2.0)
    assert np.abs(drawn).max() <= 2.0
    assert abs(drawn.mean()) < 0.03
    assert abs(drawn.std() - 0.880) < 0.02  # of a standard normal cut at 2


def test_a_lamp_shades_like_a_clamped_cosine() -> None:
    rng = np.random.default_rng(4)
    normals = rng.normal(size=(20_000, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    direction = np.array([0.6, 0.0, -0.8])
    found = lighting.basis(normals) @ directional_light(direction)
    truth = np.maximum(normals @ direction, 0.0)
    assert (
        np.abs(found - truth).max() < 0.095
    )  # 3 / 32 at the terminator, where the cosine has its kink
    assert ((found - truth) ** 2).mean() / (truth**2).mean() < 0.01


def test_exposure_is_normalised() -> None:
    rng = np.random.default_rng(5)
    towards = np.array([[np.sin(a), 0.0, -np.cos(a)] for a in np.linspace(-1, 1, 9)])
    levels = [lighting.shade(towards, sample_light(rng=rng)).mean() for _ in range(300)]
    assert min(levels) > 0.4
    assert max(levels) < 1.6
    assert 0.8 < np.median(levels) < 1.1


@pytest.mark.parametrize("size", [128, 256])
def test_a_framed_face_has_the_asked_size_and_place(open_head: MorphableModel, size: int) -> None:
    rng = np.random.default_rng(6)
    points = open_head.template[open_head.landmarks.vertex].astype(np.float64)
    for _ in range(200):
        framing = sample_framing(rng=rng)
        motion, camera = frame_face(points, sample_rotation(rng=rng), framing, size)
        px = camera.px_from_cam(motion.apply(points))
        extent = px.max(0) - px.min(0)
        assert extent.max() == pytest.approx(framing.share * size)
        assert np.allclose((px.max(0) + px.min(0)) / 2, np.array(framing.centre) * size)
        assert 0.32 <= framing.share <= 0.66
        assert (px > -0.12 * size).all()
        assert (px < 1.12 * size).all()
        assert motion.translation[2] == pytest.approx(framing.distance)


def test_a_camera_inside_the_face_is_refused(open_head: MorphableModel) -> None:
    points = open_head.template[open_head.landmarks.vertex]
    framing = Framing(distance=0.03, off_axis=(0.0, 0.0), share=0.5, centre=(0.5, 0.5))
    with pytest.raises(ValueError, match="behind the camera"):
        frame_face(points, rotation_from_angles(0, 0, 0), framing, 256)


def test_the_same_generator_draws_the_same() -> None:
    a, b = (sample_sensor(rng=np.random.default_rng(7)) for _ in range(2))
    assert a == b
    one, two = (sample_light(rng=np.random.default_rng(8)) for _ in range(2))
    assert (one == two).all()
