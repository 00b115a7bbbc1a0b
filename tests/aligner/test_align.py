"""The solver's laws and figures, shown by a network that is right (see ``oracle``)."""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from itertools import cycle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment
from dff.aligner.config import AlignConfig, MultiImageConfig, ObservationConfig
from dff.aligner.detection import Detection
from dff.aligner.face_request import FaceRequest
from dff.aligner.fitting.fit_model import FitState, average_states
from dff.aligner.load import load_aligner
from dff.aligner.preset import AlignPreset
from dff.aligner.report import head_from_reference
from dff.aligner.service.routes.pages import FILES as PAGE_FILES
from dff.face.arrays import Bytes, Floats
from dff.face.descriptor import DeviceNetwork, Features
from dff.face.errors import BadPhoto
from dff.face.geometry.camera import Box, NearPerspective
from dff.face.geometry.transform import angles_from_rotation, geodesic_degrees, rotation_from_vector
from dff.face.model.landmarks import nme_box
from dff.face.model.morphable import MorphableModel
from dff.face.solve.gauss_newton import FaceState
from dff.infra.photos.images import read_image
from tests.aligner.oracle import READING, OracleNet, PositionCode, Scene, make_scene, oracle_anchors


def scenes(
    model: MorphableModel, code: PositionCode, seed: int, yaws: tuple[float, ...], **how: float
) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [
        make_scene(
            model,
            code,
            yaw=yaw,
            pitch=rng.uniform(-15, 15),
            roll=rng.uniform(-25, 25),
            rng=rng,
            **how,
        )
        for yaw in yaws
    ]


def errors(found: list[list[Alignment]], truth: list[Scene]) -> tuple[Floats, Floats]:
    """``nme_box`` in per cent of the 3D scheme, and the pose's error in degrees."""
    nme = [
        100 * nme_box(f[0].landmarks_3d[:, :2], t.landmarks)
        for f, t in zip(found, truth, strict=True)
    ]
    turn = [
        geodesic_degrees(f[0].cam_from_head.rotation, t.rotation)
        for f, t in zip(found, truth, strict=True)
    ]
    return np.array(nme), np.array(turn)


def boxes(truth: list[Scene]) -> list[list[Box]]:
    return [[scene.box] for scene in truth]


YAWS = (0.0, -25.0, 45.0, -60.0, 80.0)
PEOPLE = YAWS * 3  # errors depend on whom the generator drew: figures are of several


def test_the_mean_face_is_recovered_at_every_yaw(
    oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode
) -> None:
    truth = scenes(open_head, code, 1, YAWS, spread=0.0)
    nme, turn = errors(oracle_aligner.align_batch([s.image for s in truth], boxes(truth)), truth)
    assert nme[:4].max() < 0.7, nme
    assert nme.max() < 1.5, nme
    assert turn.max() < 2.5, turn


def test_people_are_recovered_at_every_yaw(
    oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode
) -> None:
    truth = scenes(open_head, code, 2, PEOPLE)
    found = oracle_aligner.align_batch([s.image for s in truth], boxes(truth))
    nme, turn = (e.reshape(3, 5).mean(0) for e in errors(found, truth))  # by yaw
    assert nme[:3].max() < 1.6, nme
    assert nme.max() < 3.0, nme
    assert turn.max() < 4.5, turn
    assert not any(f[0].failed for f in found)
    contour = [
        100 * nme_box(f[0].landmarks_2d, t.landmarks_2d) for f, t in zip(found, truth, strict=True)
    ]
    assert np.reshape(contour, (3, 5))[:, :3].mean() < 2.0, contour
    reference = head_from_reference(open_head.name)
    for (face,), scene in zip(found, truth, strict=True):
        assert (
            np.linalg.norm(face.trace[-1].landmarks_2d - face.landmarks_3d[:, :2], axis=1).max()
            < 1e-3
        )
        assert 2 <= len(face.trace) <= 3
        assert geodesic_degrees(face.pose.matrix, scene.rotation @ reference) < 9.0


class OtherSide(PositionCode):
    """What a mirrored face shows: the points of its other side."""

    def positions(self, colours: Floats) -> Floats:
        return super().positions(colours) * np.array([-1.0, 1.0, 1.0])


def test_a_mirrored_photo_is_matched_to_the_other_side(
    open_head: MorphableModel, code: PositionCode
) -> None:
    there, back = OracleNet(code), OracleNet(OtherSide(code.low, code.high, code.frequency))
    passes = cycle((there, back))
    anchors = oracle_anchors(open_head, code)
    aligner = Aligner(
        lambda image: next(passes)(image),
        anchors,
        open_head,
        config=AlignConfig(
            early_stop=0.0,
            followed_stop=0.0,
            observation=ObservationConfig(network_batch=len(YAWS)),
        ),
    )
    half = len(anchors.vertex)
    first, second = aligner.fit_model.anchor_mean[:half], aligner.fit_model.anchor_mean[half:]
    assert np.abs(second - first * [-1.0, 1.0, 1.0]).max() < 1e-3
    truth = scenes(open_head, code, 1, YAWS, spread=0.0)
    found = aligner.align_batch([s.image for s in truth], boxes(truth))
    nme, turn = errors(found, truth)
    assert all(len(face.trace) == 3 for (face,) in found)
    assert nme[:4].max() < 0.7, nme
    assert nme.max() < 1.5, nme
    assert turn.max() < 2.5, turn


def test_a_third_of_wrong_pixels_and_noise_change_little(
    open_head: MorphableModel, code: PositionCode
) -> None:
    net = OracleNet(code, noise=0.6, wrong=0.3)
    aligner = Aligner(net, oracle_anchors(open_head, code), open_head, config=READING)
    truth = scenes(open_head, code, 2, PEOPLE)
    found = aligner.align_batch([s.image for s in truth], boxes(truth))
    nme, turn = (e.reshape(3, 5).mean(0) for e in errors(found, truth))
    assert nme[:4].max() < 2.8, nme
    assert nme.max() < 4.0, nme
    assert turn.max() < 6.0, turn


def test_a_camera_is_taken_to_be_near(open_head: MorphableModel, code: PositionCode) -> None:
    """Faces seen from 70 cm: to think of a metre leaves less to explain than to think of
    infinity.
    """
    truth = scenes(open_head, code, 5, (0.0, 30.0, -50.0, 70.0), inverse_depth=1 / 0.7)
    missed = {}
    for inverse_depth in (0.0, 1.0):
        config = replace(READING, inverse_depth=inverse_depth)
        aligner = Aligner(
            OracleNet(code), oracle_anchors(open_head, code), open_head, config=config
        )
        found = aligner.align_batch([scene.image for scene in truth], boxes(truth))
        missed[inverse_depth] = errors(found, truth)[0]
        for (face,) in found:
            assert isinstance(face.camera, NearPerspective)
            assert face.camera.inverse_depth == inverse_depth
            px = face.camera.px_from_cam(face.cam_from_head.apply(face.vertices))
            np.testing.assert_allclose(px[open_head.landmarks.vertex], face.landmarks_3d[:, :2])
    assert missed[1.0].mean() < 0.85 * missed[0.0].mean(), missed


def test_the_box_hardly_matters(
    oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode
) -> None:
    truth = scenes(open_head, code, 3, (0.0, 30.0, -60.0))
    rng = np.random.default_rng(0)
    kept, moved = [], []
    for scene in truth:
        for _ in range(3):
            centre = scene.box.centre + rng.uniform(-0.15, 0.15, 2) * scene.box.size
            half = 0.5 * scene.box.size * np.exp(rng.uniform(-0.2, 0.2))
            kept.append(scene)
            moved.append([Box(*(centre - half), *(centre + half))])
    # To the last pass: a fit that is called still a pass earlier may lie half a per cent beside.
    config = replace(oracle_aligner.config, early_stop=0.0, followed_stop=0.0)
    patient = Aligner(oracle_aligner.net, oracle_aligner.anchors, open_head, config=config)
    straight, _ = errors(patient.align_batch([s.image for s in kept], boxes(kept)), kept)
    shaken, _ = errors(patient.align_batch([s.image for s in kept], moved), kept)
    assert np.abs(shaken - straight).max() < 0.4, shaken - straight


def test_a_reporter_is_made_once_for_an_aligner_and_its_offsets(oracle_aligner: Aligner) -> None:
    fit_model = oracle_aligner.fit_model
    one = oracle_aligner.reporter(fit_model)
    assert oracle_aligner.reporter(fit_model) is one
    raw = oracle_aligner.without_annotation_bias()
    other = raw.reporter(fit_model)
    assert other is not one
    assert other.landmark_offsets is raw.landmark_offsets
    assert oracle_aligner.reporter(fit_model).landmark_offsets is oracle_aligner.landmark_offsets


def count_passes(
    aligner: Aligner,
    image: Bytes,
    detections: list[Detection],
    *,
    stop: float,
    given: bool = False,
    beside_sure: bool = False,
) -> list[int]:
    """Of each of the ``detections``, whose fits would take three; in their order."""
    config = replace(aligner.config, early_stop=0.0, doubtful_stop=stop)
    watched = Aligner(aligner.net, aligner.anchors, aligner.model, config=config)
    answered = [replace(one, given=given) for one in detections]
    many = len(answered)
    request = FaceRequest([image] * many, answered, left=0, beside_sure=[beside_sure] * many)
    return [len(face.trace) for face in watched.align_requests([request])[0]]


@pytest.mark.parametrize(
    ("stop", "beside", "given", "passes"),
    [
        (0.5, True, False, [3, 1]),
        (0.0, True, False, [3, 3]),
        (0.5, False, False, [3]),
        (0.5, True, True, [3, 3]),  # who gives a box knows that a face is there
    ],
)
def test_a_doubtful_face_beside_a_sure_one_takes_one_pass(
    oracle_aligner: Aligner,
    open_head: MorphableModel,
    code: PositionCode,
    stop: float,
    beside: bool,
    given: bool,
    passes: list[int],
) -> None:
    rng = np.random.default_rng(8)
    scene = make_scene(open_head, code, yaw=10.0, rng=rng)
    spoilt = scene.image[rng.permutation(len(scene.image))]
    image, place = np.hstack([scene.image, spoilt]), scene.image.shape[1]
    other = Box(scene.box.x0 + place, scene.box.y0, scene.box.x1 + place, scene.box.y1)
    both = [Detection(scene.box, 0.9), Detection(other, 0.8)]
    detections = both if beside else both[1:]
    assert count_passes(oracle_aligner, image, detections, stop=stop, given=given) == passes
    if beside:  # as well where the sure one was aligned in the step before
        alone = count_passes(
            oracle_aligner, image, both[1:], stop=stop, given=given, beside_sure=True
        )
        assert alone == passes[1:]


def test_steps_of_any_size_take_the_same_passes(
    oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode
) -> None:
    rng = np.random.default_rng(8)
    scene = make_scene(open_head, code, yaw=10.0, rng=rng)
    image = np.hstack([scene.image, scene.image[rng.permutation(len(scene.image))]])
    other = replace(scene.box, x0=scene.box.x0 + 320.0, x1=scene.box.x1 + 320.0)
    config = replace(oracle_aligner.config, early_stop=0.0, doubtful_stop=0.5)
    parts = oracle_aligner.net, oracle_aligner.anchors, oracle_aligner.model
    found = [Detection(scene.box, 0.9), Detection(other, 0.8)]
    aligner = Aligner(*parts, config=config, detector=SimpleNamespace(find=lambda image: found))
    taken = []
    for faces in (1, 2):
        steps = aligner.align_in_steps([image], faces=faces)
        aligned: list[Alignment] = []
        request = next(steps)
        while request is not None:
            answer = aligner.align_requests([request])[0]
            aligned += answer
            request = steps.send(answer) if len(aligned) < len(found) else None
        taken.append([len(face.trace) for face in aligned])
    assert taken == [[3, 1], [3, 1]]


@pytest.mark.parametrize(("given", "passes"), [(False, {1, 3}), (True, {3})])
def test_a_fit_that_repeats_a_surer_one_takes_one_pass(
    oracle_aligner: Aligner,
    open_head: MorphableModel,
    code: PositionCode,
    given: bool,
    passes: set[int],
) -> None:
    scene = make_scene(open_head, code, yaw=10.0, rng=np.random.default_rng(8))
    wider = scene.box.square(1.1)
    detections = [Detection(scene.box, 0.9), Detection(wider, 0.8)]
    taken = count_passes(oracle_aligner, scene.image, detections, stop=0.1, given=given)
    assert set(taken) == passes


def test_fits_of_several_crops_are_averaged(
    oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode
) -> None:
    """Sides are rounded to multiples of 32 px; the mean fit is as near to the truth."""
    seen: set[int] = set()

    class Watched(OracleNet):
        def __call__(self, image: Tensor) -> Features:
            seen.add(image.shape[3])
            return super().__call__(image)

    config = replace(oracle_aligner.config, averaged_crops=(0.8, 1.2))
    aligner = Aligner(Watched(code), oracle_aligner.anchors, open_head, config=config)
    truth = scenes(open_head, code, 4, (0.0, 40.0))
    found = aligner.align_batch([s.image for s in truth], boxes(truth))
    crop = config.crop
    assert seen == {crop, round(0.8 * crop / 32) * 32, round(1.2 * crop / 32) * 32}
    once = oracle_aligner.align_batch([s.image for s in truth], boxes(truth))
    assert errors(found, truth)[0].max() < errors(once, truth)[0].max() + 0.3


def with_config(aligner: Aligner, config: AlignConfig) -> Aligner:
    return Aligner(aligner.net, aligner.anchors, aligner.model, config=config)


def test_a_refined_face_may_keep_the_visibility_that_it_was_refined_with(
    open_head: MorphableModel, code: PositionCode, oracle_aligner: Aligner
) -> None:
    (scene,) = scenes(open_head, code, 5, (35.0,))
    once = replace(oracle_aligner.config, passes=1, refine_at_once=True)
    kept = replace(once, visibility=replace(once.visibility, kept_motion=1.0))
    found, again = (
        with_config(oracle_aligner, config).align(scene.image, [scene.box])[0]
        for config in (once, kept)
    )
    np.testing.assert_array_equal(again.landmarks_3d, found.landmarks_3d)
    assert np.abs(again.visibility - found.visibility).mean() < 0.03
    assert not np.array_equal(again.visibility, found.visibility)
    (followed,), (same,) = (
        with_config(oracle_aligner, config).track([scene.image], [[found]])[0]
        for config in (once, kept)
    )
    np.testing.assert_array_equal(same.landmarks_3d, followed.landmarks_3d)
    assert np.abs(same.visibility - followed.visibility).mean() < 0.03


def test_a_pass_may_begin_from_a_visibility_that_was_kept(
    open_head: MorphableModel, code: PositionCode, oracle_aligner: Aligner
) -> None:
    (scene,) = scenes(open_head, code, 7, (-35.0,))
    twice = replace(oracle_aligner.config, passes=2, refine_at_once=True)
    kept = replace(twice, visibility=replace(twice.visibility, kept_motion=1.0))
    found, again = (
        with_config(oracle_aligner, config).align(scene.image, [scene.box])[0]
        for config in (twice, kept)
    )
    moved = np.linalg.norm(again.landmarks_3d - found.landmarks_3d, axis=1) / scene.box.size
    assert 0.0 < moved.max() < 0.02
    assert np.abs(again.visibility - found.visibility).mean() < 0.03


def test_two_passes_have_match_errors_of_their_own(
    open_head: MorphableModel, code: PositionCode
) -> None:
    right = oracle_anchors(open_head, code)
    fields = np.random.default_rng(3).normal(size=(len(right.vertex), 3, 2)) * 0.002
    anchors = replace(right, error_fields=fields.astype(np.float32))
    (scene,) = scenes(open_head, code, 8, (20.0,), spread=0.0)
    found = []
    for passes in (2, 3):  # the latter can pool two of them, but stops before
        sides = cycle((OracleNet(code), OracleNet(OtherSide(code.low, code.high, code.frequency))))
        config = AlignConfig(passes=passes, early_stop=np.inf)
        aligner = Aligner(
            lambda image, sides=sides: next(sides)(image), anchors, open_head, config=config
        )
        found.append(aligner.align(scene.image, [scene.box])[0])
        assert len(aligner.fit_model.modes) == config.fit_model.modes + 2 * (passes - 1)
    assert len(found[0].trace) == len(found[1].trace) == 2
    np.testing.assert_allclose(found[0].landmarks_3d, found[1].landmarks_3d, atol=1e-3)


def test_followed_faces_may_have_smaller_crops(
    open_head: MorphableModel, code: PositionCode, oracle_aligner: Aligner
) -> None:
    (scene,) = scenes(open_head, code, 6, (-20.0,))
    side = oracle_aligner.config.crop
    aligner = with_config(oracle_aligner, replace(oracle_aligner.config, followed_crop=0.5))
    (found,) = aligner.align(scene.image, [scene.box])
    assert aligner.fitter.begin([Detection(scene.box)]).crops.size == side
    assert aligner.fitter.resume([found]).crops.size == side // 2
    ((followed,),) = aligner.track([scene.image], [[found]])
    assert nme_box(followed.landmarks_3d[:, :2], scene.landmarks) < 0.03


def test_states_are_averaged() -> None:
    def state(degrees: float, scale: float, shape: float) -> FitState:
        rotation = rotation_from_vector(np.deg2rad([[0.0, degrees, 0.0]]))
        place = np.array([[10.0 * scale, 0.0]])
        face = FaceState(np.array([scale]), rotation, place, np.full((1, 2), shape))
        return FitState.of(face, 1.0)

    mean = average_states([state(10.0, 1.0, -1.0), state(30.0, 4.0, 2.0)])
    assert geodesic_degrees(mean.rotation, state(20.0, 1.0, 0.0).rotation) < 1e-6
    assert np.linalg.det(mean.rotation[0]) == pytest.approx(1.0)
    assert mean.scale[0] == pytest.approx(2.0)
    np.testing.assert_allclose(mean.centre, [[25.0, 0.0]])
    np.testing.assert_allclose(mean.coefficients, 0.5)


class OfNarrowBoxes(Aligner):
    """Fails in boxes that are wide, as where a second face comes into the crop."""

    widest = 0.0

    def _align_detections(
        self, images: list[Bytes], detections: list[Detection], beside_sure: Sequence[bool] = ()
    ) -> list[Alignment]:
        found = super()._align_detections(images, detections, beside_sure)
        wide = [detection.box.width > self.widest for detection in detections]
        return [
            replace(one, failed=True, reason="wide") if no else one
            for one, no in zip(found, wide, strict=True)
        ]


def test_a_face_that_fails_is_aligned_again_in_the_middle_of_its_box(
    open_head: MorphableModel, code: PositionCode
) -> None:
    one = scenes(open_head, code, 6, (10.0,))[0]
    aligner = OfNarrowBoxes(
        OracleNet(code), oracle_anchors(open_head, code), open_head, config=READING
    )
    half = np.array([one.box.width, one.box.height]) * 0.6
    wide = Box(*(one.box.centre - half), *(one.box.centre + half))
    aligner.widest = one.box.width
    found = aligner.align(one.image, [wide])[0]
    assert not found.failed
    assert found.box == wide
    assert nme_box(found.landmarks_3d[:, :2], one.landmarks) < 0.03
    aligner.widest = 1.0
    lost = aligner.align(one.image, [wide])[0]
    assert (lost.failed, lost.reason, lost.box) == (True, "wide", wide)


def test_a_face_upside_down_is_recovered(
    oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode
) -> None:
    scene = make_scene(open_head, code, yaw=20.0, roll=170.0, rng=np.random.default_rng(4))
    nme, turn = errors([oracle_aligner.align(scene.image, [scene.box])], [scene])
    assert nme[0] < 2.0
    assert turn[0] < 3.0


def test_a_batch_is_its_faces_one_by_one(
    oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode
) -> None:
    truth = scenes(open_head, code, 5, (0.0, 40.0, -70.0))
    together = oracle_aligner.align_batch(
        [s.image for s in truth], [[t.box, t.box.square(1.2)] for t in truth]
    )
    for scene, faces in zip(truth, together, strict=True):
        for face in faces:
            alone = oracle_aligner.align(scene.image, [face.box])[0]
            assert np.abs(alone.landmarks_3d - face.landmarks_3d).max() < 1e-3
            assert np.abs(alone.confidence - face.confidence).max() < 1e-4
            assert alone.failed == face.failed


def test_the_size_of_the_photo_does_not_matter(
    oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode
) -> None:
    small = make_scene(open_head, code, yaw=25.0, rng=np.random.default_rng(6), size=200)
    large = make_scene(open_head, code, yaw=25.0, rng=np.random.default_rng(6), size=1000)
    nme, _ = errors(
        [oracle_aligner.align(s.image, [s.box]) for s in (small, large)], [small, large]
    )
    assert nme.max() < 1.5, nme


def test_every_landmark_of_a_frontal_face_is_seen(
    oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode
) -> None:
    scene = make_scene(open_head, code, yaw=0.0, rng=np.random.default_rng(7), spread=0.0)
    assert oracle_aligner.align(scene.image, [scene.box])[0].visibility.min() > 0.5


def test_hidden_landmarks_are_known_and_not_trusted(
    oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode
) -> None:
    scene = make_scene(open_head, code, yaw=60.0, rng=np.random.default_rng(7), spread=0.0)
    face = oracle_aligner.align(scene.image, [scene.box])[0]
    yaw, _, _ = angles_from_rotation(face.cam_from_head.rotation)
    assert yaw > 55
    hidden, seen = (
        (slice(0, 6), slice(12, 15))
        if face.landmarks_3d[2, 2] < face.landmarks_3d[14, 2]
        else (slice(11, 17), slice(2, 5))
    )
    assert face.visibility[hidden].max() < 0.5
    assert face.visibility[seen].min() > 0.5
    assert face.confidence[hidden].max() < 0.3
    assert face.confidence[seen].min() > 0.3


def test_confidence_falls_where_the_face_is_covered(
    oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode
) -> None:
    scene = make_scene(open_head, code, yaw=0.0, rng=np.random.default_rng(8), spread=0.3)
    covered = scene.image.copy()
    mouth = scene.landmarks[48:68]
    (x0, y0), (x1, y1) = (mouth.min(0) - 12).astype(int), (mouth.max(0) + 12).astype(int)
    covered[y0:y1, x0:x1] = 0
    before = oracle_aligner.align(scene.image, [scene.box])[0]
    after = oracle_aligner.align(covered, [scene.box])[0]
    assert (after.confidence[48:68] < 0.5 * before.confidence[48:68]).all()
    assert np.allclose(after.confidence[36:48], before.confidence[36:48], atol=0.1)
    assert after.face_confidence < before.face_confidence
    assert 100 * nme_box(after.landmarks_3d[17:48, :2], scene.landmarks[17:48]) < 2.0


@pytest.mark.parametrize("kind", ["noise", "grey", "black"])
def test_what_is_no_face_fails_and_says_so(
    open_head: MorphableModel, code: PositionCode, kind: str
) -> None:
    rng = np.random.default_rng(9)
    image = {
        "noise": rng.integers(60, 255, (200, 200, 3), dtype=np.uint8),
        "grey": np.full((200, 200, 3), 128, np.uint8),
        "black": np.zeros((200, 200, 3), np.uint8),
    }[kind]
    aligner = Aligner(
        OracleNet(code, noise=1.0), oracle_anchors(open_head, code), open_head, config=READING
    )
    face = aligner.align(image, [Box(40, 40, 160, 160)])[0]
    assert face.failed
    assert face.reason
    assert face.face_confidence < 0.25
    assert np.isfinite(face.landmarks_3d).all()


def test_a_prepared_aligner_builds_nothing_for_the_first_person(oracle_aligner: Aligner) -> None:
    aligner = copy(oracle_aligner)
    aligner.prepare()
    assert {"appearance_meter", "person_meter", "multi_image_fitter"} <= {*vars(aligner)}


def test_an_image_without_faces_gives_an_empty_list(oracle_aligner: Aligner) -> None:
    assert oracle_aligner.align(np.full((120, 160, 3), 90, np.uint8)) == []
    assert oracle_aligner.align_batch([]) == []
    assert oracle_aligner.align_batch([np.zeros((64, 64, 3), np.uint8)], [[]]) == [[]]


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((1, 1, 3), np.uint8),
        np.zeros((100, 3, 3), np.uint8),
        np.zeros((100, 100), np.uint8),
        np.zeros((100, 100, 4), np.uint8),
        np.zeros((100, 100, 3), np.float32),
        np.zeros((0, 0, 3), np.uint8),
        [[1, 2, 3]],
    ],
)
def test_what_is_no_image_is_refused(oracle_aligner: Aligner, image: np.ndarray) -> None:
    with pytest.raises(BadPhoto):
        oracle_aligner.align(image)


@pytest.mark.parametrize(
    "box",
    [Box(200, 10, 300, 90), Box(-90, 10, -1, 90), Box(5, 5, 5.1, 5.1), Box(-9e5, -9e5, 9e5, 9e5)],
)
def test_boxes_that_cannot_hold_a_face_are_refused(oracle_aligner: Aligner, box: Box) -> None:
    with pytest.raises(ValueError, match="Box"):
        oracle_aligner.align(np.zeros((100, 100, 3), np.uint8), [box])


def test_boxes_must_be_given_for_each_image(oracle_aligner: Aligner) -> None:
    with pytest.raises(ValueError, match="boxes"):
        oracle_aligner.align_batch([np.zeros((64, 64, 3), np.uint8)], [])


def test_json_has_the_documented_shape(
    oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode
) -> None:
    scene = make_scene(open_head, code, yaw=10.0, rng=np.random.default_rng(1))
    out = oracle_aligner.align(scene.image, [scene.box])[0].to_json(trace=True, mesh=True)
    assert np.shape(out["box"]) == (4,)
    assert np.shape(out["landmarks_2d"]) == (68, 2)
    assert np.shape(out["landmarks_3d"]) == (68, 3)
    assert set(out["pose"]) == {"yaw", "pitch", "roll", "matrix"}
    assert np.shape(out["pose"]["matrix"]) == (3, 3)
    assert np.shape(out["visibility"]) == np.shape(out["confidence"]) == (68,)
    assert out["failed"] is False
    assert len(out["mesh"]) == len(open_head.template)
    assert out["trace"][0]["motion"] is None
    assert out["trace"][1]["motion"] < 0.05


def test_a_config_of_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        replace(AlignConfig(), passes=0)
    with pytest.raises(ValueError, match="positive"):
        replace(MultiImageConfig(), scales=())


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="no network runs on 'quux'"):
        load_aligner(device="quux")


@pytest.mark.parametrize(
    "device",
    [
        "cpu:0",  # by the network for devices; plain "cpu" takes the faster one for CPUs
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ),
    ],
)
def test_a_photo_is_aligned_on_a_device_as_on_the_cpu(device: str) -> None:
    image = read_image(PAGE_FILES["sample.jpg"])
    on_device = load_aligner(device=device)
    assert isinstance(on_device.net, DeviceNetwork)
    (wanted,), (got,) = load_aligner().align(image), on_device.align(image)
    assert not got.failed
    near = 0.005 * Box.around(wanted.landmarks_2d).size
    np.testing.assert_allclose(got.landmarks_2d, wanted.landmarks_2d, atol=near)
    assert geodesic_degrees(got.pose.matrix, wanted.pose.matrix) < 0.5
    np.testing.assert_allclose(got.visibility, wanted.visibility, atol=0.05)


def test_presets_spend_more_iterations_for_more_accuracy() -> None:
    fast, balanced, best = (AlignConfig.of(preset, crop=96) for preset in AlignPreset)
    assert fast.passes < balanced.passes < best.passes
    assert fast.multi_image.passes < balanced.multi_image.passes < best.multi_image.passes
    assert best.early_stop < balanced.early_stop
    assert fast.detector.longest < balanced.detector.longest
    assert all(preset.reduced_precision for preset in (fast, balanced, best))
    with pytest.raises(ValueError, match="'quick' is not a valid AlignPreset"):
        load_aligner(preset="quick")
