"""Training a cascade on rendered views, whose pose and shape are known.

Every stage is a ridge regression from the descriptors at the current states to the remaining change
(Cao et al. 2012; Xiong and De la Torre 2013). Two measures prevent overfitting: the penalty is that
of least error on the validation split (held-out identities), and training faces are moved to the
next stage by maps that were fitted to other identities (cross-fitting).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import numpy as np

from dff.aligner.align import Aligner
from dff.aligner.cascade.features import PointFeatures, describe_sift
from dff.aligner.cascade.fitter import (
    LARGEST_LATENT,
    CascadeFitter,
    move_face,
    start_cascade,
    yaw_in_crop,
)
from dff.aligner.cascade.model import (
    TURNS,
    Cascade,
    Kind,
    Stage,
    choose_map,
    fingerprint,
)
from dff.aligner.config import AlignConfig
from dff.aligner.detection import Detection
from dff.aligner.evaluation.calibration import calibrate, disturb_box
from dff.aligner.evaluation.true_states import find_true_states
from dff.aligner.fitting.batch import join_rows, take_rows
from dff.aligner.fitting.change import change_between
from dff.aligner.fitting.crop import Crops, frame_faces
from dff.aligner.fitting.fit_model import FitModel, FitState, build_fit_model_from_modes
from dff.face.arrays import Array, Bools, Bytes, Float, Floats, Int, Ints
from dff.face.descriptor import Network
from dff.face.errors import BadDataset
from dff.face.geometry.camera import Box
from dff.face.solve.least_squares import ridge
from dff.infra.datasets.dataset import Dataset, spread_views
from dff.infra.datasets.shards import ViewRow
from dff.infra.datasets.split import Split


@dataclass(frozen=True)
class Recipe:
    """The settings of training. Raises ValueError for invalid settings."""

    kind: Kind = "dff"
    views: int = 4000  # of training identities
    held_out: int = 400  # of held-out identities
    stages: int = 3
    points: int = 96  # the 68 landmarks and anchors far from them and each other
    modes: int = 30  # latent coefficients that are fitted
    extent: float = 48.0  # crop pixels that a SIFT descriptor covers (docs/experiments/cascade.md)
    components: int = 64  # principal components of SIFT descriptors that are kept
    calibration: int = 320  # views of held-out identities that calibrate its confidence; 0: none
    seed: int = 0
    # of the ridge, in mean squares of a row: those that are tried
    penalties: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0)
    overlap: float = 15.0  # degrees by which a map for a range of yaw is trained beyond its range
    fewest: int = 32  # faces to which a map is fitted
    folds: int = 4  # groups of identities, each moved by maps that were fitted to the others

    def __post_init__(self) -> None:
        if (
            min(self.views, self.held_out, self.stages, self.modes, self.components) < 1
            or self.points < 68
            or len(self.penalties) < 2
        ):
            raise ValueError(f"a Recipe wants positive counts and at least 68 points: {self}")


@dataclass(frozen=True)
class Views:
    """N rendered views with their ground truth."""

    images: Sequence[Bytes]
    subject: Int[Array, " views"]  # which identity
    truth: FitState  # the nearest states of the fit model
    landmarks: Float[Array, "views 68 2"]  # pixels, 3D scheme
    licences: Sequence[str] = ()  # of the views, each once


@dataclass(frozen=True)
class Progress:
    """The errors after a stage: mean ``nme_box``, fractions."""

    stage: int
    learned: float  # of the training split, moved by maps fitted to other identities
    held_out: float  # of the validation split


def read_split_views(dataset: Dataset, fit_model: FitModel, split: Split, count: int) -> Views:
    """At most ``count`` views of one split, of as many identities as possible.

    Raises BadDataset when there is none, or when they show another face model.
    """
    rows = spread_views(dataset, count, split=split)
    if not rows:
        raise BadDataset(f"{dataset.storage.uri} has no views of the split {split!r}")
    strange = next((row for row in rows if row.model != fit_model.model.name), None)
    if strange:
        raise BadDataset(
            f"{strange.sample_id} shows the model {strange.model!r}, "
            f"the weights are for {fit_model.model.name!r}"
        )
    _, subject = np.unique([row.identity_id for row in rows], return_inverse=True)
    landmarks = np.stack([row.landmarks_3d for row in rows]).astype(np.float64)
    licences = sorted({row.licence for row in rows})
    return Views(
        [row.pixels() for row in rows],
        subject,
        compute_true_states(fit_model, rows),
        landmarks,
        licences,
    )


def compute_true_states(fit_model: FitModel, rows: Sequence[ViewRow]) -> FitState:
    """The weak-perspective states whose landmarks and anchors are nearest to the rows' own."""
    chunks = [rows[begin : begin + 100] for begin in range(0, len(rows), 100)]
    state = join_rows([find_true_states(fit_model, some) for some in chunks])
    latent = np.clip(state.coefficients, -LARGEST_LATENT, LARGEST_LATENT)
    return replace(state, coefficients=latent)


def sample_farthest_points(fit_model: FitModel, count: int) -> Ints:
    """The 68 landmarks, then anchors by farthest-point sampling."""
    places = np.concatenate([fit_model.landmark_mean, fit_model.anchor_mean])
    chosen = list(range(68))
    apart = np.linalg.norm(places[:, None] - places[None, :68], axis=2).min(1)
    while len(chosen) < min(count, len(places)):
        chosen.append(int(apart.argmax()))
        apart = np.minimum(apart, np.linalg.norm(places - places[chosen[-1]], axis=1))
    return np.array(chosen)


@dataclass(frozen=True)
class SplitFaces:
    """The faces of one split, with their current states."""

    views: Views
    state: FitState
    crops: Crops

    def error(
        self, fit_model: FitModel, state: FitState, which: Bools | slice = slice(None)
    ) -> Floats:
        """``nme_box`` of a state of ``which`` faces, fractions."""
        truth = self.views.landmarks[which]
        size = np.sqrt(np.ptp(truth, axis=1).prod(1))
        return np.asarray(np.linalg.norm(fit_model.landmarks(state) - truth, axis=2).mean(1) / size)

    def descriptors(
        self, fit_model: FitModel, net: Network, features: PointFeatures, config: AlignConfig
    ) -> tuple[Floats, Floats]:
        """``PointFeatures.read`` at the current states."""
        images = self.views.images
        return features.read(fit_model, net, images, self.crops, self.state, config.visibility)


def learn_cascade(
    aligner: Aligner,
    views: Views,
    held_out: Views,
    recipe: Recipe,
    *,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> Cascade:
    """A cascade for the weights of an aligner, without a card.

    Its random draws depend on the recipe's seed alone.
    """
    fit_model, config = build_cascade_fit_model(aligner, recipe), aligner.config
    points = sample_farthest_points(fit_model, recipe.points)
    rng = np.random.default_rng([recipe.seed, 1])
    train, validation = (_place_faces(fit_model, config, some, rng) for some in (views, held_out))
    components = (
        _sift_components(fit_model, train, points, recipe) if recipe.kind == "sift" else None
    )
    features = PointFeatures(points, recipe.extent, components)
    stages: list[Stage] = []
    for number in range(recipe.stages):
        if number:
            train, validation = (
                replace(c, crops=frame_faces(fit_model, c.state, config.margin, config.crop))
                for c in (train, validation)
            )
        stage, *after = _learn_stage(
            aligner, fit_model, train, validation, features, recipe, first=number == 0
        )
        stages.append(stage)
        train, validation = replace(train, state=after[0]), replace(validation, state=after[1])
        errors = (float(some.error(fit_model, some.state).mean()) for some in (train, validation))
        watch(Progress(number, *errors))
    return Cascade(
        recipe.kind,
        points,
        fit_model.modes.astype(np.float32),
        recipe.extent,
        components,
        tuple(stages),
        fingerprint(aligner.anchors),
        card={},
    )


def build_cascade_fit_model(aligner: Aligner, recipe: Recipe) -> FitModel:
    """The fit model of a cascade, of the aligner's first latent directions."""
    modes = aligner.fit_model.modes[: recipe.modes].astype(np.float32)
    return build_fit_model_from_modes(
        aligner.model, aligner.anchors, modes, aligner.config.fit_model
    )


def train_cascade(
    aligner: Aligner,
    dataset: Dataset,
    recipe: Recipe,
    *,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> Cascade:
    """A cascade for the weights of an aligner, trained on a dataset's training identities.

    The held-out identities choose its penalties. Its card records its provenance and the errors
    after every stage. Raises BadDataset for a dataset without training or held-out identities, or
    of another face model; ValueError when too few faces are well or badly aligned to calibrate it.
    """
    fit_model = build_cascade_fit_model(aligner, recipe)
    views = read_split_views(dataset, fit_model, "train", recipe.views)
    held_out = read_split_views(dataset, fit_model, "dev", recipe.held_out)
    reached: list[dict[str, float]] = []

    def note(progress: Progress) -> None:
        reached.append(
            {name: round(getattr(progress, name), 5) for name in ("learned", "held_out")}
        )
        watch(progress)

    cascade = learn_cascade(aligner, views, held_out, recipe, watch=note)
    licences = {*views.licences, *held_out.licences, *aligner.card.get("data_licences", ())}
    card = {
        "data_licences": sorted(licences),
        "dataset": dataset.manifest.fingerprint,
        "model": aligner.model.name,
        "nme_box": reached,
        "recipe": asdict(recipe) | {"penalties": list(recipe.penalties)},
        "weights": {name: aligner.card.get(name) for name in ("dataset", "steps")},
    }
    cascade = replace(cascade, card=card)
    return (
        calibrate_cascade(aligner, cascade, dataset, recipe.calibration)
        if recipe.calibration
        else cascade
    )


def calibrate_cascade(aligner: Aligner, cascade: Cascade, dataset: Dataset, views: int) -> Cascade:
    """The cascade with a calibration of its own, whose reliability its card records.

    Dense calibrations do not apply: good fits of a cascade agree less with single pixels.
    """
    parts = aligner.net, aligner.anchors, aligner.model
    fitter = CascadeFitter(*parts, cascade, aligner.config)
    fitted = Aligner(*parts, fitter=fitter, config=aligner.config)
    calibration, (trust,) = calibrate(fitted, dataset, views=views)
    return replace(
        cascade, calibration=calibration, card={**cascade.card, "trust": trust.to_json()}
    )


def _place_faces(
    fit_model: FitModel, config: AlignConfig, views: Views, rng: np.random.Generator
) -> SplitFaces:
    """Faces at the start of a cascade, in boxes with the errors of a detector."""
    boxes = [disturb_box(Box.around(truth), rng) for truth in views.landmarks]
    detections = [Detection(box) for box in boxes]
    start = start_cascade(fit_model, detections, config.margin, config.crop)
    return SplitFaces(views, *start)


def _sift_components(
    fit_model: FitModel, train: SplitFaces, points: Ints, recipe: Recipe
) -> Floats:
    """(128, D) float32 principal components of SIFT descriptors at the start."""
    some = np.arange(min(200, len(train.views.images)))
    pixels = np.stack([train.crops.cut(train.views.images[i], i) for i in range(len(some))])
    crops, state = take_rows(train.crops, some), train.state[some]
    located = PointFeatures(points, recipe.extent, None).locate(fit_model, state)
    seen = describe_sift(pixels, crops.crop_from_photo(located), recipe.extent)
    _, vectors = np.linalg.eigh(np.cov(seen.reshape(-1, 128).T))
    return np.ascontiguousarray(vectors[:, ::-1][:, : recipe.components], dtype=np.float32)


def _learn_stage(
    aligner: Aligner,
    fit_model: FitModel,
    train: SplitFaces,
    validation: SplitFaces,
    features: PointFeatures,
    recipe: Recipe,
    *,
    first: bool,
) -> tuple[Stage, FitState, FitState]:
    """One stage, and the states of the training and the validation split after it."""
    (seen, visible), (validation_seen, validation_visible) = (
        some.descriptors(fit_model, aligner.net, features, aligner.config)
        for some in (train, validation)
    )
    mean = (seen * visible[..., None]).sum(0) / np.maximum(visible.sum(0), 1.0)[:, None]
    rows, validation_rows = (
        np.asarray((s - mean) * v[..., None], np.float32).reshape(len(s), -1)
        for s, v in ((seen, visible), (validation_seen, validation_visible))
    )
    face_size = fit_model.face_size(train.state)
    targets = change_between(train.state, train.views.truth, train.crops.angle, face_size)
    yaw, validation_yaw = (
        yaw_in_crop(some.state, some.crops.angle) for some in (train, validation)
    )
    edges = (-np.inf, *TURNS, np.inf)
    ranges = [(-np.inf, np.inf)] if first else [*pairwise(edges)]
    which, validation_which = (
        np.zeros(len(y), int) if first else choose_map(y) for y in (yaw, validation_yaw)
    )
    fold = train.views.subject % recipe.folds
    change, maps = np.zeros(targets.shape), []
    for i, (low, high) in enumerate(ranges):
        near = (yaw > low - recipe.overlap) & (yaw < high + recipe.overlap)
        if near.sum() < recipe.fewest:
            near = np.ones(len(yaw), bool)  # too few faces in this range: fitted to all
        penalty, found = _choose_penalty(
            fit_model,
            validation,
            validation_rows,
            validation_which == i,
            rows[near],
            targets[near],
            recipe.penalties,
        )
        maps.append(found)
        for part in range(recipe.folds):
            others, moves = near & (fold != part), (which == i) & (fold == part)
            if others.any() and moves.any():
                ((weight, offset),) = ridge(
                    rows[others], targets[others].astype(np.float32), [penalty]
                )
                change[moves] = rows[moves] @ weight + offset
    weight, offset = (np.stack(part).astype(np.float32) for part in zip(*maps, strict=True))
    stage = Stage(mean.astype(np.float32), weight, offset)
    validation_change = stage.change(validation_rows, validation_yaw)
    return (
        stage,
        _move(fit_model, train, change),
        _move(fit_model, validation, validation_change),
    )


def _move(fit_model: FitModel, faces: SplitFaces, change: Floats) -> FitState:
    face_size = fit_model.face_size(faces.state)
    return move_face(faces.state, change, faces.crops.angle, face_size)


def _choose_penalty(
    fit_model: FitModel,
    validation: SplitFaces,
    validation_rows: Floats,
    which: Bools,
    rows: Floats,
    targets: Floats,
    penalties: Sequence[float],
) -> tuple[float, tuple[Floats, Floats]]:
    """The penalty of least error on ``which`` validation faces, and its map."""
    maps = ridge(rows, targets.astype(np.float32), penalties)
    if not which.any():
        return penalties[1], maps[1]
    errors = []
    for weight, offset in maps:
        state, angle = validation.state[which], validation.crops.angle[which]
        change = validation_rows[which] @ weight + offset
        found = move_face(state, change, angle, fit_model.face_size(state))
        errors.append(float(validation.error(fit_model, found, which).mean()))
    best = int(np.argmin(errors))
    return penalties[best], maps[best]
