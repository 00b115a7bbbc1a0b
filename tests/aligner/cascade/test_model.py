"""The cascade: changes of state, training on a known answer, real descriptors, files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dff.aligner.align import Aligner
from dff.aligner.cascade.fitter import (
    start_cascade,
    yaw_in_crop,
)
from dff.aligner.cascade.io import (
    load_cascade,
    load_cascade_aligner,
    save_cascade,
    with_cascade,
)
from dff.aligner.cascade.model import Cascade, Stage, choose_map, fingerprint
from dff.aligner.cascade.training import (
    Progress,
    Recipe,
    Views,
    compute_true_states,
    learn_cascade,
    read_split_views,
    sample_farthest_points,
    train_cascade,
)
from dff.aligner.confidence import DEFAULT
from dff.aligner.detection import Detection
from dff.aligner.evaluation.calibration import disturb_box
from dff.aligner.fitting.change import apply_change, change_between
from dff.aligner.fitting.fit_model import FitState
from dff.face.arrays import Floats, Ints
from dff.face.errors import BadDataset, BadWeights
from dff.face.geometry.camera import Box
from dff.face.geometry.transform import geodesic_degrees
from dff.face.model.landmarks import nme_box
from dff.face.model.morphable import MorphableModel
from dff.face.solve.gauss_newton import FaceState, initial_pose
from dff.face.solve.least_squares import ridge
from dff.infra.datasets.dataset import Dataset
from dff.infra.networks import cascade_file
from tests.aligner.oracle import PositionCode, Scene, make_scene
from tests.trainer.conftest import make_row, write_dataset

TOY = Recipe(views=110, held_out=24, stages=3, points=80, modes=4)


def random_states(aligner: Aligner, count: int, rng: np.random.Generator) -> FitState:
    face = FaceState(
        rng.uniform(300, 900, count),
        Rotation.random(count, rng=rng).as_matrix(),
        rng.uniform(0, 300, (count, 2)),
        rng.uniform(-1, 1, (count, len(aligner.fit_model.modes))),
    )
    return FitState.of(face, 0.0)


def scenes_as_views(aligner: Aligner, scenes: list[Scene]) -> Views:
    """Views of the mean face, whose true state follows from its landmarks."""
    landmarks = np.stack([scene.landmarks for scene in scenes])
    truth = initial_pose(
        aligner.fit_model.landmark_mean, landmarks, np.ones(landmarks.shape[:2]), TOY.modes
    )
    return Views(
        [scene.image for scene in scenes],
        np.arange(len(scenes)),
        FitState.of(truth, 0.0),
        landmarks,
    )


HOW = {"spread": 0.0, "inverse_depth": 0.0}  # a cascade's faces are far


def mean_faces(model: MorphableModel, code: PositionCode, count: int, seed: int) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [
        make_scene(
            model,
            code,
            yaw=rng.uniform(-70, 70),
            pitch=rng.uniform(-15, 15),
            rng=rng,
            size=160,
            **HOW,
        )
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def learned(
    oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode
) -> tuple[Cascade, list[Progress], list[Scene]]:
    """A cascade trained on exact descriptors, the progress of its stages, and held-out scenes."""
    unseen = mean_faces(open_head, code, TOY.held_out, 2)
    progress: list[Progress] = []
    cascade = learn_cascade(
        oracle_aligner,
        scenes_as_views(oracle_aligner, mean_faces(open_head, code, TOY.views, 1)),
        scenes_as_views(oracle_aligner, unseen),
        TOY,
        watch=progress.append,
    )
    return cascade, progress, unseen


def test_applying_the_change_between_two_states_gives_the_second(oracle_aligner: Aligner) -> None:
    rng = np.random.default_rng(3)
    before = random_states(oracle_aligner, 20, rng)
    delta = rng.uniform(-0.3, 0.3, (20, 6 + len(oracle_aligner.fit_model.modes)))
    angle, size = rng.uniform(-1, 1, 20), oracle_aligner.fit_model.face_size(before)
    after = apply_change(before, delta, angle, size)
    np.testing.assert_allclose(change_between(before, after, angle, size), delta, atol=1e-9)


def test_rotating_photo_and_crop_together_changes_nothing(oracle_aligner: Aligner) -> None:
    rng = np.random.default_rng(4)
    a, b = random_states(oracle_aligner, 10, rng), random_states(oracle_aligner, 10, rng)
    size, turn = oracle_aligner.fit_model.face_size(a), Rotation.from_euler("z", 0.7).as_matrix()

    def turned(state: FitState) -> FitState:
        return replace(state, rotation=turn @ state.rotation, centre=state.centre @ turn[:2, :2].T)

    plain = change_between(a, b, np.zeros(10), size)
    angle = np.full(10, 0.7)
    np.testing.assert_allclose(change_between(turned(a), turned(b), angle, size), plain, atol=1e-9)
    np.testing.assert_allclose(
        yaw_in_crop(turned(a), angle), yaw_in_crop(a, np.zeros(10)), atol=1e-9
    )


def test_a_start_is_upright_in_its_crop_at_any_rotation_of_the_photo(
    oracle_aligner: Aligner,
) -> None:
    fit_model = oracle_aligner.fit_model
    pose = replace(
        random_states(oracle_aligner, 1, np.random.default_rng(0)), coefficients=np.zeros((1, 0))
    )
    upright = replace(pose, rotation=np.diag([1.0, -1.0, -1.0])[None])
    turn = Rotation.from_euler("z", 40.0, degrees=True).as_matrix()
    rolled = replace(upright, rotation=turn @ upright.rotation)
    for one, degrees in ((upright, 0.0), (rolled, 40.0)):
        state, crops = start_cascade(fit_model, [Detection(Box(0, 0, 9, 9), pose=one)], 1.5, 128)
        assert np.rad2deg(crops.angle[0]) == pytest.approx(degrees, abs=0.5)
        assert yaw_in_crop(state, crops.angle)[0] == pytest.approx(0.0, abs=0.5)
        assert state.scale[0] == pytest.approx(one.scale[0], rel=1e-3)
        np.testing.assert_allclose(
            state.centre, one.centre, atol=0.01 * fit_model.face_size(state)[0]
        )


def test_ridge_finds_the_map_that_made_the_targets_in_either_space() -> None:
    rng = np.random.default_rng(5)
    weight, offset = rng.normal(size=(12, 3)), rng.normal(size=3)
    rows = rng.normal(size=(60, 12)) + 4.0
    ((found, constant),) = ridge(rows, rows @ weight + offset, [1e-12])
    np.testing.assert_allclose(found, weight, atol=1e-8)
    np.testing.assert_allclose(constant, offset, atol=1e-7)
    few, targets = rows[:8], rng.normal(size=(8, 3))
    centred, y = few - few.mean(0), targets - targets.mean(0)
    load = np.square(centred).sum(1).mean()
    for penalty, (dual, _) in zip((0.1, 2.0), ridge(few, targets, (0.1, 2.0)), strict=True):
        primal = np.linalg.solve(centred.T @ centred + penalty * load * np.eye(12), centred.T @ y)
        np.testing.assert_allclose(dual, primal, atol=1e-9)


def test_points_are_the_landmarks_and_far_from_each_other(oracle_aligner: Aligner) -> None:
    fit_model = oracle_aligner.fit_model
    chosen = sample_farthest_points(fit_model, 96)
    assert chosen[:68].tolist() == list(range(68))
    assert len(set(chosen.tolist())) == 96
    places = np.concatenate([fit_model.landmark_mean, fit_model.anchor_mean])[chosen[68:]]
    apart = np.linalg.norm(places[:, None] - places, axis=2) + np.eye(28)
    assert apart.min() > 0.02


def test_each_range_of_yaw_has_its_map() -> None:
    assert choose_map(np.array([-90.0, -26.0, 0.0, 26.0, 90.0])).tolist() == [0, 0, 1, 2, 2]


def test_a_cascade_on_right_descriptors_reaches_the_known_answer(
    oracle_aligner: Aligner, learned: tuple[Cascade, list[Progress], list[Scene]]
) -> None:
    cascade, progress, unseen = learned
    reached = [at.held_out for at in progress]
    assert reached[0] < 0.08, reached
    assert reached[2] < reached[1] < reached[0], reached
    rng = np.random.default_rng(6)
    boxes = [disturb_box(scene.box, rng) for scene in unseen]
    # Nobody calibrated this oracle: with many pixels the default says enough of fits near the
    # border.
    config = replace(
        oracle_aligner.config,
        observation=replace(oracle_aligner.config.observation, pixels=500),
    )
    steady = Aligner(
        oracle_aligner.net, oracle_aligner.anchors, oracle_aligner.model, config=config
    )
    found = with_cascade(steady, cascade).align_batch(
        [s.image for s in unseen], [[box] for box in boxes]
    )
    errors = [
        100 * nme_box(f[0].landmarks_3d[:, :2], s.landmarks)
        for f, s in zip(found, unseen, strict=True)
    ]
    turns = [
        geodesic_degrees(f[0].cam_from_head.rotation, s.rotation)
        for f, s in zip(found, unseen, strict=True)
    ]
    assert np.mean(errors) < 2.5, errors
    assert np.mean(turns) < 5.0, turns
    for (face,), scene in zip(found, unseen, strict=True):
        assert len(face.trace) == 3
        by_stage = [
            nme_box(step.landmarks_2d, scene.landmarks) for step in (face.trace[0], face.trace[-1])
        ]
        assert by_stage[1] < max(by_stage[0], 0.03)
        assert np.isfinite(face.trace[-1].residual)
        assert face.to_json(trace=True)["trace"][0]["residual"] is None
    assert np.mean([not f[0].failed for f in found]) > 0.8


def test_hard_negatives_fail(
    oracle_aligner: Aligner, learned: tuple[Cascade, list[Progress], list[Scene]]
) -> None:
    black = np.zeros((160, 160, 3), np.uint8)
    (found,) = with_cascade(oracle_aligner, learned[0]).align(black, [Box(40, 40, 120, 120)])
    assert found.failed
    assert found.face_confidence == 0.0


def test_tracking_starts_the_cascade_again_in_the_last_box(
    oracle_aligner: Aligner, learned: tuple[Cascade, list[Progress], list[Scene]]
) -> None:
    """Every face passes all stages of the cascade, and no other method fits it."""
    cascade, _, unseen = learned
    aligner, scene = with_cascade(oracle_aligner, cascade), unseen[0]
    (before,) = aligner.align(scene.image, [scene.box])
    ((found,),) = aligner.track([scene.image], [[before]])
    assert len(found.trace) == len(cascade.stages)
    assert found.camera.inverse_depth == 0.0  # cascades are weak perspective, dense fits are not
    assert nme_box(found.landmarks_3d[:, :2], scene.landmarks) < 0.06


@pytest.fixture(scope="module")
def views(open_head: MorphableModel, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Rendered people, two views each; one in ten is held out."""
    rng = np.random.default_rng(0)
    rows = [
        make_row(open_head, f"id{i:03d}", view, rng=rng) for i in range(60) for view in range(2)
    ]
    return write_dataset(tmp_path_factory.mktemp("cascade"), rows)


def test_true_states_put_landmarks_where_the_rows_have_them(
    oracle_aligner: Aligner, views: Dataset
) -> None:
    rows = views.read_shard(0)[:12]
    state = compute_true_states(oracle_aligner.fit_model, rows)
    found = oracle_aligner.fit_model.landmarks(state)
    errors = [100 * nme_box(f, row.landmarks_3d) for f, row in zip(found, rows, strict=True)]
    assert max(errors) < 2.0, errors
    assert (
        max(
            geodesic_degrees(r, row.cam_from_head.rotation)
            for r, row in zip(state.rotation, rows, strict=True)
        )
        < 4
    )


def test_stages_on_sift_lower_the_error_on_people_held_out(
    oracle_aligner: Aligner, views: Dataset, tmp_path: Path
) -> None:
    assert not set(views.columns(0, ["split"])["split"]) - {"train", "dev"}
    recipe = Recipe(
        kind="sift",
        views=100,
        held_out=20,
        stages=2,
        points=68,
        modes=4,
        components=32,
        calibration=0,
    )
    reached: list[float] = []
    cascade = train_cascade(
        oracle_aligner, views, recipe, watch=lambda at: reached.append(at.held_out)
    )
    assert reached[0] < 0.15, reached
    assert reached[1] < reached[0], reached
    assert cascade.card["nme_box"][1]["held_out"] == pytest.approx(reached[1], abs=1e-5)
    assert cascade.card["dataset"] == views.manifest.fingerprint
    save_cascade(tmp_path / "sift.safetensors", cascade)
    again = load_cascade(tmp_path / "sift.safetensors")
    assert again.components is not None
    assert again.card == cascade.card
    held_out = read_split_views(views, oracle_aligner.fit_model, "dev", 20)
    rng = np.random.default_rng(8)
    boxes = [[disturb_box(Box.around(truth), rng)] for truth in held_out.landmarks]
    found = with_cascade(oracle_aligner, again).align_batch(list(held_out.images), boxes)
    errors = [
        nme_box(f[0].landmarks_3d[:, :2], t) for f, t in zip(found, held_out.landmarks, strict=True)
    ]
    assert np.mean(errors) < 1.3 * reached[1] + 0.01, errors


def test_a_dataset_without_people_to_learn_from_is_refused(
    oracle_aligner: Aligner, open_head: MorphableModel, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    one = write_dataset(
        tmp_path, [make_row(open_head, "id000", view, rng=rng) for view in range(2)]
    )
    with pytest.raises(BadDataset, match="no views of the split"):
        train_cascade(oracle_aligner, one, TOY)


def test_views_of_another_model_are_refused(
    oracle_aligner: Aligner, toy_model: MorphableModel, tmp_path: Path
) -> None:
    row = make_row(toy_model, "id000", 0, rng=np.random.default_rng(0))
    with pytest.raises(BadDataset, match="shows the model 'toy', the weights are for 'open-head'"):
        read_split_views(write_dataset(tmp_path, [row]), oracle_aligner.fit_model, row.split, 4)


def toy_cascade(aligner: Aligner) -> Cascade:
    rng = np.random.default_rng(1)

    def half(*shape: int) -> Floats:
        return rng.normal(size=shape).astype(np.float16).astype(np.float32)

    stages = (
        Stage(half(70, 32), half(1, 2240, 10), half(1, 10)),
        Stage(half(70, 32), half(3, 2240, 10), half(3, 10)),
    )
    card = {"data_licences": ["CC0-1.0"]}
    directions = aligner.fit_model.modes[:4].astype(np.float32)
    return Cascade(
        "dff",
        np.arange(70),
        directions,
        24.0,
        None,
        stages,
        fingerprint(aligner.anchors),
        card,
        DEFAULT,
    )


def test_a_file_gives_back_the_cascade_and_the_same_bytes(
    oracle_aligner: Aligner, tmp_path: Path
) -> None:
    cascade = toy_cascade(oracle_aligner)
    save_cascade(tmp_path / "a", cascade)
    found = load_cascade(tmp_path / "a")
    assert (found.kind, found.extent, found.components, found.card) == (
        "dff",
        24.0,
        None,
        cascade.card,
    )
    np.testing.assert_array_equal(found.directions, cascade.directions)
    assert found.calibration is not None
    assert found.calibration.to_json() == DEFAULT.to_json()
    np.testing.assert_array_equal(found.points, cascade.points)
    for a, b in zip(found.stages, cascade.stages, strict=True):
        for part in ("mean", "weight", "offset"):
            np.testing.assert_array_equal(getattr(a, part), getattr(b, part))
    save_cascade(tmp_path / "b", found)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_bad_files_are_refused_by_name(oracle_aligner: Aligner, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"

    def refused(says: str) -> None:
        with pytest.raises(BadWeights, match=says) as error:
            load_cascade(path)
        assert str(path) in str(error.value)

    refused("there is no cascade")  # absent
    path.write_bytes(b"\x80\x04pickle")
    refused("cannot be read")
    with path.open("wb") as file:
        file.truncate(cascade_file.LARGEST + 1)
    refused("as no cascade is")
    save_cascade(path, toy_cascade(oracle_aligner))
    arrays, about = cascade_file.read_cascade(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    refused("cannot be read")
    wrong: list[tuple[dict[str, Floats | Ints | None], dict[str, object], str]] = [
        ({"1.weight": None}, {}, "for 2 stages"),
        ({"2.weight": arrays["1.weight"]}, {}, "for 2 stages"),
        ({"1.weight": arrays["1.weight"][:, :-1]}, {}, "a stage with weights"),
        ({"1.offset": arrays["1.offset"][:2]}, {}, "a stage with"),
        ({"0.mean": np.full((70, 32), np.nan)}, {}, "not finite"),
        ({"points": arrays["points"][:60]}, {}, "for 60 points"),
        ({"directions": arrays["directions"][:3]}, {}, "for 3 directions"),
        ({"components": np.ones((128, 32))}, {}, "components"),
        ({}, {"kind": "hog"}, "kind 'hog'"),
        ({}, {"kind": "sift"}, "components"),
        ({}, {"stages": "many"}, "many"),
        ({}, {"extent": -1.0}, "extent"),
        ({}, {"calibration": {"face_features": []}}, "other features"),
    ]
    for parts, words, says in wrong:
        mixed = {name: part for name, part in {**arrays, **parts}.items() if part is not None}
        cascade_file.write_cascade(path, mixed, {**about, **words})
        refused(says)
    path.write_bytes(whole.replace(b"dff-cascade-1", b"dff-cascade-9"))
    refused("format 'dff-cascade-9'")


def test_a_cascade_works_only_with_the_weights_it_was_learned_with(
    oracle_aligner: Aligner, tmp_path: Path
) -> None:
    cascade = toy_cascade(oracle_aligner)
    with pytest.raises(ValueError, match="other weights"):
        with_cascade(oracle_aligner, replace(cascade, anchors="0" * 64))
    with pytest.raises(ValueError, match="points"):
        with_cascade(oracle_aligner, replace(cascade, points=cascade.points + 5000))
    with pytest.raises(ValueError, match="directions"):
        with_cascade(oracle_aligner, replace(cascade, directions=cascade.directions[:, 1:]))
    save_cascade(tmp_path / "c.safetensors", cascade)
    with pytest.raises(
        BadWeights, match=r"c\.safetensors: the cascade was learned with other weights"
    ):
        load_cascade_aligner(cascade=tmp_path / "c.safetensors")
    with pytest.raises(BadWeights, match="no cascade ships with the weights dff-research"):
        load_cascade_aligner("dff-research")
