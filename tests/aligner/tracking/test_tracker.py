"""Faces followed through video, by a network that is right (see ``oracle``)."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import cv2
import numpy as np
import pytest

from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment
from dff.aligner.appearance import AppearanceDescriptor, AppearanceMeter, shrink_by_samples
from dff.aligner.config import SmoothingConfig, TrackingConfig
from dff.aligner.face_request import Steps
from dff.aligner.tracking.pictures import face_picture, share_differing
from dff.aligner.tracking.settling import SettlingTracker
from dff.aligner.tracking.tracker import OneEuro, Tracked, Tracker
from dff.face.arrays import Bytes, Floats
from dff.face.model.landmarks import nme_box
from dff.face.model.morphable import MorphableModel
from tests.aligner.oracle import PositionCode, Scene, make_scene

RATE = 25.0


@pytest.fixture(scope="module")
def scene(open_head: MorphableModel, code: PositionCode) -> Scene:
    return make_scene(open_head, code, yaw=20.0, rng=np.random.default_rng(3))


def noisy(image: Bytes, rng: np.random.Generator) -> Bytes:
    """What shows the face gets noise; the code's black stays black."""
    grain = rng.normal(size=image.shape) * 3.0 * (image > 0)
    return np.clip(np.rint(image + grain), 0, 255).astype(np.uint8)


def shifted(image: Bytes, px: int) -> Bytes:
    """To the right."""
    return np.roll(image, px, axis=1)


def followed(
    aligner: Aligner, frames: list[Bytes], smoothing: SmoothingConfig | None
) -> tuple[Floats, Floats]:
    """(F, 68, 2) landmarks of the one face, and before smoothing."""
    tracker = Tracker(aligner, config=TrackingConfig(smoothing=smoothing))
    found = [tracker.step(frame, i / RATE) for i, frame in enumerate(frames)]
    assert [[one.track for one in faces] for faces in found] == [[0]] * len(frames)
    return (
        np.array([faces[0].face.landmarks_3d[:, :2] for faces in found]),
        np.array([faces[0].raw.landmarks_3d[:, :2] for faces in found]),
    )


def jitter(landmarks: Floats) -> float:
    return float(np.sqrt(landmarks.var(0).sum(-1) / 2).mean())


def test_a_face_at_rest_stands_still_when_smoothed(oracle_aligner: Aligner, scene: Scene) -> None:
    rng = np.random.default_rng(0)
    smooth, raw = followed(
        oracle_aligner, [noisy(scene.image, rng) for _ in range(16)], SmoothingConfig()
    )
    assert nme_box(smooth[-1], scene.landmarks) < 0.03
    assert jitter(smooth[6:]) < 0.6 * jitter(raw[6:]), (jitter(smooth[6:]), jitter(raw[6:]))


def test_a_face_that_jumps_is_not_lagged_by_more_than_a_frame(
    oracle_aligner: Aligner, scene: Scene
) -> None:
    jump = round(0.1 * scene.box.size)
    rng = np.random.default_rng(1)
    frames = [noisy(shifted(scene.image, jump * (i >= 6)), rng) for i in range(10)]
    smooth, raw = followed(oracle_aligner, frames, SmoothingConfig())
    behind = np.abs((smooth - raw)[..., 0].mean(1)) / jump
    assert behind[7:].max() < 0.1, behind
    arrived = (raw[6:, :, 0] - raw[5, :, 0]).mean(1) / jump
    assert np.abs(arrived - 1.0).max() < 0.1, (
        arrived
    )  # a face is found where it is, not where it was


@pytest.mark.parametrize(("share", "passes"), [(0.0, 1), (0.02, 1), (0.12, 2), (0.3, 2)])
def test_a_followed_face_takes_one_pass_unless_it_jumped(
    oracle_aligner: Aligner, scene: Scene, share: float, passes: int
) -> None:
    """``share``: of the face's size that it moved since the last frame."""
    (before,) = oracle_aligner.align(scene.image, [scene.box])
    jump = round(share * scene.box.size)
    ((after,),) = oracle_aligner.track([shifted(scene.image, jump)], [[before]])
    assert len(after.trace) >= passes
    assert len(after.trace) == 1 or passes == 2
    assert nme_box(after.landmarks_3d[:, :2], np.add(scene.landmarks, [jump, 0])) < 0.03


def test_a_face_in_steady_motion_is_less_than_a_frame_behind(
    oracle_aligner: Aligner, scene: Scene
) -> None:
    frames = [shifted(scene.image, -24 + 2 * i) for i in range(16)]
    smooth, raw = followed(oracle_aligner, frames, SmoothingConfig())
    assert np.abs((raw - smooth)[6:, :, 0].mean(1)).max() < 2.0


def test_a_new_shot_begins_new_tracks_and_a_face_that_went_is_gone(
    oracle_aligner: Aligner, scene: Scene, open_head: MorphableModel, code: PositionCode
) -> None:
    other = make_scene(open_head, code, yaw=-30.0, rng=np.random.default_rng(9))
    tracker = Tracker(oracle_aligner)
    assert [one.track for one in tracker.step(scene.image, 0.0)] == [0]
    assert [one.track for one in tracker.step(scene.image, 0.04)] == [0]
    assert tracker.step(np.zeros_like(scene.image), 0.08) == []
    (found,) = tracker.step(shifted(other.image, 40), 0.12)
    assert found.track == 1
    assert nme_box(found.face.landmarks_3d[:, :2], other.landmarks + np.array([40.0, 0.0])) < 0.05


def test_two_faces_keep_their_numbers(oracle_aligner: Aligner, scene: Scene) -> None:
    frames = [np.hstack([shifted(scene.image, i), shifted(scene.image, -i)]) for i in range(4)]
    tracker = Tracker(oracle_aligner, config=TrackingConfig(search_interval=2 / RATE))
    for number, frame in enumerate(frames):
        places = {
            one.track: one.face.landmarks_3d[:, 0].mean()
            for one in tracker.step(frame, number / RATE)
        }
        assert len(places) == 2
        if number == 0:
            left = min(places, key=places.__getitem__)
        assert places[left] < 320 < places[1 - left]


def test_a_frame_is_tracked_in_parts_and_one_that_is_given_up_leaves_no_trace(
    oracle_aligner: Aligner, scene: Scene
) -> None:
    """It would begin another shot: wherever it is given up, the faces go on as if it had not."""
    config = TrackingConfig(search_interval=1 / RATE)
    tracker, other = (Tracker(oracle_aligner, config=config) for _ in range(2))
    both = np.hstack([scene.image, shifted(scene.image, 20)])
    grey = np.full_like(both, 90)
    for one in (tracker, other):
        assert [face.track for face in one.step(both, 0.0)] == [0, 1]
    parts = 0
    while run_some(tracker.aligner, tracker.step_in_steps(both, 0.04, faces=1), parts) is None:
        given_up = tracker.step_in_steps(grey, 0.04, faces=1)
        assert run_some(tracker.aligner, given_up, parts % 4 + 1) is None
        parts += 1
    assert parts > 10
    other.step(both, 0.04)
    found, expected = (one.step(both, 0.08) for one in (tracker, other))
    for a, b in zip(found, expected, strict=True):
        assert a.track == b.track
        np.testing.assert_array_equal(a.face.landmarks_3d, b.face.landmarks_3d)


def run_some(aligner: Aligner, steps: Steps[list[Tracked]], most: int) -> list[Tracked] | None:
    """What some steps return; None where they are given up after ``most``, before their end."""
    answer: list[Alignment] | None = None
    for _ in range(most):
        try:
            request = steps.send(answer)
        except StopIteration as end:
            found: list[Tracked] = end.value
            return found
        answer = None if request is None else aligner.align_requests([request])[0]
    steps.close()
    return None


def test_a_search_that_finds_no_new_face_aligns_none(
    oracle_aligner: Aligner, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker(oracle_aligner, config=TrackingConfig(search_interval=1 / RATE))
    tracker.step(scene.image, 0.0)
    searched: list[Bytes] = []
    align = tracker.aligner.align_in_steps

    def count(images: list[Bytes], *, faces: int) -> Steps[list[list[Alignment]]]:
        searched.extend(images)
        return align(images, faces=faces)

    monkeypatch.setattr(tracker.aligner, "align_in_steps", count)
    both = np.hstack([scene.image, shifted(scene.image, 20)])
    alone = np.hstack([scene.image, np.zeros_like(scene.image)])
    assert [len(tracker.step(alone, i / RATE)) for i in range(1, 4)] == [1, 1, 1]
    searched.clear()
    assert len(tracker.step(alone, 4 / RATE)) == 1
    assert not searched
    assert len(tracker.step(both, 5 / RATE)) == 2
    assert len(searched) == 1


def test_without_smoothing_faces_are_as_found(oracle_aligner: Aligner, scene: Scene) -> None:
    smooth, raw = followed(oracle_aligner, [scene.image] * 6, None)
    np.testing.assert_array_equal(smooth, raw)
    motion = np.linalg.norm(np.diff(raw, axis=0), axis=2).mean(1)
    assert motion[4] < min(0.005 * scene.box.size, motion[0]), (
        motion
    )  # a still picture comes to rest


def test_one_euro_keeps_constants_and_follows_jumps() -> None:
    signal = OneEuro(SmoothingConfig())
    for _ in range(5):
        signal.share(np.array([3.0, -1.0]), 1 / RATE)
    assert signal.last is not None
    np.testing.assert_allclose(signal.last, [3.0, -1.0])
    slow, fast = (
        signal.share(np.array([3.001, -1.0]), 1 / RATE),
        signal.share(np.array([3.3, -1.0]), 1 / RATE),
    )
    assert slow < 0.2
    assert fast > 0.7
    with pytest.raises(ValueError, match="cutoffs"):
        SmoothingConfig(rest=0.0)


def test_one_euro_measures_speed_by_the_time_between_values() -> None:
    """The same motion a second is smoothed alike, whether a frame is missing or not."""
    step = 0.02
    every, some = OneEuro(SmoothingConfig()), OneEuro(SmoothingConfig())
    for i in range(40):
        every.share(np.array([step * i]), 0.04)
    times = [0, *sorted(np.random.default_rng(0).permutation(np.arange(1, 39))[:25]), 39]
    for before, now in zip([-1, *times], times, strict=False):
        some.share(np.array([step * now]), 0.04 * (now - before))
    assert every.last is not None
    assert some.last is not None
    behind = step * 39 - np.array([every.last[0], some.last[0]])
    assert 0 < behind[0] < step
    assert abs(behind[1] - behind[0]) < 0.5 * behind[0], behind


def test_times_must_increase(oracle_aligner: Aligner, scene: Scene) -> None:
    tracker = Tracker(oracle_aligner)
    tracker.step(scene.image, 1.0)
    for time in (1.0, 0.5, float("nan")):
        with pytest.raises(ValueError, match="times of frames increase"):
            tracker.step(scene.image, time)


def test_half_the_frames_are_smoothed_by_their_times(oracle_aligner: Aligner, scene: Scene) -> None:
    """A film with frames left out is smoothed by real time steps, not by frame numbers."""
    moves = [shifted(scene.image, 2 * i) for i in range(12)]
    config = TrackingConfig(smoothing=SmoothingConfig())
    behind = {}
    for step in (1, 2):
        tracker = Tracker(oracle_aligner, config=config)
        for i in range(0, 12, step):
            (one,) = tracker.step(moves[i], i / RATE)
        behind[step] = (one.raw.landmarks_3d - one.face.landmarks_3d)[:, 0].mean()
    assert abs(behind[1] - behind[2]) < 1.0, behind


@pytest.fixture(scope="module")
def people(open_head: MorphableModel, code: PositionCode) -> tuple[Scene, Scene]:
    """Two people whose frames hardly differ: only their shapes tell them apart."""
    first, second = (
        make_scene(open_head, code, yaw=yaw, rng=np.random.default_rng(seed))
        for yaw, seed in ((20.0, 3), (15.0, 9))
    )
    return first, second


def test_a_cut_to_another_person_at_the_same_place_begins_a_track(
    oracle_aligner: Aligner, people: tuple[Scene, Scene]
) -> None:
    frames = [people[0].image] * 4 + [people[1].image] * 4
    change = np.abs(frames[4].astype(int) - frames[3]).mean()
    assert change < 30.0  # levels: less than any fixed threshold of cut detectors
    tracker = Tracker(oracle_aligner)
    tracks = [[one.track for one in tracker.step(f, i / RATE)] for i, f in enumerate(frames)]
    assert tracks == [[0]] * 4 + [[1]] * 4


def test_all_faces_of_a_new_shot_appear_in_its_first_frame(
    oracle_aligner: Aligner, people: tuple[Scene, Scene]
) -> None:
    empty = np.zeros_like(people[0].image)
    before, after = (np.hstack([people[0].image, one]) for one in (empty, people[1].image))
    tracker = Tracker(oracle_aligner)
    found = [tracker.step(f, i / RATE) for i, f in enumerate([before] * 3 + [after] * 2)]
    assert [[one.track for one in faces] for faces in found] == [[0]] * 3 + [[0, 1]] * 2


def test_a_hidden_face_gets_its_number_back(
    oracle_aligner: Aligner, people: tuple[Scene, Scene]
) -> None:
    both = np.hstack([one.image for one in people])
    alone = both.copy()
    alone[:, people[0].image.shape[1] :] = 0
    config = TrackingConfig(memory=2.0)
    for hidden, same in ((24, True), (60, False)):  # frames
        tracker = Tracker(oracle_aligner, config=config)
        films = [both] * 2 + [alone] * 2 + [both] * 2
        times = [0, 1, 2, 1 + hidden // 2, 2 + hidden, 3 + hidden]
        tracks = [
            {
                one.track: one.face.landmarks_3d[:, 0].mean() > people[0].image.shape[1]
                for one in tracker.step(frame, time / RATE)
            }
            for frame, time in zip(films, times, strict=True)
        ]
        assert [len(some) for some in tracks] == [2, 2, 1, 1, 2, 2]
        assert (tracks[-1] == tracks[0]) is same, (hidden, tracks)


@pytest.mark.parametrize("settling", [0.0, 0.5])
def test_people_who_swap_places_at_a_cut_keep_their_numbers_from_its_first_frame(
    oracle_aligner: Aligner, people: tuple[Scene, Scene], settling: float
) -> None:
    middle = people[0].image.shape[1]
    before, after = (np.hstack([one.image for one in some]) for some in (people, people[::-1]))
    config = TrackingConfig(smoothing=SmoothingConfig(), settling=settling)
    tracker = SettlingTracker[None](Tracker(oracle_aligner, config=config))
    steps = (tracker.step(f, i / 10, None) for i, f in enumerate([before] * 3 + [after] * 8))
    found = [one.faces for one in [*chain.from_iterable(steps), *tracker.finish()]]
    sides = [
        {one.track: one.face.landmarks_3d[:, 0].mean() > middle for one in faces} for faces in found
    ]
    assert sides[0].keys() == {0, 1}
    swapped = {track: not right for track, right in sides[0].items()}
    assert sides == [sides[0]] * 3 + [swapped] * 8
    for one in found[3]:  # what was smoothed is where it is, not on its way from the other place
        np.testing.assert_allclose(one.face.landmarks_3d, one.raw.landmarks_3d, atol=1e-9)


@pytest.mark.parametrize(
    ("cut", "hiding", "agreement", "settling", "same"),
    [
        (False, 9.0, 0.8, 0.6, True),
        (False, 9.0, 0.7, 0.6, False),
        (False, 0.0, 0.8, 0.6, False),
        (True, 9.0, 0.8, 0.6, False),
        (True, 9.0, 0.9, 0.6, True),
        (False, 9.0, 0.8, 0.4, False),
        (False, 9.0, 0.8, 0.0, False),
    ],
    ids=[
        "same shot",
        "someone else",
        "not hidden",
        "other shot",
        "clearly the same",
        "late",
        "live",
    ],
)
def test_who_comes_out_from_behind_another_is_recognised_by_the_frame_that_shows_enough(
    oracle_aligner: Aligner,
    people: tuple[Scene, Scene],
    monkeypatch: pytest.MonkeyPatch,
    cut: bool,
    hiding: float,
    agreement: float,
    settling: float,
    same: bool,
) -> None:
    """In the first frame after it was hidden, a face looks like no one known; later like itself.

    It gets its number back in both, if the first can wait for the second, and else in none.
    """
    both = np.hstack([one.image for one in people])
    middle = people[0].image.shape[1]
    alone = both.copy()
    alone[:, middle:] = 0
    pattern, other = np.linalg.qr(np.random.default_rng(0).normal(size=(50, 3)))[0].T[:2]
    pattern, other = pattern - pattern.mean(), other - other.mean()
    shown = [1.0, 1.0, 1.0, 1.0, 0.1, agreement, agreement]

    def measure(image: Bytes, face: Alignment, **_: object) -> AppearanceDescriptor:
        r = shown[frame_number] if face.landmarks_3d[:, 0].mean() > middle else 1.0
        brightness = r * pattern / pattern.std() + np.sqrt(1 - r**2) * other / other.std()
        return AppearanceDescriptor(np.ones(5), brightness, np.ones(50))

    config = TrackingConfig(hiding=hiding, settling=settling)
    settled = SettlingTracker[None](tracker := Tracker(oracle_aligner, config=config))
    monkeypatch.setattr(tracker.meter, "measure", measure)
    films = [both] * 2 + [alone] * 2 + [both] * 3
    found: list[list[Tracked]] = []
    monkeypatch.setattr(tracker, "_may_be_cut", lambda frame: cut and frame_number == 3)
    for frame_number, frame in enumerate(films):
        found += [one.faces for one in settled.step(frame, frame_number / 2, None)]
        assert 0.5 * len(settled.held) < settling + 0.5
    tracks = [{one.track for one in faces} for faces in found]
    (seen,) = tracks[2]
    back = {0, 1} if same else {seen, 2}
    assert tracks == [{0, 1}, {0, 1}, {seen}, {seen}, back, back, back]


@pytest.mark.parametrize("size", [(32, 18), (71, 99)])
def test_means_of_samples_are_near_means_of_areas(size: tuple[int, int]) -> None:
    y, x = np.mgrid[:450, :333]
    picture = 127 + 100 * np.sin(x / 40)[..., None] * np.cos(y / 50)[..., None] * np.ones(3)
    noisy = picture + np.random.default_rng(0).normal(size=picture.shape) * 3.0
    image = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    exact = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(float)
    away = shrink_by_samples(image, size, 4).astype(float) - exact
    assert np.sqrt((away**2).mean()) < 2.0
    assert abs(away.mean()) < 0.3


def test_appearance_knows_people_apart(
    oracle_aligner: Aligner, people: tuple[Scene, Scene]
) -> None:
    meter = AppearanceMeter(oracle_aligner.model)
    (first,), (moved,), (second,) = (
        oracle_aligner.align(image)
        for image in (people[0].image, shifted(people[0].image, 9), people[1].image)
    )
    a = meter.measure(people[0].image, first)
    b = meter.measure(shifted(people[0].image, 9), moved)
    c = meter.measure(people[1].image, second)
    assert a.texture_agreement(b) > 0.95
    assert a.identity_agreement(b) > 0.9
    assert a.identity_agreement(c) < 0.5
    blended = a.blended(b, 0.5)
    np.testing.assert_allclose(blended.identity, (a.identity + b.identity) / 2)


def test_a_face_beside_another_is_known_by_what_the_other_cannot_cover(
    oracle_aligner: Aligner, people: tuple[Scene, Scene]
) -> None:
    meter, image = AppearanceMeter(oracle_aligner.model), people[0].image
    (face,) = oracle_aligner.align(image)
    landmarks = face.landmarks_3d + np.array([0.6 * people[0].box.size, 0.0, 0.0])
    other = replace(face, landmarks_3d=landmarks)
    covered = image.copy()
    edge = round(float(face.landmarks_3d[:, 0].mean())) + 15
    covered[90:, edge:] = covered[90:, edge:, ::-1] // 3
    whole = meter.measure(image, face)
    assert whole.texture_agreement(meter.measure(covered, face)) < 0.9
    beside = meter.measure(covered, face, others=[other])
    assert whole.texture_agreement(beside) > 0.95
    assert 0.1 < beside.weight.mean() / whole.weight.mean() < 0.9


def test_a_face_behind_a_cover_is_known_by_what_is_left_of_it(
    oracle_aligner: Aligner, people: tuple[Scene, Scene]
) -> None:
    meter, image = AppearanceMeter(oracle_aligner.model), people[0].image
    (face,) = oracle_aligner.align(image)
    below = face.landmarks_3d[:, 1] > face.landmarks_3d[30, 1]  # the tip of the nose
    face = replace(face, visibility=np.where(below, 0.0, 1.0))
    covered = image.copy()
    edge = round(float(face.landmarks_3d[33, 1])) + 12
    covered[edge:] = covered[edge:, ::-1] // 3
    whole = meter.measure(image, face)
    plain, seen = (meter.measure(covered, face, covers=covers) for covers in (False, True))
    assert whole.texture_agreement(plain) < 0.9
    assert whole.texture_agreement(seen) > 0.95
    assert 0.1 < seen.weight.mean() / plain.weight.mean() < 0.9


def in_a_hall(image: Bytes) -> Bytes:
    """A photo in the middle of a frame that is far larger."""
    frame = np.zeros((720, 1280, 3), np.uint8)
    height, width = image.shape[:2]
    frame[200 : 200 + height, 480 : 480 + width] = image
    return frame


def test_a_face_that_is_exchanged_in_place_begins_a_track(
    oracle_aligner: Aligner, people: tuple[Scene, Scene]
) -> None:
    frames = [in_a_hall(people[i >= 3].image) for i in range(6)]
    config = TrackingConfig(most_differ=0.05)  # the code's colours are those of any person
    tracker = Tracker(oracle_aligner, config=config)
    tracks = [[one.track for one in tracker.step(f, i / RATE)] for i, f in enumerate(frames)]
    assert tracker.shot < 0.0  # no cut: the frame hardly changes
    assert tracks == [[0]] * 3 + [[1]] * 3


def test_a_face_that_is_covered_or_lit_keeps_its_number(
    oracle_aligner: Aligner, people: tuple[Scene, Scene]
) -> None:
    covered = people[0].image.copy()
    (low, high) = people[0].landmarks[:, 1].min(), people[0].landmarks[:, 1].max()
    covered[round(0.45 * low + 0.55 * high) :] = 0
    shown = [people[0].image] * 3 + [covered] * 2 + [people[0].image] * 2
    tracker = Tracker(oracle_aligner, config=TrackingConfig(most_differ=0.05))
    for i, image in enumerate(shown):
        (one,) = tracker.step(in_a_hall(image), i / RATE)
        assert one.track == 0
        (track,) = tracker.tracks.values()
        assert track.picture is not None
        assert not tracker._changes(track, track.picture + np.log(0.5))


def test_the_picture_of_a_face_moves_and_grows_with_it(
    oracle_aligner: Aligner, scene: Scene
) -> None:
    (face,) = oracle_aligner.align(scene.image)
    picture = face_picture(scene.image, face.landmarks_3d, 16)
    moved = face.landmarks_3d + np.array([20.0, 0.0, 0.0])
    again = face_picture(shifted(scene.image, 20), moved, 16)
    np.testing.assert_allclose(again, picture, rtol=1e-6)
    large = cv2.resize(scene.image, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)
    grown = face_picture(large, 2 * face.landmarks_3d, 16)
    assert np.abs(grown - picture).mean() < 0.05
    outside = face.landmarks_3d + np.array([5000.0, 0.0, 0.0])
    assert np.isfinite(face_picture(scene.image, outside, 16)).all()


def test_a_picture_holds_logarithms_of_means() -> None:
    y, x = np.mgrid[:60, :80]
    image = np.repeat((x + 2 * y)[..., None], 3, axis=2).astype(np.uint8)
    corners = np.array([[8.0, 4.0], [72.0, 52.0]])
    across, down = np.meshgrid(8 + 4 * (np.arange(16) + 0.5), 4 + 3 * (np.arange(16) + 0.5))
    wanted = np.log(across - 0.5 + 2 * (down - 0.5) + 8.0)
    np.testing.assert_allclose(face_picture(image, corners, 16), wanted, atol=1e-5)


@pytest.mark.parametrize("pixels", [0, 100, 256])
def test_pixels_that_differ_are_counted_but_for_the_light(pixels: int) -> None:
    before = np.random.default_rng(0).uniform(3, 5, 256).astype(np.float32)
    after = before + np.float32(0.7)
    after[:pixels] += np.float32(0.3)
    share = share_differing(after.reshape(16, 16), before.reshape(16, 16), 0.15)
    assert share == min(pixels, 256 - pixels) / 256
