"""Faces followed by pose and expression alone, by a network that is right (see ``oracle``)."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment
from dff.aligner.config import (
    CorrespondenceConfig,
    FollowingConfig,
    SmoothingConfig,
    TrackingConfig,
)
from dff.aligner.fitting.batch import join_rows
from dff.aligner.fitting.crop import frame_landmarks
from dff.aligner.fitting.expressions import read_face_descriptors
from dff.aligner.fitting.visibility import compute_visibility
from dff.aligner.tracking.following import FaceFollower
from dff.aligner.tracking.tracker import Smoother, Tracker
from dff.face.geometry.camera import Box
from dff.face.geometry.transform import angles_from_rotation, geodesic_degrees
from dff.face.model.landmarks import nme_box
from dff.face.model.morphable import Coefficients, MorphableModel
from dff.face.solve.expression_correction import EYE_POINTS, ExpressionCorrection
from tests.aligner.oracle import PositionCode, Scene, scene_of

RATE = 25.0


@pytest.fixture(scope="module")
def aligner(oracle_aligner: Aligner) -> Aligner:
    out = copy(oracle_aligner)
    # a mouth that opens may be followed for long
    following = FollowingConfig(interval=0.4, crop=1.0, least_agreement=0.85, closing=0.15)
    out.config = replace(oracle_aligner.config, following=following)
    return out


@pytest.fixture(scope="module")
def film(open_head: MorphableModel, code: PositionCode) -> list[Scene]:
    """A head that turns by one degree a frame, moves, and opens its mouth."""
    rng = np.random.default_rng(4)
    identity = np.zeros(len(open_head.identity))
    identity[:40] = rng.normal(size=40) * 0.8
    jaw = open_head.expression_names.index("jawOpen")
    scenes = []
    for i in range(7):
        expression = np.zeros(len(open_head.expression))
        expression[jaw] = 0.08 * i
        turned = {"yaw": 10.0 + i, "roll": float(i), "rng": np.random.default_rng(i)}
        scenes.append(scene_of(open_head, code, identity, expression, **turned))
    return scenes


def test_pose_and_expression_are_followed_and_the_identity_stays(
    aligner: Aligner, film: list[Scene]
) -> None:
    follower = FaceFollower(aligner)
    (first,) = aligner.align(film[0].image, [film[0].box])
    followed = follower.begin(film[0].image, first, 0.0)
    errors = [nme_box(first.landmarks_3d[:, :2], film[0].landmarks)]
    for i, scene in enumerate(film[1:], 1):
        assert followed is not None
        last = followed.face.landmarks_3d
        followed = follower.follow(scene.image, followed, i / RATE)
        assert followed is not None, i
        errors.append(nme_box(followed.face.landmarks_3d[:, :2], scene.landmarks))
    assert max(errors) < errors[0] + 0.012, errors
    face = followed.face
    for name in ("coefficients", "pose", "box"):
        assert callable(vars(face)[name])  # until they are read
    np.testing.assert_array_equal(face.box.corners, Box.around(last[:, :2]).corners)
    answered = aligner.reporter(aligner.fit_model).pose_matrices(face.cam_from_head.rotation[None])
    np.testing.assert_array_equal(face.pose.matrix, answered[0])
    assert (face.pose.yaw, face.pose.pitch, face.pose.roll) == angles_from_rotation(answered[0])
    np.testing.assert_array_equal(face.coefficients.identity, first.coefficients.identity)
    motion = face.cam_from_head.rotation @ first.cam_from_head.rotation.T
    truth = film[-1].rotation @ film[0].rotation.T
    assert geodesic_degrees(motion, truth) < 2.0
    jaw = aligner.model.expression_names.index("jawOpen")
    opened = face.coefficients.expression[jaw] - first.coefficients.expression[jaw]
    assert 0.2 < opened < 0.7, opened  # of 0.48
    # mesh, coefficients and landmarks are one answer
    rest = face.vertices - aligner.model.vertices(face.coefficients)
    assert np.abs(rest).max() < 1e-5


def test_pixels_are_matched_to_anchors_that_can_be_seen(
    aligner: Aligner, film: list[Scene]
) -> None:
    (first,) = aligner.align(film[0].image, [film[0].box])
    followed = FaceFollower(aligner).begin(film[0].image, first, 0.0)
    assert followed is not None
    key = followed.keyframe
    assert key.visible.min() > aligner.config.following.least_weight
    assert 0.4 < key.visible.shape[1] / len(aligner.anchors.vertex) < 0.9
    np.testing.assert_array_equal(key.observer.anchors.vertex, key.fit_model.anchor_vertex)


def test_a_keyframe_holds_for_its_interval_and_for_poses_near_its_own(
    aligner: Aligner, film: list[Scene]
) -> None:
    (first,) = aligner.align(film[0].image, [film[0].box])
    follower = FaceFollower(aligner)
    followed = follower.begin(film[0].image, first, 1.0)
    assert followed is not None
    assert follower.follow(film[1].image, followed, 1.39) is not None
    assert follower.follow(film[1].image, followed, 1.4) is None
    near = copy(aligner)
    near.config = replace(aligner.config, following=FollowingConfig(0.4, 1.0, turned=3.0))
    assert FaceFollower(near).follow(film[6].image, followed, 1.1) is None


def test_an_unsure_first_alignment_is_soon_repeated(aligner: Aligner, film: list[Scene]) -> None:
    follower, image = FaceFollower(aligner), film[0].image
    (found,) = aligner.align(image, [film[0].box])
    for confidence, first, until in ((0.7, True, 0.2), (0.7, False, 0.4), (0.9, True, 0.4)):
        face = replace(found, face_confidence=confidence)
        followed = follower.begin(image, face, 0.0, first=first)
        assert followed is not None
        assert follower.follow(image, followed, until - 0.01) is not None
        assert follower.follow(image, followed, until) is None


@pytest.mark.parametrize(("activation", "soon"), [(0.6, True), (0.2, False)])
def test_closed_eyes_are_soon_aligned_again_and_narrowed_ones_are_not(
    aligner: Aligner, film: list[Scene], activation: float, soon: bool
) -> None:
    follower, image = FaceFollower(with_following(aligner, closed_eyes=0.15)), film[0].image
    (found,) = aligner.align(image, [film[0].box])
    expression = found.coefficients.expression.copy()
    expression[follower.blinks] = activation
    closed = Coefficients(found.coefficients.identity, expression)
    followed = follower.begin(image, replace(found, coefficients=closed), 0.0)
    assert followed is not None
    assert follower.follow(image, followed, 0.19) is not None
    assert (follower.follow(image, followed, 0.2) is None) == soon


def blinking(
    aligner: Aligner, scenes: list[Scene], face: Alignment, units: list[int]
) -> ExpressionCorrection:
    """The correction that adds 0.8 to ``units`` where eyes look as in the second of two scenes."""
    fit_model, config = aligner.fit_model, aligner.config
    state = fit_model.state_of_alignments([face], config.inverse_depth)
    crops = frame_landmarks(face.landmarks_3d[None], state.rotation, 1.1, config.crop)
    seen, _ = read_face_descriptors(
        fit_model,
        config.visibility,
        join_rows([aligner.fitter.observers[0].observe([one.image], crops) for one in scenes]),
        state[np.zeros(2, int)],
        compute_visibility(fit_model, state[np.zeros(2, int)], config.visibility),
        mirrored=False,
    )
    channels, expressions = seen.shape[2], len(aligner.model.expression)
    before, after = seen[:, 68:].reshape(2, -1)
    eyes = (after - before) / np.square(after - before).sum()
    weight = np.zeros((2, expressions))
    weight[1, units] = 0.8
    return ExpressionCorrection(
        np.zeros((68 + EYE_POINTS, channels)),
        np.zeros((68 * channels, 1)),
        eyes[:, None],
        np.array([0.0, -before @ eyes]),
        weight,
        np.zeros((expressions, expressions)),
        np.zeros(expressions),
    )


@pytest.fixture(scope="module")
def blink(open_head: MorphableModel, code: PositionCode) -> list[Scene]:
    """A head with open eyes, and with closed ones."""
    units = [open_head.expression_names.index(f"eyeBlink{side}") for side in ("Left", "Right")]
    scenes = []
    for closed in (0.0, 0.75):
        expression = np.zeros(len(open_head.expression))
        expression[units] = closed
        rng, none = np.random.default_rng(3), np.zeros(len(open_head.identity))
        scenes.append(scene_of(open_head, code, none, expression, yaw=5.0, rng=rng))
    return scenes


@pytest.fixture(scope="module")
def corrected(aligner: Aligner, open_head: MorphableModel, blink: list[Scene]) -> Aligner:
    """An aligner that tells the two apart."""
    units = [open_head.expression_names.index(f"eyeBlink{side}") for side in ("Left", "Right")]
    (face,) = aligner.align(blink[0].image, [blink[0].box])
    return Aligner(
        aligner.net,
        aligner.anchors,
        open_head,
        config=aligner.config,
        expression_correction=blinking(aligner, blink, face, units),
    )


def with_following(aligner: Aligner, **fields: Any) -> Aligner:
    """The aligner with other settings of following."""
    out = copy(aligner)
    out.config = replace(aligner.config, following=replace(aligner.config.following, **fields))
    return out


def test_lids_follow_what_the_descriptors_over_the_eyes_say(
    aligner: Aligner, corrected: Aligner, blink: list[Scene], open_head: MorphableModel
) -> None:
    units = [open_head.expression_names.index(f"eyeBlink{side}") for side in ("Left", "Right")]
    for order in (blink, blink[::-1]):
        (first,) = corrected.align(order[0].image, [order[0].box])
        moved = []
        for one in (corrected, aligner):
            one = with_following(one, closing=np.inf, closed_eyes=np.inf)
            follower = FaceFollower(one)
            followed = follower.begin(order[0].image, first, 0.0)
            assert followed is not None
            for time, scene in ((0.04, order[1]), (0.08, order[0])):
                followed = follower.follow(scene.image, followed, time)
                assert followed is not None
                found = followed.face
                change = found.coefficients.expression - first.coefficients.expression
                moved.append(change[units].mean())
                rest = found.vertices - open_head.vertices(found.coefficients)
                assert np.abs(rest).max() < 1e-5
        there, back, alone, _ = moved
        sign = 1.0 if order is blink else -1.0
        assert sign * there > sign * alone + 0.4
        assert abs(back) < 0.15


def test_eyes_that_close_or_open_are_aligned_in_full(
    corrected: Aligner, blink: list[Scene]
) -> None:
    follower = FaceFollower(corrected)
    for order in (blink, blink[::-1]):
        (first,) = corrected.align(order[0].image, [order[0].box])
        followed = follower.begin(order[0].image, first, 0.0)
        assert followed is not None
        followed = follower.follow(order[0].image, followed, 0.04)
        assert followed is not None
        assert follower.follow(order[1].image, followed, 0.08) is None


def test_eyes_stay_closed_where_they_seem_to_open_a_little(
    corrected: Aligner, blink: list[Scene]
) -> None:
    """What small crops show of closed lids scatters."""
    (first,) = corrected.align(blink[1].image, [blink[1].box])
    moved = []
    for opening in (0.9, 2.0):
        follower = FaceFollower(with_following(corrected, opening=opening))
        followed = follower.begin(blink[1].image, first, 0.0)
        assert followed is not None
        key = followed.keyframe
        for read, closed in ((0.2, key.closed), (0.2, 0.0)):
            before = replace(followed, keyframe=replace(key, lids=key.lids + read, closed=closed))
            found = follower.follow(blink[1].image, before, 0.04)
            assert found is not None
            change = found.face.coefficients.expression - first.coefficients.expression
            moved.append(change[follower.blinks].mean())
    assert np.abs(moved[::2]).max() < 0.02
    assert max(moved[1::2]) < -0.15


def test_a_blink_does_not_stop_following(corrected: Aligner, blink: list[Scene]) -> None:
    """Eyes that open in the frame after a full alignment, or close there, are no failure."""
    config = TrackingConfig(search_interval=np.inf)
    for order in (blink, blink[::-1]):
        tracker, full = Tracker(corrected, config=config), []
        for i, scene in enumerate((order[0], order[1], order[1], order[1], order[1])):
            (one,) = tracker.step(scene.image, i / RATE)
            full.append(bool(one.raw.trace))
        assert full.pop(0)
        assert sum(full) == 1, full


def test_a_face_that_is_covered_is_aligned_in_full(aligner: Aligner, film: list[Scene]) -> None:
    follower = FaceFollower(aligner)
    (first,) = aligner.align(film[0].image, [film[0].box])
    followed = follower.begin(film[0].image, first, 0.0)
    assert followed is not None
    assert follower.follow(np.zeros_like(film[0].image), followed, 0.04) is None


def test_a_face_that_is_uncovered_is_aligned_in_full(aligner: Aligner, film: list[Scene]) -> None:
    follower = FaceFollower(aligner)
    (first,) = aligner.align(film[0].image, [film[0].box])
    followed = follower.begin(film[0].image, first, 0.0)
    assert followed is not None
    assert follower.follow(film[0].image, followed, 0.04) is not None
    covered = replace(followed.keyframe, agreement=0.7 * followed.keyframe.agreement)
    assert follower.follow(film[0].image, replace(followed, keyframe=covered), 0.04) is None


def test_tracks_align_in_full_once_in_an_interval(aligner: Aligner, film: list[Scene]) -> None:
    tracker = Tracker(aligner, config=TrackingConfig(search_interval=np.inf))
    full = []
    for i in range(24):
        (one,) = tracker.step(film[0].image, i / RATE)
        assert one.track == 0
        assert nme_box(one.raw.landmarks_3d[:, :2], film[0].landmarks) < 0.03
        full.append(bool(one.raw.trace))
    assert np.flatnonzero(full).tolist() == [0, 10, 20]


def test_two_tracks_that_come_to_one_place_are_one_face(
    aligner: Aligner, film: list[Scene]
) -> None:
    """Neither is followed blindly: the face belongs to the person whom it looks like."""
    first, second = film[0].image, film[6].image
    tracker = Tracker(aligner, config=TrackingConfig(search_interval=np.inf))
    both = np.hstack([first, second])
    for i in range(3):
        assert len(tracker.step(both, i / RATE)) == 2
    alone = np.hstack([first, np.zeros_like(second)])
    for i in range(3, 6):
        assert len(tracker.step(alone, i / RATE)) == 1


def test_a_blink_passes_the_filter_of_a_face_at_rest(
    aligner: Aligner, film: list[Scene], open_head: MorphableModel
) -> None:
    (face,) = aligner.align(film[0].image, [film[0].box])
    units = [open_head.expression_names.index(f"eyeBlink{side}") for side in ("Left", "Right")]
    smoother = Smoother(open_head, SmoothingConfig())
    rng, closed = np.random.default_rng(2), {20: 0.3, 21: 0.6, 22: 0.6}
    found = []
    for i in range(24):
        expression = face.coefficients.expression + 0.02 * rng.normal(size=52)
        expression[units] = closed.get(i, 0.0) + 0.02 * rng.normal(size=2)
        coefficients = Coefficients(face.coefficients.identity, expression)
        mesh = open_head.vertices(coefficients)
        smooth = smoother(replace(face, coefficients=coefficients, vertices=mesh), i / RATE)
        found.append(smooth.coefficients.expression[units].mean())
        rest = smooth.vertices - open_head.vertices(smooth.coefficients)
        assert np.abs(rest).max() < 1e-6
    assert np.abs(np.diff(found[5:20])).max() < 0.01
    assert found[22] > 0.5


def test_following_wants_positive_counts_and_steps_alike() -> None:
    with pytest.raises(ValueError, match="FollowingConfig wants positive counts"):
        FollowingConfig(pixels=0)
    unlike = CorrespondenceConfig(0.1, (0.04,)), CorrespondenceConfig(0.1, (0.04, 0.04))
    with pytest.raises(ValueError, match="as many steps to each correspondence"):
        FollowingConfig(correspondences=unlike)
