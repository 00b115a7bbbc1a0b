"""Learning a cascade: from rendered views, whose pose and shape are known, to the maps of its
stages.

Every stage is ridge regression from what faces show where the stages before have put them to what
they still lack (Cao et al. 2012; Xiong and De la Torre 2013). Two things keep it from believing
faces that it has learned by heart: the penalty is the one that errs least on held-out identities,
and the faces from which the next stage learns are moved by maps that were learned on other
identities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from dff.aligner.align import AlignConfig, Aligner
from dff.aligner.cascade.model import (
    TURNS,
    WIDEST,
    Cascade,
    CascadeAligner,
    Kind,
    Stage,
    change_between,
    changed,
    describe_sift,
    fingerprint,
    look,
    points_of,
    start_of,
    turn_of,
    yaw_in_crop,
)
from dff.aligner.detector import Detection
from dff.aligner.evaluation.calibration import calibrate, missed
from dff.aligner.fitting.crop import Crops
from dff.aligner.fitting.loop import FitModel, crops_of_state, fit_model_of
from dff.face.arrays import Bools, Bytes, Floats, Ints
from dff.face.descriptor import Network
from dff.face.errors import BadDataset
from dff.face.geometry.camera import Box
from dff.face.solve.gauss_newton import FaceState, initial_pose, project, step
from dff.infra.dataset import Dataset
from dff.infra.shards import ViewRow
from dff.infra.split import Split

PENALTIES = (0.3, 1.0, 3.0, 10.0)  # of the ridge, in mean squares of a row: those that are tried
OVERLAP = 15.0  # degrees by which a turned map learns from faces beyond its own
TRUTH_NOISE = (
    0.015  # fraction of the unit: how closely the true state follows a view's projected points
)
TRUTH_EVIDENCE = 50.0  # independent points that they are worth
FEWEST = 32  # faces from which a map is learned
FOLDS = 4  # groups of identities, each moved to the next stage by what was learned on the others


@dataclass(frozen=True)
class Recipe:
    """How a cascade is learned. Raises ValueError for what makes no sense."""

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

    def __post_init__(self) -> None:
        if (
            min(self.views, self.held_out, self.stages, self.modes, self.components) < 1
            or self.points < 68
        ):
            raise ValueError(f"a Recipe wants positive counts and at least 68 points: {self}")


@dataclass(frozen=True)
class Views:
    """N rendered views and the truth about them."""

    images: Sequence[Bytes]
    subject: Ints  # (N,) which identity
    truth: FaceState  # the best that the rig can say
    landmarks: Floats  # (N, 68, 2) pixels, 3D scheme
    licences: Sequence[str] = ()  # of the views, each once


@dataclass(frozen=True)
class Progress:
    """What a stage has reached: mean ``nme_box``, fractions."""

    stage: int
    learned: (
        float  # on the views that it learned from, moved by maps that had not seen their identity
    )
    held_out: float


def views_of(dataset: Dataset, fit_model: FitModel, split: Split, count: int) -> Views:
    """At most ``count`` views of one split, of as many identities as can be.

    Raises BadDataset when there is none, or when they show another face model.
    """
    size = {
        i: dataset.columns(i, ["split"])["split"].count(split) for i in range(len(dataset.shards))
    }
    every = max(sum(size.values()) // count, 1)
    rows: list[ViewRow] = []
    number = 0
    for shard, some in size.items():
        if not some or len(rows) >= count:
            continue
        for row in dataset.read_shard(shard):
            if row.split == split:
                if number % every == 0 and len(rows) < count:
                    rows.append(row)
                number += 1
    if not rows:
        raise BadDataset(f"{dataset.storage.uri} has no views of the split {split!r}")
    strange = next((row for row in rows if row.model != fit_model.model.name), None)
    if strange:
        raise BadDataset(
            f"{strange.sample_id} shows the model {strange.model!r}, the weights know {fit_model.model.name!r}"
        )
    _, subject = np.unique([row.identity_id for row in rows], return_inverse=True)
    landmarks = np.stack([row.landmarks_3d for row in rows]).astype(np.float64)
    licences = sorted({row.licence for row in rows})
    return Views(
        [row.pixels() for row in rows], subject, true_states(fit_model, rows), landmarks, licences
    )


def true_states(fit_model: FitModel, rows: Sequence[ViewRow]) -> FaceState:
    """The states whose landmarks and anchors, in weak perspective, fall nearest to where the rows'
    cameras see them.
    """
    some = slice(None, None, 4)
    vertex = np.concatenate([fit_model.model.landmarks.vertex, fit_model.anchor_vertex[some]])
    mean = np.concatenate([fit_model.landmark_mean, fit_model.anchor_mean[some]])
    basis = np.concatenate([fit_model.landmark_basis, fit_model.anchor_basis[some]])
    modes = len(fit_model.modes)
    weight = np.full(len(vertex), TRUTH_EVIDENCE / TRUTH_NOISE**2 / len(vertex))
    weight[:68] *= 3  # landmarks are what is asked of an alignment
    states = []
    for begin in range(0, len(rows), 100):
        points = np.stack(
            [
                fit_model.model.vertices(row.coefficients(fit_model.model))[vertex]
                for row in rows[begin : begin + 100]
            ]
        )
        px = np.stack(
            [
                row.camera.px_from_cam(row.cam_from_head.apply(p))
                for row, p in zip(rows[begin : begin + 100], points, strict=True)
            ]
        )
        all_of = np.broadcast_to(weight, px.shape[:2])
        state = initial_pose(points, px, all_of, modes)
        for _ in range(3):
            # Noise as wide as the face: residuals of exact points are no outliers.
            state = step(
                state,
                mean,
                basis,
                px,
                all_of,
                noise=fit_model.unit(state),
                prior=np.zeros(modes),
                prior_sd=np.ones(modes),
            )
        states.append(replace(state, coefficients=np.clip(state.coefficients, -WIDEST, WIDEST)))
    return joined(states)


def joined(states: Sequence[FaceState]) -> FaceState:
    """All faces of several states."""
    parts = [(one.scale, one.rotation, one.centre, one.coefficients) for one in states]
    return FaceState(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def spread_points(fit_model: FitModel, count: int) -> Ints:
    """The 68 landmarks, then anchors of which each lies farthest from all before it."""
    places = np.concatenate([fit_model.landmark_mean, fit_model.anchor_mean])
    chosen = list(range(68))
    apart = np.linalg.norm(places[:, None] - places[None, :68], axis=2).min(1)
    while len(chosen) < min(count, len(places)):
        chosen.append(int(apart.argmax()))
        apart = np.minimum(apart, np.linalg.norm(places - places[chosen[-1]], axis=1))
    return np.array(chosen)


def ridge(rows: Floats, targets: Floats, penalties: Sequence[float]) -> list[tuple[Floats, Floats]]:
    """For each penalty the (F, T) weight and (T,) offset that map (N, F) ``rows`` to (N, T)
    ``targets``.

    A penalty multiplies the mean square length of the centred rows. Solved in the smaller of both
    spaces.
    """
    row_mean, target_mean = rows.mean(0, dtype=np.float64), targets.mean(0)
    x, y = rows - row_mean.astype(rows.dtype), targets - target_mean
    dual = len(x) < x.shape[1]
    gram = x @ x.T if dual else x.T @ x
    load = float(np.trace(gram)) / len(x)
    right = y if dual else x.T @ y
    out = []
    for penalty in penalties:
        solved = cho_solve(
            cho_factor(gram + penalty * load * np.eye(len(gram), dtype=gram.dtype), lower=True),
            right,
        )
        weight = x.T @ solved if dual else solved
        out.append((weight, target_mean - row_mean @ weight))
    return out


@dataclass(frozen=True)
class Pupils:
    """Faces on the way through the stages."""

    views: Views
    state: FaceState
    crops: Crops

    def error(
        self, fit_model: FitModel, state: FaceState, which: Bools | slice = slice(None)
    ) -> Floats:
        """``nme_box`` of a state of ``which`` faces, fractions."""
        truth = self.views.landmarks[which]
        size = np.sqrt(np.ptp(truth, axis=1).prod(1))
        return np.asarray(np.linalg.norm(fit_model.landmarks(state) - truth, axis=2).mean(1) / size)


def learn_cascade(
    aligner: Aligner,
    views: Views,
    held_out: Views,
    recipe: Recipe,
    *,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> Cascade:
    """A cascade for the weights of an aligner, without a card. Its draws come from the recipe's
    seed alone.
    """
    fit_model, config = build_cascade_fit_model(aligner, recipe), aligner.config
    points = spread_points(fit_model, recipe.points)
    rng = np.random.default_rng([recipe.seed, 1])
    pupils, exam = (_enter(fit_model, config, some, rng) for some in (views, held_out))
    components = (
        _sift_components(fit_model, pupils, points, recipe) if recipe.kind == "sift" else None
    )
    stages: list[Stage] = []
    for number in range(recipe.stages):
        if number:
            pupils, exam = (
                replace(c, crops=crops_of_state(fit_model, c.state, config.margin, config.crop))
                for c in (pupils, exam)
            )
        stage, *after = _learn_stage(
            aligner.net, fit_model, pupils, exam, points, components, recipe, first=number == 0
        )
        stages.append(stage)
        pupils, exam = replace(pupils, state=after[0]), replace(exam, state=after[1])
        errors = (float(some.error(fit_model, some.state).mean()) for some in (pupils, exam))
        watch(Progress(number, *errors))
    of = fingerprint(aligner.anchors)
    return Cascade(
        recipe.kind,
        points,
        fit_model.modes.astype(np.float32),
        recipe.extent,
        components,
        tuple(stages),
        of,
        card={},
    )


def build_cascade_fit_model(aligner: Aligner, recipe: Recipe) -> FitModel:
    """The rig whose states a cascade changes: the first latent directions of the aligner's."""
    return fit_model_of(
        aligner.model, aligner.anchors, aligner.fit_model.modes[: recipe.modes].astype(np.float32)
    )


def train_cascade(
    aligner: Aligner,
    dataset: Dataset,
    recipe: Recipe,
    *,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> Cascade:
    """A cascade for the weights of an aligner, learned on a dataset's training identities and
    chosen on the held out.

    Its card says where it comes from and what every stage reached. Raises BadDataset for a dataset
    without one of the two, or of another face model; ValueError when too few faces come out well or
    badly to calibrate it.
    """
    fit_model = build_cascade_fit_model(aligner, recipe)
    views = views_of(dataset, fit_model, "train", recipe.views)
    held_out = views_of(dataset, fit_model, "dev", recipe.held_out)
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
        "recipe": asdict(recipe),
        "weights": {name: aligner.card.get(name) for name in ("dataset", "steps")},
    }
    cascade = replace(cascade, card=card)
    return (
        calibrated(aligner, cascade, dataset, recipe.calibration) if recipe.calibration else cascade
    )


def calibrated(aligner: Aligner, cascade: Cascade, dataset: Dataset, views: int) -> Cascade:
    """The cascade with a calibration of its own, and what it is worth in its card.

    Fits of a cascade agree less with single pixels than fits to their votes do, whether they are
    right or wrong.
    """
    fitted = CascadeAligner(
        aligner.net, aligner.anchors, aligner.model, cascade=cascade, config=aligner.config
    )
    calibration, (trust,) = calibrate(fitted, dataset, views=views)
    return replace(
        cascade, calibration=calibration, card={**cascade.card, "trust": trust.to_json()}
    )


def _enter(
    fit_model: FitModel, config: AlignConfig, views: Views, rng: np.random.Generator
) -> Pupils:
    """Faces at the start of a cascade, in boxes as a detector might give them."""
    boxes = [missed(Box.around(truth), rng) for truth in views.landmarks]
    return Pupils(
        views, *start_of(fit_model, [Detection(box) for box in boxes], config.margin, config.crop)
    )


def _sift_components(fit_model: FitModel, pupils: Pupils, points: Ints, recipe: Recipe) -> Floats:
    """(128, D) float32 principal components of SIFT descriptors at the start."""
    some = np.arange(min(200, len(pupils.views.images)))
    pixels = np.stack([pupils.crops.cut(pupils.views.images[i], i) for i in range(len(some))])
    crops, state = pupils.crops[some], pupils.state[some]
    places = crops.crop_from_photo(project(state, points_of(fit_model, points, state)))
    seen = describe_sift(pixels, places, recipe.extent)
    _, vectors = np.linalg.eigh(np.cov(seen.reshape(-1, 128).T))
    return np.ascontiguousarray(vectors[:, ::-1][:, : recipe.components], dtype=np.float32)


def _learn_stage(
    net: Network,
    fit_model: FitModel,
    pupils: Pupils,
    exam: Pupils,
    points: Ints,
    components: Floats | None,
    recipe: Recipe,
    *,
    first: bool,
) -> tuple[Stage, FaceState, FaceState]:
    """One stage, and where it takes those who learn and those who are examined."""
    (seen, visible), (exam_seen, exam_visible) = (
        look(
            fit_model,
            net,
            some.views.images,
            some.crops,
            some.state,
            points=points,
            extent=recipe.extent,
            components=components,
        )
        for some in (pupils, exam)
    )
    mean = (seen * visible[..., None]).sum(0) / np.maximum(visible.sum(0), 1.0)[:, None]
    rows, exam_rows = (
        np.asarray((s - mean) * v[..., None], np.float32).reshape(len(s), -1)
        for s, v in ((seen, visible), (exam_seen, exam_visible))
    )
    unit = fit_model.unit(pupils.state)
    targets = change_between(pupils.state, pupils.views.truth, pupils.crops.angle, unit)
    yaw, exam_yaw = (yaw_in_crop(some.state, some.crops.angle) for some in (pupils, exam))
    edges = (-np.inf, *TURNS, np.inf)
    turns = (
        [(-np.inf, np.inf)] if first else [(edges[i], edges[i + 1]) for i in range(len(edges) - 1)]
    )
    which, exam_which = (np.zeros(len(y), int) if first else turn_of(y) for y in (yaw, exam_yaw))
    fold = pupils.views.subject % FOLDS
    change, maps = np.zeros(targets.shape), []
    for i, (low, high) in enumerate(turns):
        near = (yaw > low - OVERLAP) & (yaw < high + OVERLAP)
        if near.sum() < FEWEST:
            near = np.ones(len(yaw), bool)  # too few are turned so: the map of all faces must do
        penalty, found = _best(
            fit_model, exam, exam_rows, exam_which == i, rows[near], targets[near]
        )
        maps.append(found)
        for part in range(FOLDS):
            others, moves = near & (fold != part), (which == i) & (fold == part)
            if others.any() and moves.any():
                ((weight, offset),) = ridge(
                    rows[others], targets[others].astype(np.float32), [penalty]
                )
                change[moves] = rows[moves] @ weight + offset
    weight, offset = (np.stack(part).astype(np.float32) for part in zip(*maps, strict=True))
    stage = Stage(mean.astype(np.float32), weight, offset)
    return (
        stage,
        changed(pupils.state, change, pupils.crops.angle, unit),
        changed(
            exam.state,
            stage.change(exam_rows, exam_yaw),
            exam.crops.angle,
            fit_model.unit(exam.state),
        ),
    )


def _best(
    fit_model: FitModel,
    exam: Pupils,
    exam_rows: Floats,
    those: Bools,
    rows: Floats,
    targets: Floats,
) -> tuple[float, tuple[Floats, Floats]]:
    """The penalty whose map takes ``those`` held-out faces nearest to the truth, and the map."""
    maps = ridge(rows, targets.astype(np.float32), PENALTIES)
    if not those.any():
        return PENALTIES[1], maps[1]
    errors = []
    for weight, offset in maps:
        state, angle = exam.state[those], exam.crops.angle[those]
        found = changed(state, exam_rows[those] @ weight + offset, angle, fit_model.unit(state))
        errors.append(float(exam.error(fit_model, found, those).mean()))
    best = int(np.argmin(errors))
    return PENALTIES[best], maps[best]
