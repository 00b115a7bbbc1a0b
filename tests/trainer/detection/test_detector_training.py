"""Scenes know where their faces are, targets mark them, and a run resumes to the same end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dff.face.detector_net import DETECTOR_STRIDE, UNIT, DetectorNetConfig, decode_cells
from dff.face.errors import BadDataset
from dff.face.model.morphable import MorphableModel
from dff.infra.datasets.dataset import Dataset
from dff.infra.networks.detector_file import load_detector
from dff.trainer.data.config import OcclusionConfig, PhotometricConfig
from dff.trainer.data.crops import TrainingSurface
from dff.trainer.data.shard_cache import CacheConfig
from dff.trainer.data.views import ViewStore
from dff.trainer.detection.config import CoverConfig, DetectionSceneConfig, DetectorTrainConfig
from dff.trainer.detection.scenes import DetectionScene, compose_scene, photograph
from dff.trainer.detection.targets import build_targets, detection_loss
from dff.trainer.detection.train import measure_detector, train_detector

PLAIN = DetectionSceneConfig(
    size=128,
    count=(1, 1),
    empty_probability=0.0,
    face=(60.0, 60.0),
    rotations=((0.0, 1.0),),
    mirror_probability=0.0,
    cutout_probability=1.0,
    faceless_probability=0.0,
    border_probability=0.0,
    small_probability=0.0,
    huge_probability=0.0,
    shadow_probability=0.0,
    objects=(0, 0),
    parts=(0, 0),
    cover=CoverConfig(mask_probability=0.0, thing_probability=0.0),
    occlusion=OcclusionConfig(probability=0.0),
)
TINY = DetectorTrainConfig(
    steps=6,
    batch=2,
    uses=2,
    pool=6,
    fresh=1,
    log_every=2,
    eval_every=6,
    checkpoint_every=3,
    dev_scenes=4,
    net=DetectorNetConfig(widths=(8, 16, 16), depths=(1, 1, 1)),
    scene=DetectionSceneConfig(size=64, face=(12.0, 50.0)),
)


def scene_of(
    store: ViewStore,
    surface: TrainingSurface,
    model: MorphableModel,
    config: DetectionSceneConfig,
    seed: int = 0,
) -> DetectionScene:
    rng = np.random.default_rng(seed)
    return compose_scene([store.view(3)], surface, model.landmarks.vertex, config, rng=rng)


def test_a_face_lies_where_its_landmarks_say(
    store: ViewStore, surface: TrainingSurface, open_head: MorphableModel
) -> None:
    """The colour at a visible landmark is that of the view."""
    view = store.view(3)
    source = view.vertex_px[open_head.landmarks.vertex]
    for seed in range(6):
        scene = scene_of(store, surface, open_head, PLAIN, seed)
        place = scene.landmarks[0]
        inside = ((place > 2) & (place < PLAIN.size - 2)).all(1)
        inside &= np.arange(68) >= 17  # the jaw may be hidden
        x, y = np.floor(place[inside]).astype(int).T
        u, v = np.floor(source[inside]).astype(int).T
        apart = np.abs(scene.image[y, x].astype(float) - view.image[v, u])
        if inside.any():
            assert np.median(apart) < 12
        size = scene.landmarks[0].max(0) - scene.landmarks[0].min(0)
        assert size.max() == pytest.approx(60.0, rel=1e-5)  # vertices are float32


def test_the_visible_share_falls_beyond_edges_and_behind_others(
    store: ViewStore, surface: TrainingSurface, open_head: MorphableModel
) -> None:
    shares = []
    for seed in range(20):
        scene = scene_of(store, surface, open_head, PLAIN, seed)
        low, high = scene.landmarks[0].min(0), scene.landmarks[0].max(0)
        within = np.clip(np.minimum(high, PLAIN.size) - np.maximum(low, 0), 0, None)
        share = float(np.prod(within) / np.prod(high - low))
        shares.append(abs(scene.visible[0] - share))
        if share == 1.0:
            assert scene.visible[0] > 0.95
    assert max(shares) < 0.3
    crowded = replace(PLAIN, count=(12, 12), face=(60.0, 60.0))
    crowd = scene_of(store, surface, open_head, crowded)
    assert len(crowd.visible) == 12
    assert crowd.visible.min() < 0.3
    empty = scene_of(store, surface, open_head, replace(PLAIN, empty_probability=1.0))
    assert empty.landmarks.shape == (0, 68, 2)


def test_a_mirrored_photo_has_mirrored_landmarks(
    store: ViewStore, surface: TrainingSurface, open_head: MorphableModel
) -> None:
    scene = scene_of(store, surface, open_head, PLAIN)
    none = PhotometricConfig(
        log_gamma=(0, 0), contrast=(1, 1), brightness=(0, 0), channel_gain=(1, 1),
        saturation_probability=0, grey_probability=0, blur_probability=0,
        low_resolution_probability=0, noise_probability=0, jpeg_probability=0,
    )  # fmt: skip
    mirrored = replace(PLAIN, mirror_probability=1.0, photometric=none)
    once = photograph(scene, mirrored, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(once.image, scene.image[:, ::-1])
    assert once.landmarks[0, 36, 0] == pytest.approx(PLAIN.size - scene.landmarks[0, 45, 0])
    twice = photograph(once, mirrored, rng=np.random.default_rng(0))
    np.testing.assert_allclose(twice.landmarks, scene.landmarks)


def test_targets_decode_to_the_faces(
    store: ViewStore, surface: TrainingSurface, open_head: MorphableModel
) -> None:
    template = open_head.template[open_head.landmarks.vertex].astype(np.float64)
    config = DetectorTrainConfig(scene=PLAIN)
    seen = 0
    for seed in range(8):
        scene = scene_of(store, surface, open_head, PLAIN, seed)
        targets = build_targets(scene, template, config)
        centre = (scene.landmarks[0].min(0) + scene.landmarks[0].max(0)) / 2
        if scene.visible[0] < PLAIN.whole or not (0 < centre.min() < centre.max() < PLAIN.size):
            assert targets.heat.max() < 1.0
            continue
        seen += 1
        answer = np.concatenate([20 * targets.heat[..., None] - 10, targets.answer], axis=2)
        (box,) = decode_cells(answer, least=5.0).box
        truth = [*scene.landmarks[0].min(0), *scene.landmarks[0].max(0)]
        np.testing.assert_allclose(box, truth, atol=0.01)
        perfect = torch.from_numpy(answer).permute(2, 0, 1)[None]
        named = {
            name: torch.from_numpy(getattr(targets, name))[None]
            for name in ("heat", "counted", "answer", "weight")
        }
        terms = detection_loss(perfect, named)
        assert float(terms["box"]) == pytest.approx(0.0, abs=1e-6)
        assert float(terms["rotation"]) == pytest.approx(0.0, abs=1e-6)
        worse = perfect.clone()
        worse[:, 1] += 60.0 / DETECTOR_STRIDE  # by a face size, about
        assert float(detection_loss(worse, named)["box"]) == pytest.approx(1.0, rel=0.4)
        assert np.exp(targets.answer[targets.weight == 1.0][0, 2:4]).max() == pytest.approx(
            60 / UNIT, rel=1e-4
        )
    assert seen >= 3


def test_a_hidden_or_tiny_face_is_neither_wanted_nor_punished() -> None:
    landmarks = np.random.default_rng(0).uniform(40, 60, (1, 68, 2))
    template = np.random.default_rng(1).normal(0, 0.05, (68, 3))
    config = DetectorTrainConfig()
    image = np.zeros((config.scene.size,) * 2 + (3,), np.uint8)
    shown = build_targets(DetectionScene(image, landmarks, np.ones(1)), template, config)
    assert shown.heat.max() == 1.0
    assert shown.counted.min() == 1.0
    half = build_targets(DetectionScene(image, landmarks, np.array([0.4])), template, config)
    assert half.heat.max() == 0.0
    assert half.counted.min() == 0.0
    hidden = build_targets(DetectionScene(image, landmarks, np.array([0.1])), template, config)
    assert hidden.heat.max() == 0.0
    assert hidden.counted.min() == 1.0


def test_a_face_too_large_for_the_network_is_no_face() -> None:
    """One a little too large may be detected, one far too large must not."""
    template = np.random.default_rng(1).normal(0, 0.05, (68, 3))
    config = DetectorTrainConfig()
    image = np.zeros((config.scene.size,) * 2 + (3,), np.uint8)
    spread = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 68, 2))
    spread /= np.ptp(spread, axis=1).max()
    for size, most, least in ((120.0, 1.0, 1.0), (140.0, 0.0, 0.0), (200.0, 0.0, 1.0)):
        scene = DetectionScene(image, 80.0 + size * spread, np.ones(1))
        targets = build_targets(scene, template, config)
        assert targets.heat.max() == most
        assert targets.counted.min() == least


def test_a_scene_may_show_a_part_of_a_huge_face(
    store: ViewStore, surface: TrainingSurface, open_head: MorphableModel
) -> None:
    huge = replace(PLAIN, huge_probability=1.0, huge=(300.0, 300.0), most_beside_huge=0)
    shares = []
    for seed in range(6):
        scene = scene_of(store, surface, open_head, huge, seed)
        assert np.ptp(scene.landmarks[0], axis=0).max() == pytest.approx(300.0, rel=1e-5)
        shares.append(scene.visible[0])
    assert max(shares) < 0.5


def test_parts_of_faces_and_objects_are_drawn_but_are_no_faces(
    store: ViewStore, surface: TrainingSurface, open_head: MorphableModel
) -> None:
    """Ears, eyes and patterned shapes lie in the image, and no face is named for them."""
    empty = replace(PLAIN, empty_probability=1.0)
    plain = scene_of(store, surface, open_head, empty)
    for more in (replace(empty, parts=(4, 4)), replace(empty, objects=(4, 4))):
        scene = scene_of(store, surface, open_head, more)
        assert scene.landmarks.shape == (0, 68, 2)
        assert (scene.image != plain.image).any(-1).mean() > 0.03


def test_a_thing_before_a_face_hides_a_part_of_it(
    store: ViewStore, surface: TrainingSurface, open_head: MorphableModel
) -> None:
    cover = CoverConfig(mask_probability=0.0, thing_probability=1.0, thing=(0.6, 0.6))
    covered = replace(PLAIN, cover=cover)
    hidden = []
    for seed in range(8):
        plain, less = (
            scene_of(store, surface, open_head, config, seed) for config in (PLAIN, covered)
        )
        np.testing.assert_array_equal(less.landmarks, plain.landmarks)
        hidden.append(plain.visible[0] - less.visible[0])
    assert min(hidden) >= 0.0
    assert np.mean(hidden) > 0.1


def test_shade_darkens_one_side(
    store: ViewStore, surface: TrainingSurface, open_head: MorphableModel
) -> None:
    shaded = replace(PLAIN, shadow_probability=1.0, shadow=(0.1, 0.1))
    bright, dark = (
        scene_of(store, surface, open_head, config).image.astype(float)
        for config in (PLAIN, shaded)
    )
    ratio = (dark.sum(2) + 1.0) / (bright.sum(2) + 1.0)
    assert ratio.min() < 0.3
    assert ratio.max() > 0.7


def test_an_interrupted_run_resumes_to_the_same_end(
    dataset: Dataset, open_head: MorphableModel, tmp_path: Path
) -> None:
    cache = CacheConfig(tmp_path / "shards")
    seen: list[int] = []
    whole = tmp_path / "whole.safetensors"
    figures = train_detector(
        dataset, whole, TINY, model=open_head, cache=cache, on_figures=lambda n, _: seen.append(n)
    )
    assert seen == [2, 4, 6, 6]
    assert set(figures) == {"recall", "false_per_scene", "overlap"}
    parts = tmp_path / "parts.safetensors"

    class Interrupted(Exception):
        pass

    def stop(step: int, _: object) -> None:
        if step == 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        train_detector(dataset, parts, TINY, model=open_head, cache=cache, on_figures=stop)
    train_detector(dataset, parts, TINY, model=open_head, cache=cache, resume=True)
    assert parts.read_bytes() == whole.read_bytes()
    card = load_detector(parts).card
    assert card["steps"] == 6
    assert card["data_licences"]
    with pytest.raises(ValueError, match="other settings: seed"):
        train_detector(
            dataset, parts, replace(TINY, seed=1), model=open_head, cache=cache, resume=True
        )


def test_recall_and_false_alarms_of_known_answers(
    store: ViewStore, surface: TrainingSurface, open_head: MorphableModel
) -> None:
    class Constant(torch.nn.Module):
        """Answers one box of 60 px in the middle of the image."""

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            out = torch.zeros(1, 11, image.shape[2] // 8, image.shape[3] // 8)
            out[:, 0] = -9.0
            out[:, 0, 8, 8] = 9.0
            out[:, 3:5] = float(np.log(60 / UNIT))
            return out

    config = DetectorTrainConfig(scene=PLAIN)
    middle = np.array([[38.0, 38.0], [98.0, 98.0]])
    image = np.zeros((128, 128, 3), np.uint8)
    here = DetectionScene(image, np.repeat(middle, 34, axis=0)[None], np.ones(1))
    nowhere = DetectionScene(image, np.zeros((0, 68, 2)), np.zeros(0))
    figures = measure_detector(Constant(), [here, nowhere], config)  # type: ignore[arg-type]
    assert figures["recall"] == 1.0
    assert figures["overlap"] == pytest.approx(1.0, abs=1e-3)
    assert figures["false_per_scene"] == 0.5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"uses": 3}, "no multiple of 3 uses"),
        ({"scene": DetectionSceneConfig(size=100)}, "no multiple"),
        ({"steps": 0}, "positive counts"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **wrong)  # type: ignore[arg-type]


def test_a_dataset_without_held_out_views_is_refused(
    open_head: MorphableModel, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ViewStore, "held_out", lambda *_: (np.zeros(0, int), np.zeros(0, int)))
    with pytest.raises(BadDataset, match="holds out no views"):
        train_detector(dataset, tmp_path / "x.safetensors", TINY, model=open_head)
