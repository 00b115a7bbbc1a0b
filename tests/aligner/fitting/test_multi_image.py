"""Multi-image fitting with a network that is exact (see ``oracle``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import cv2
import numpy as np
import pytest
from torch import Tensor

from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment, PersonAlignment
from dff.aligner.appearance import AppearanceDescriptor
from dff.aligner.config import MultiImageConfig
from dff.aligner.detection import search_to_end
from dff.aligner.face_request import Steps, T
from dff.aligner.fitting.change import change_between
from dff.aligner.fitting.face_fit import FaceFit
from dff.aligner.fitting.fit_model import FitState
from dff.aligner.fitting.loop import last_fit
from dff.aligner.fitting.multi_image import (
    MultiImageFitter,
    choose_person,
    find_strangers,
    shared_step,
)
from dff.aligner.fitting.perspective import move, perspective_jacobian
from dff.face.arrays import Floats
from dff.face.descriptor import Features
from dff.face.errors import NoFace
from dff.face.geometry.camera import Box
from dff.face.geometry.transform import geodesic_degrees, rotation_from_angles
from dff.face.model.deformation import smooth_fields
from dff.face.model.morphable import Coefficients, MorphableModel
from dff.face.solve.fit_correction import FitCorrection
from dff.face.solve.gauss_newton import (
    POSE,
    FaceState,
    evaluate_shape,
    jacobian,
    linearise,
    project,
    step,
)
from dff.face.solve.robust import robust_weights
from tests.aligner.known_aligner import known_alignment
from tests.aligner.oracle import READING, OracleNet, PositionCode, Scene, scene_of

IDENTITIES, EXPRESSIONS, POINTS = 4, 3, 40
OWN = EXPRESSIONS + 1  # of a photo, beside its pose: expression and inverse depth
CONFIG = MultiImageConfig()


def problem(photos: int, *, rng: np.random.Generator) -> tuple[FitState, dict[str, np.ndarray]]:
    """A state of so many photos that share an identity, and points in them to fit."""
    p = IDENTITIES + EXPRESSIONS
    coefficients = rng.normal(size=(photos, p)) * 0.3
    coefficients[:, :IDENTITIES] = coefficients[0, :IDENTITIES]
    rotation = np.stack([rotation_from_angles(*rng.uniform(-40, 40, 3)) for _ in range(photos)])
    face = FaceState(
        rng.uniform(900, 1100, photos), rotation, rng.uniform(90, 110, (photos, 2)), coefficients
    )
    state = FitState.of(face, np.linspace(0.5, 1.5, photos))
    mean = rng.normal(size=(photos, POINTS, 3)) * 0.05
    basis = rng.normal(size=(photos, POINTS, 3, p)) * 0.005
    targets = rng.normal(size=(photos, POINTS, 2)) * 50 + 100
    weights = rng.uniform(0.1, 1.0, (photos, POINTS))
    return state, {"mean": mean, "basis": basis, "targets": targets, "weights": weights}


def step_together(
    state: FitState,
    given: dict[str, np.ndarray],
    *,
    noise: np.ndarray,
    config: MultiImageConfig = CONFIG,
    damping: float = 1e-6,
) -> FitState:
    at, jac = perspective_jacobian(state, given["mean"], given["basis"])
    system = linearise(given["targets"] - at, jac, given["weights"], noise)
    return shared_step(state, *system, shared=IDENTITIES, config=config, damping=damping)


def project_points(state: FitState, given: dict[str, np.ndarray]) -> np.ndarray:
    points = evaluate_shape(given["mean"], given["basis"], state.coefficients)
    return project(state, points, state.inverse_depth)


def test_the_jacobian_in_perspective_equals_finite_differences() -> None:
    state, given = problem(2, rng=np.random.default_rng(3))
    at, jac = perspective_jacobian(state, given["mean"], given["basis"])
    assert jac.shape[-1] == POSE + IDENTITIES + OWN

    def pixels(delta: np.ndarray) -> np.ndarray:
        return project_points(move(state, np.broadcast_to(delta, (2, len(delta))), CONFIG), given)

    zero = np.zeros(jac.shape[-1])
    np.testing.assert_allclose(at, pixels(zero))
    for column, h in enumerate(1e-5 * np.eye(len(zero))):
        slope = (pixels(zero + h) - pixels(zero - h)) / 2e-5
        np.testing.assert_allclose(jac[..., column], slope, rtol=1e-5, atol=1e-5)


def test_a_camera_far_away_is_weak_perspective() -> None:
    state, given = problem(2, rng=np.random.default_rng(4))
    far = replace(state, inverse_depth=np.zeros(2))
    at, jac = perspective_jacobian(far, given["mean"], given["basis"])
    weak, flat = jacobian(state, given["mean"], given["basis"])
    np.testing.assert_allclose(at, weak)
    np.testing.assert_allclose(jac[..., :-1], flat)


def test_cameras_stay_between_infinity_and_the_nearest() -> None:
    state, _ = problem(2, rng=np.random.default_rng(4))
    delta = np.zeros((2, POSE + IDENTITIES + OWN))
    delta[:, -1] = -9.0, 9.0
    np.testing.assert_array_equal(move(state, delta, CONFIG).inverse_depth, [0.0, CONFIG.nearest])


def test_the_step_of_one_photo_is_that_of_a_single_face() -> None:
    """With a fixed camera."""
    rng = np.random.default_rng(1)
    state, given = problem(1, rng=rng)
    noise = np.array([30.0])
    prior = np.zeros(IDENTITIES + EXPRESSIONS)
    depth = state.inverse_depth
    alone = step(
        state, **given, noise=noise, prior=prior, prior_sd=prior + 1.0, inverse_depth=depth
    )
    fixed = replace(CONFIG, inverse_depth=float(depth[0]), inverse_depth_sd=1e-8)
    shared = step_together(state, given, noise=noise, config=fixed)
    for name in ("scale", "rotation", "centre", "coefficients"):
        np.testing.assert_allclose(getattr(shared, name), getattr(alone, name), atol=1e-9)
    np.testing.assert_allclose(shared.inverse_depth, depth)


def test_elimination_equals_the_dense_normal_equations() -> None:
    """All unknowns of three photos in one matrix, from finite differences of the residuals."""
    rng = np.random.default_rng(2)
    state, given = problem(3, rng=rng)
    noise = np.array([30.0, 40.0, 50.0])
    config = replace(CONFIG, inverse_depth=1.2, inverse_depth_sd=0.5)
    stepped = step_together(state, given, noise=noise, config=config, damping=0.0)

    own = POSE + OWN

    def spread(x: np.ndarray) -> np.ndarray:
        """(3, Q) of the photos from one row: their own parts, then the identity."""
        out = np.zeros((3, POSE + IDENTITIES + OWN))
        parts = x[: 3 * own].reshape(3, own)
        out[:, :POSE], out[:, POSE + IDENTITIES :] = parts[:, :POSE], parts[:, POSE:]
        out[:, POSE : POSE + IDENTITIES] = x[3 * own :]
        return out

    def pixels(x: np.ndarray) -> np.ndarray:
        return project_points(move(state, spread(x), config), given)

    zero = np.zeros(3 * own + IDENTITIES)
    residual = given["targets"] - pixels(zero)
    root = np.sqrt(given["weights"] * robust_weights(residual, noise[:, None])) / noise[:, None]
    columns = [(pixels(zero + h) - pixels(zero - h)) / 2e-5 for h in 1e-5 * np.eye(len(zero))]
    jacobian = np.stack([(root[..., None] * c).ravel() for c in columns], axis=1)
    of_photo = np.r_[np.zeros(POSE), np.ones(EXPRESSIONS), 4.0]
    prior = np.r_[np.tile(of_photo, 3), np.ones(IDENTITIES)]
    off_mean = np.concatenate(
        [
            np.r_[np.zeros(POSE), row[IDENTITIES:], depth - 1.2]
            for row, depth in zip(state.coefficients, state.inverse_depth, strict=True)
        ]
        + [state.coefficients[0, :IDENTITIES]]
    )
    delta = np.linalg.solve(
        jacobian.T @ jacobian + np.diag(prior),
        jacobian.T @ (root[..., None] * residual).ravel() - prior * off_mean,
    )
    wanted = move(state, spread(delta), config)
    for name in ("scale", "rotation", "centre", "coefficients", "inverse_depth"):
        np.testing.assert_allclose(
            getattr(stepped, name), getattr(wanted, name), rtol=1e-5, atol=1e-5
        )
    assert np.ptp(stepped.coefficients[:, :IDENTITIES], axis=0).max() == 0.0


YAWS = (0.0, -35.0, 45.0, -60.0, 20.0)


def photos(
    model: MorphableModel, code: PositionCode, seed: int, *, residual: np.ndarray | float = 0.0
) -> tuple[np.ndarray, list[Scene]]:
    """An identity and scenes of it and a ``residual`` deformation, each with its own expression."""
    rng = np.random.default_rng(seed)
    identity = np.zeros(len(model.identity))
    identity[:40] = rng.normal(size=40)
    scenes = []
    for yaw in YAWS:
        expression = (
            np.clip(rng.normal(size=len(model.expression)), 0, 1.5) * model.expression_sd * 0.5
        )
        turns = {"pitch": rng.uniform(-15, 15), "roll": rng.uniform(-15, 15)}
        scenes.append(
            scene_of(
                model, code, identity, expression, yaw=yaw, rng=rng, residual=residual, **turns
            )
        )
    return identity, scenes


def shape_error(model: MorphableModel, true: np.ndarray, found: PersonAlignment) -> float:
    """Millimetres between the (V, 3) true and the found face at rest, over the face."""
    face = np.unique(model.faces[model.find_triangles("face", "lips", "brows")])
    apart = true[face] - found.vertices[face]
    apart -= apart.mean(0)
    return float(1e3 * np.linalg.norm(apart, axis=1).mean())


def at_rest(model: MorphableModel, identity: np.ndarray) -> np.ndarray:
    return model.vertices(Coefficients(identity, np.zeros(len(model.expression))))


@pytest.mark.slow
def test_five_photos_determine_a_shape_better_than_one(
    oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode
) -> None:
    alone, together = [], []
    for seed in range(2):
        identity, scenes = photos(open_head, code, seed)
        true = at_rest(open_head, identity)
        images, boxes = [s.image for s in scenes], [s.box for s in scenes]
        for image, box in zip(images, boxes, strict=True):
            one = oracle_aligner.align_person([image], [box])
            alone.append(shape_error(open_head, true, one))
        found = oracle_aligner.align_person(images, boxes)
        together.append(shape_error(open_head, true, found))
        for face, scene in zip(found.faces, scenes, strict=True):
            assert face is not None
            assert geodesic_degrees(face.cam_from_head.rotation, scene.rotation) < 5.0
            np.testing.assert_array_equal(face.coefficients.identity, found.identity)
        assert not found.left_out
    assert np.mean(together) < 0.8 * np.mean(alone), (together, alone)


def test_order_changes_nothing(
    oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode
) -> None:
    _, scenes = photos(open_head, code, 5)
    images, boxes = [s.image for s in scenes[:3]], [s.box for s in scenes[:3]]
    forth = oracle_aligner.align_person(images, boxes)
    back = oracle_aligner.align_person(images[::-1], boxes[::-1])
    # The rounding of sums over a batch depends on its order and may decide about an anchor that is
    # just visible, one of hundreds; the unit is a standard deviation of people.
    np.testing.assert_allclose(back.identity, forth.identity, atol=1e-3)


def test_photos_are_observed_in_several_sizes(
    oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode
) -> None:
    """Only in multi-image fitting; an oracle that is exact at each size finds the same faces."""
    seen: list[int] = []

    class Watched(OracleNet):
        def __call__(self, image: Tensor) -> Features:
            seen.append(image.shape[3])
            return super().__call__(image)

    person = replace(oracle_aligner.config.multi_image, scales=(0.75, 1.0))
    config = replace(oracle_aligner.config, multi_image=person)
    aligner = Aligner(Watched(code), oracle_aligner.anchors, open_head, config=config)
    _, scenes = photos(open_head, code, 5)
    images, boxes = [s.image for s in scenes[:2]], [s.box for s in scenes[:2]]
    aligner.align_batch(images, [[box] for box in boxes])
    assert set(seen) == {config.crop}
    found = aligner.align_person(images, boxes)
    assert set(seen) == {config.crop, config.crop * 3 // 4}
    one_size = oracle_aligner.align_person(images, boxes)
    for face, expected, box in zip(found.faces, one_size.faces, boxes, strict=True):
        assert face is not None
        assert expected is not None
        off = np.linalg.norm(face.landmarks_2d - expected.landmarks_2d, axis=1).mean()
        assert off < 0.01 * box.size


def test_photos_without_a_face_are_left_out_with_a_reason(
    oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode
) -> None:
    _, scenes = photos(open_head, code, 6)
    empty = np.zeros_like(scenes[0].image)
    images, boxes = (
        [scenes[0].image, empty, scenes[1].image],
        [s.box for s in (scenes[0], scenes[0], scenes[1])],
    )
    found = oracle_aligner.align_person(images, boxes)
    assert found.faces[1] is None
    assert list(found.left_out) == [1]
    assert "face" in found.left_out[1]
    alone = oracle_aligner.align_person(images[::2], boxes[::2])
    np.testing.assert_array_equal(found.identity, alone.identity)
    with pytest.raises(NoFace, match="photo 1"):
        oracle_aligner.align_person([empty], boxes[:1])
    with pytest.raises(ValueError, match="0 images"):
        oracle_aligner.align_person([])


def test_a_photo_without_trust_changes_nothing(
    oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode
) -> None:
    _, scenes = photos(open_head, code, 9)
    images, boxes = [s.image for s in scenes[:3]], [[s.box] for s in scenes[:3]]
    alone = [faces[0] for faces in oracle_aligner.align_batch(images, boxes)]

    def fit(faces: list[Alignment]) -> Alignment:
        start = oracle_aligner.multi_image_fitter.begin(faces)
        return oracle_aligner.align_from(
            oracle_aligner.multi_image_fitter,
            images[: len(faces)],
            [face.box for face in faces],
            start,
        )[0]

    two = fit(alone[:2])
    distrusted, trusted = (
        fit([*alone[:2], replace(alone[2], face_confidence=confidence)])
        for confidence in (1e-6, 1.0)
    )
    off = [np.abs(found.vertices - two.vertices).max() for found in (distrusted, trusted)]
    assert off[0] < 0.2 * off[1]


def test_what_each_photo_misses_moves_its_face(
    oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode
) -> None:
    """By a correction of fits that always predicts one change, in the axes of the crops."""
    _, scenes = photos(open_head, code, 9)
    images = [s.image for s in scenes[:2]]
    alone = [
        faces[0] for faces in oracle_aligner.align_batch(images, [[s.box] for s in scenes[:2]])
    ]
    one_pass = MultiImageConfig(
        passes=1, scales=(1.0,), identities=12, expressions=4, coarse_fields=2, fine_fields=2
    )
    config = replace(oracle_aligner.config, multi_image=one_pass)
    channels, changes = oracle_aligner.anchors.descriptor.shape[1], POSE + 1
    missing = np.zeros(changes)
    missing[0], missing[2], missing[4] = 0.03, 0.06, 0.02  # larger, turned about y, to the right

    def fit(correction: FitCorrection | None) -> FaceFit:
        fitter = MultiImageFitter(
            oracle_aligner.net,
            oracle_aligner.anchors,
            open_head,
            config,
            multiple=oracle_aligner.multiple,
            correction=correction,
        )
        return search_to_end(last_fit(fitter, images, fitter.begin(alone)))

    mean, weight = np.zeros((68, channels)), np.zeros((68 * channels, changes))
    directions = np.zeros((1, len(open_head.identity) + len(open_head.expression)))
    plain, moved = fit(None), fit(FitCorrection(mean, weight, missing, directions))
    size = oracle_aligner.fit_model.face_size(
        oracle_aligner.fit_model.state_of_alignments(alone, 1.0)
    )
    found = change_between(plain.state, moved.state, plain.crops.angle, size)
    np.testing.assert_allclose(found[:, :POSE], missing[None, :POSE].repeat(2, 0), atol=0.008)


def test_without_residual_deformation_faces_are_those_of_identities(
    oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode
) -> None:
    _, scenes = photos(open_head, code, 7)
    found = with_deformation(oracle_aligner, 0.0).align_person(
        [s.image for s in scenes[:2]], [s.box for s in scenes[:2]]
    )
    assert np.abs(found.residual_deformation).max() < 1e-6
    np.testing.assert_allclose(found.vertices, at_rest(open_head, found.identity), atol=1e-6)


def test_a_face_that_no_identity_forms(
    oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode
) -> None:
    """Five photos fit it better with a residual deformation; without observations that is zero."""
    rng = np.random.default_rng(8)
    vertex = oracle_aligner.anchors.vertex
    person = oracle_aligner.config.multi_image
    fields = smooth_fields(
        open_head.template, vertex, reach=person.coarse_range, count=person.coarse_fields
    )
    residual = 0.005 * np.tensordot(fields.T, rng.normal(size=(len(fields), 3)), axes=1)
    identity, scenes = photos(open_head, code, 8, residual=residual)
    true = at_rest(open_head, identity) + residual
    images, boxes = [s.image for s in scenes], [s.box for s in scenes]
    found = oracle_aligner.align_person(images, boxes)
    without = with_deformation(oracle_aligner, 0.0).align_person(images, boxes)
    assert shape_error(open_head, true, found) < 0.8 * shape_error(open_head, true, without)
    # Photos that no identity explains are left out before, with a residual deformation as without.
    assert found.left_out == without.left_out
    used = [face for face in found.faces if face is not None]
    assert len(used) >= 2
    for face in used:
        np.testing.assert_allclose(
            face.vertices,
            open_head.vertices(face.coefficients) + found.residual_deformation,
            atol=1e-6,
        )

    # Smooth: neighbours on the mesh go the same way.
    edges = open_head.faces[:, :2]
    steps = np.linalg.norm(np.diff(found.residual_deformation[edges], axis=1), axis=2)
    lengths = np.linalg.norm(np.diff(open_head.template[edges].astype(float), axis=1), axis=2)
    size = np.linalg.norm(found.residual_deformation, axis=1).max()
    fine = person.fine_share * person.deformation_sd
    steepest = 2.0 * size / person.coarse_range + 3.0 * fine / person.fine_range
    assert (steps <= steepest * lengths + 1e-6).all()

    blind = with_deformation(oracle_aligner, 0.005)
    config = blind.config
    blind.multi_image_fitter.config = replace(
        config,
        solver=replace(config.solver, observations=0.01),
        silhouette=replace(config.silhouette, observations=0.01),
        photometric=replace(config.photometric, observations=0.01),
    )
    shown = [image for image, face in zip(images, found.faces, strict=True) if face is not None]
    start = blind.multi_image_fitter.begin(used)
    face = blind.align_from(blind.multi_image_fitter, shown, [face.box for face in used], start)[0]
    assert (
        np.abs(face.vertices - open_head.vertices(face.coefficients)).max()
        < 0.05 * np.abs(found.residual_deformation).max()
    )


def with_deformation(aligner: Aligner, deformation_sd: float) -> Aligner:
    person = replace(aligner.config.multi_image, deformation_sd=deformation_sd)
    return Aligner(
        aligner.net,
        aligner.anchors,
        aligner.model,
        config=replace(aligner.config, multi_image=person),
    )


def test_the_face_on_which_photos_agree_is_the_person(toy_model: MorphableModel) -> None:
    config = MultiImageConfig(preference=0.4)

    def face(identity: float, width: float) -> Alignment:
        neutral = known_alignment(toy_model, Box(0, 0, width, width))
        coefficients = toy_model.neutral()
        coefficients.identity[0] = identity
        return replace(neutral, coefficients=coefficients)

    person = {0: [face(1.0, 50)], 1: [face(-5.0, 90), face(1.1, 40)], 2: [face(0.9, 60)]}
    chosen = choose_person(person, config)
    assert [chosen[i].coefficients.identity[0] for i in range(3)] == [1.0, 1.1, 0.9]
    alike = {0: [face(1.0, 50)], 1: [face(1.0, 20), face(1.2, 90)]}
    assert choose_person(alike, config)[1].coefficients.identity[0] == 1.2


def test_photos_that_agree_least_in_shape_and_texture_are_strangers(
    toy_model: MorphableModel,
) -> None:
    config = MultiImageConfig(stranger=0.45, few_photos=0.4, texture=0.4, texture_unknown=0.35)
    neutral = known_alignment(toy_model, Box(0, 0, 50, 50))
    rng = np.random.default_rng(0)
    (mine, other), (own, strange) = np.eye(2), rng.normal(size=(2, 40))
    noise = rng.normal(size=(9, 40)) * 0.3
    all_sides = np.ones(40)

    def find(
        *looks: tuple[Floats, Floats, Floats], sure: tuple[float, ...] = ()
    ) -> Mapping[int, float]:
        seen = {i: AppearanceDescriptor(*one) for i, one in enumerate(looks)}
        faces = {
            i: replace(neutral, face_confidence=sure[i] if sure else 0.9) for i in range(len(looks))
        }
        return find_strangers(faces, seen, config).strangers

    same = [(mine + 0.1 * i, own + noise[i], all_sides) for i in range(4)]
    assert find(*same) == {}
    shape = other - 0.3 * mine, strange, all_sides
    (agreement,) = find(*same[:3], shape).values()
    assert agreement < 0.1
    assert set(find(same[0], shape, *same[1:3], (-mine, -own, all_sides))) == {1, 4}
    # the texture decides between similar shapes, unless the photos show different sides
    shaped_alike = mine * 0.2 + other * 0.6
    assert set(find(*same[:3], (shaped_alike, -own, all_sides))) == {3}
    assert find(*same[:3], (shaped_alike, own, all_sides)) == {}
    left = np.repeat([1.0, 0.0], 20)
    assert find((mine, own, left), (mine, -own, 1.0 - left)) == {}
    assert set(find((mine, own, left), (shaped_alike, -own, left))) == {0}
    # of two that disagree the surer stays
    assert set(find(same[0], shape, sure=(0.8, 0.9))) == {0}
    assert set(find(same[0], shape, sure=(0.9, 0.8))) == {1}
    assert find(same[0]) == {}


@pytest.mark.parametrize(
    ("cosine", "strangers", "doubtful"),
    [(0.7, {3}, set()), (0.75, set(), {3}), (0.9, set(), set())],
)
def test_a_photo_just_above_the_bound_of_strangers_is_doubtful(
    toy_model: MorphableModel, cosine: float, strangers: set[int], doubtful: set[int]
) -> None:
    """The agreement is the cosine minus 0.4, the bound 0.45 - 0.4 / 3 = 0.317."""
    config = MultiImageConfig(stranger=0.45, few_photos=0.4, texture=0.4, doubt=0.1)
    texture = np.random.default_rng(0).normal(size=40)
    mine, other = np.eye(2)
    same = AppearanceDescriptor(mine, texture, np.ones(40))
    turned = cosine * mine + np.sqrt(1 - cosine**2) * other
    seen = {0: same, 1: same, 2: same, 3: AppearanceDescriptor(turned, -texture, np.ones(40))}
    check = find_strangers(
        dict.fromkeys(seen, known_alignment(toy_model, Box(0, 0, 50, 50))), seen, config
    )
    assert (set(check.strangers), set(check.doubtful)) == (strangers, doubtful)


def test_what_is_left_beside_strangers_has_to_agree_more(toy_model: MorphableModel) -> None:
    """Of photos of three people, two agree best: that is no sign of one person."""
    config = MultiImageConfig(
        stranger=0.3, few_photos=0.2, doubt=0.2, doubt_of_rest=0.3, texture=0.0
    )
    mine, other = np.eye(2)

    def turned(cosine: float) -> AppearanceDescriptor:
        identity = cosine * mine + np.sqrt(1 - cosine**2) * other
        return AppearanceDescriptor(identity, np.zeros(40), np.ones(40))

    def find(*looks: AppearanceDescriptor) -> tuple[set[int], set[int]]:
        seen = dict(enumerate(looks))
        neutral = known_alignment(toy_model, Box(0, 0, 50, 50))
        check = find_strangers(dict.fromkeys(seen, neutral), seen, config)
        return set(check.strangers), set(check.doubtful)

    assert find(turned(1.0), turned(0.5)) == (set(), set())
    assert find(turned(1.0), turned(0.5), turned(-1.0)) == ({2}, {0, 1})
    assert find(turned(1.0), turned(0.7), turned(-1.0)) == ({2}, set())


def at_once(answer: T) -> Steps[T]:
    """The steps of a computation that takes one."""
    yield None
    return answer


def test_people_are_compared_relative_to_the_mean_of_fits_to_photos(
    oracle_aligner: Aligner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What all fits share hides a stranger, unless the weights say what it is."""
    model = oracle_aligner.model
    rng = np.random.default_rng(0)
    mine, shared = rng.normal(size=(2, len(model.identity)))
    other, shared = -mine, 3.0 * shared
    box = Box(20.0, 20.0, 80.0, 80.0)
    textures = [cv2.resize(rng.uniform(0, 255, (6, 6, 3)), (100, 100)) for _ in range(2)]
    images = [textures[who].astype(np.uint8) for who in (0, 0, 1, 0)]

    def face(identity: Floats) -> Alignment:
        coefficients = replace(model.neutral(), identity=shared + identity)
        return replace(known_alignment(model, box), coefficients=coefficients)

    alone = [face(mine), face(0.9 * mine), face(other), face(1.1 * mine)]
    for mean, left_out in ((None, set()), (shared, {2})):
        aligner = Aligner(
            oracle_aligner.net,
            oracle_aligner.anchors,
            model,
            config=READING,
            mean_identity=mean,
        )
        monkeypatch.setattr(
            aligner, "align_in_steps", lambda *_, **__: at_once([[one] for one in alone])
        )
        monkeypatch.setattr(
            aligner, "_align_photos_of_person", lambda _, faces: at_once(dict(faces))
        )
        assert set(aligner.align_person(images).left_out) == left_out
    with pytest.raises(ValueError, match="a mean identity of 3 coefficients"):
        Aligner(oracle_aligner.net, oracle_aligner.anchors, model, mean_identity=np.zeros(3))


def test_a_stranger_is_left_out_by_name_unless_a_box_says_who_is_meant(
    oracle_aligner: Aligner, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = oracle_aligner.model
    rng = np.random.default_rng(0)
    mine = rng.normal(size=len(model.identity))
    other = -mine
    box = Box(20.0, 20.0, 80.0, 80.0)
    textures = [cv2.resize(rng.uniform(0, 255, (6, 6, 3)), (100, 100)) for _ in range(2)]
    images = [textures[who].astype(np.uint8) for who in (0, 0, 1, 0)]

    def face(identity: Floats) -> Alignment:
        coefficients = replace(model.neutral(), identity=identity)
        return replace(known_alignment(model, box), coefficients=coefficients)

    alone = [face(mine), face(0.8 * mine), face(other), face(1.2 * mine)]
    monkeypatch.setattr(
        oracle_aligner, "align_in_steps", lambda *_, **__: at_once([[one] for one in alone])
    )
    monkeypatch.setattr(
        oracle_aligner, "_align_photos_of_person", lambda _, faces: at_once(dict(faces))
    )
    person = oracle_aligner.align_person(images)
    assert [one is None for one in person.faces] == [False, False, True, False]
    assert "not the person of the other photos" in person.left_out[2]
    asked = oracle_aligner.align_person(images, [None, None, box, None])
    assert asked.left_out == {}
    assert set(asked.doubts) == {2}
    assert "may show someone else" in asked.doubts[2]
    names = ["a", "b", "c", "d"]
    assert [name for name, one in asked.to_json(names)["photos"].items() if "doubt" in one] == ["c"]
