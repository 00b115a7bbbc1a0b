"""Learning the correction of expressions on rendered views, whose activations are known.

Every view is fitted from a box with the errors of a detector. After each pass the descriptors at
the landmarks and about the eyes are recorded, with the fitted and the true activations. Two small
networks of one hidden layer are trained: one for the eyes, one for the other units. Their loss is
the error of the activations and that of the landmarks, since an activation that is corrected alone
may move the mesh away from the face. On people of their own both errors must fall, or there is no
correction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dff.aligner.align import Aligner
from dff.aligner.config import VisibilityConfig
from dff.aligner.evaluation.view_fits import fit_views
from dff.aligner.fitting.batch import join_rows
from dff.aligner.fitting.correction import center_features
from dff.aligner.fitting.expressions import (
    mirror_units,
    read_expressions,
    read_face_descriptors,
)
from dff.aligner.fitting.fit_model import FitModel, FitState
from dff.aligner.fitting.fitters import DenseFitter
from dff.aligner.fitting.observation import Observation
from dff.aligner.fitting.visibility import Visibility
from dff.face.arrays import Array, Bool, Bools, Float, Floats, Int, Ints
from dff.face.errors import BadDataset
from dff.face.model.landmarks import nme_box
from dff.face.model.morphable import MorphableModel
from dff.face.solve.expression_correction import ExpressionCorrection
from dff.infra.datasets.dataset import Dataset
from dff.infra.datasets.split import Split

EYE_UNITS = ("eyeBlink", "eyeSquint", "eyeWide")
"""Units that move lids, without their side."""

MILLIMETRES = 1000.0  # of a metre


@dataclass(frozen=True)
class HiddenLayerConfig:
    """A network of one hidden layer, and its training."""

    width: int
    epochs: int
    # in the loss, beside the mean square of an activation's error
    absolute: float  # of its mean absolute error: most activations are zero
    landmarks: float  # of the landmarks' mean square error, mm²


@dataclass(frozen=True)
class ExpressionCorrectionConfig:
    """The training of expression corrections. Raises ValueError for counts that make no sense."""

    views: int = 12_000  # at most
    fewest: int = 1000  # views, below which a network would overfit
    folds: int = 5  # one in ``folds`` identities is held out to measure the errors
    worst: float = 0.12  # ``nme_box`` beyond which a fit failed, and tells nothing
    # chosen on rendered views and, for the eyes, on photos of 300-W
    eyes: HiddenLayerConfig = HiddenLayerConfig(32, 8, 5.0, 0.02)
    others: HiddenLayerConfig = HiddenLayerConfig(64, 5, 0.3, 0.01)
    batch: int = 256
    rate: float = 3e-3
    decay: float = 0.05
    dropout: float = 0.2  # of the features
    gain: float = 3.0  # of the features, whose standard deviation is about 0.15
    farthest: float = 15.0  # mm: errors of landmarks count as no larger
    # of the predicted changes of units other than the eyes': photos differ from rendered views
    # (chosen on 300-W's held-out photos, and those of AFLW2000-3D and AFLW)
    strength: float = 0.6

    def __post_init__(self) -> None:
        if min(self.views, self.fewest, self.batch) < 1 or self.folds < 2:
            raise ValueError(f"ExpressionCorrectionConfig wants positive counts: {self}")


@dataclass(frozen=True)
class ExpressionReadings:
    """N fits of rendered views after a pass, of mirrored faces where they are mirrored."""

    seen: Float[Array, "fits points channels"]  # descriptors, float16
    visible: Float[Array, "fits points"]  # what counts of them
    fitted: Float[Array, "fits expressions"]
    true: Float[Array, "fits expressions"]
    # not of mirrored faces:
    away: Float[Array, "fits 68 2"]  # mm right and down, from fitted landmarks to the true ones
    axes: Float[Array, "fits 2 3"]  # cam_from_head, right and down
    error: Float[Array, " fits"]  # ``nme_box``
    mirrored: Bool[Array, " fits"]
    person: Int[Array, " fits"]


@dataclass(frozen=True)
class LearnedExpressions:
    """A correction of expressions, and its errors on people that it was not learned from."""

    correction: ExpressionCorrection | None  # None: it does not lower both errors
    before: ExpressionErrors
    after: ExpressionErrors


@dataclass(frozen=True)
class ExpressionErrors:
    """Mean errors of fits."""

    absolute: float  # of activations
    square: float  # root mean square, of activations
    landmarks: float  # mm

    def below(self, other: ExpressionErrors) -> bool:
        """Whether all errors are below those of ``other``."""
        return (
            self.absolute < other.absolute
            and self.square < other.square
            and self.landmarks < other.landmarks
        )

    def __str__(self) -> str:
        return (
            f"activations {self.absolute:.3f}, root mean square {self.square:.3f}, "
            f"landmarks {self.landmarks:.2f} mm"
        )


@dataclass
class _DescriptorReader:
    """A ``Refiner`` that moves nothing, and records what a correction reads after each pass."""

    fit_model: FitModel
    visibility: VisibilityConfig
    found: list[tuple[Floats, Floats, FitState, bool]] = field(default_factory=list)

    def refine(
        self, observation: Observation, state: FitState, visibility: Visibility, *, mirrored: bool
    ) -> Floats:
        seen, visible = read_face_descriptors(
            self.fit_model, self.visibility, observation, state, visibility, mirrored=mirrored
        )
        self.found.append((seen.astype(np.float16), visible, state, mirrored))
        return np.zeros((len(seen), 68, 2))


def learn_expression_correction(
    aligner: Aligner,
    dataset: Dataset,
    *,
    split: Split | None,
    config: ExpressionCorrectionConfig | None = None,
    watch: Callable[[int], object] = lambda views: None,
) -> LearnedExpressions:
    """The correction for the dense fits of an aligner.

    From views of a ``split``: "dev", or None for all where the dataset was not trained on.
    ``watch`` is told the number of views after each. Raises BadDataset when there are too few.
    """
    config = config or ExpressionCorrectionConfig()
    readings = read_expressions_of_views(aligner, dataset, split=split, config=config, watch=watch)
    return fit_expression_correction(aligner.model, readings, config)


def read_expressions_of_views(
    aligner: Aligner,
    dataset: Dataset,
    *,
    split: Split | None,
    config: ExpressionCorrectionConfig,
    watch: Callable[[int], object] = lambda views: None,
) -> ExpressionReadings:
    """The fits of a dataset's views after each pass. Raises BadDataset when they are too few."""
    model = aligner.model
    fitter = DenseFitter(
        aligner.net, aligner.anchors, model, aligner.config, aligner.fit_correction
    )
    fit_model, mirror = fitter.fit_model, mirror_units(model.expression_names)
    recorder = fitter.refiner = _DescriptorReader(fit_model, aligner.config.visibility)
    out: list[ExpressionReadings] = []
    for row, person in fit_views(
        fitter,
        dataset,
        most=config.views,
        fewest=config.fewest,
        split=split,
        purpose="the correction of expressions",
        watch=watch,
    ):
        truth = row.landmarks_3d.astype(np.float64)
        true = row.coefficients(model).expression[None]
        for seen, visible, state, mirrored in recorder.found:
            units = mirror if mirrored else slice(None)
            landmarks = fit_model.landmarks(state)
            error = nme_box(landmarks[0], truth)
            if error > config.worst:
                continue
            one = ExpressionReadings(
                seen,
                visible,
                read_expressions(fit_model, state)[:, units],
                true[:, units],
                (truth - landmarks) / state.scale[:, None, None] * MILLIMETRES,
                state.rotation[:, :2],
                np.array([error]),
                np.array([mirrored]),
                np.array([person]),
            )
            out.append(one)
        recorder.found.clear()
    if not out:
        raise BadDataset(f"no view of {dataset.storage.uri} could be fitted")
    return join_rows(out)


def fit_expression_correction(
    model: MorphableModel, readings: ExpressionReadings, config: ExpressionCorrectionConfig
) -> LearnedExpressions:
    """The map from descriptors and fitted activations to true ones.

    Raises BadDataset for views of a single person.
    """
    judged = readings.person % config.folds == 0
    if judged.all() or not judged.any():
        raise BadDataset("the views show too few people to learn the correction of expressions")
    learned = ~judged
    mean = _mean_descriptors(readings, learned)
    of_eyes = np.array([name.startswith(EYE_UNITS) for name in model.expression_names])
    units = len(of_eyes)
    landmarks = _train(
        model, readings, learned, mean, slice(0, 68), ~of_eyes, config.others, config
    )
    eyes = _train(model, readings, learned, mean, slice(68, None), of_eyes, config.eyes, config)
    width = len(landmarks.hidden_offset)
    weight = np.zeros((width + len(eyes.hidden_offset), units))
    weight[:width, ~of_eyes], weight[width:, of_eyes] = landmarks.weight, eyes.weight
    fitted, offset = np.zeros((units, units)), np.zeros(units)
    fitted[:, ~of_eyes], fitted[:, of_eyes] = landmarks.fitted, eyes.fitted
    offset[~of_eyes], offset[of_eyes] = landmarks.offset, eyes.offset
    strength = np.where(of_eyes, 1.0, config.strength)
    found = ExpressionCorrection(
        mean,
        landmarks.hidden,
        eyes.hidden,
        np.concatenate([landmarks.hidden_offset, eyes.hidden_offset]),
        weight * strength,
        fitted * strength,
        offset * strength,
    )
    none = np.zeros_like(readings.fitted[judged])
    change = found.change(_features(readings, judged, mean), readings.fitted[judged])
    before = measure_errors(model, readings, judged, none)
    after = measure_errors(model, readings, judged, change)
    return LearnedExpressions(found if after.below(before) else None, before, after)


def measure_errors(
    model: MorphableModel, readings: ExpressionReadings, which: Bools, change: Floats
) -> ExpressionErrors:
    """Errors of ``which`` fits after a (N, E) ``change``."""
    left = readings.fitted[which] + change - readings.true[which]
    mirror = mirror_units(model.expression_names)
    plain = np.where(readings.mirrored[which][:, None], change[:, mirror], change)
    moved = np.einsum("fe,enc->fnc", plain, _landmark_motion(model))
    seen = np.einsum("fic,fnc->fni", readings.axes[which], moved)
    away = np.linalg.norm(readings.away[which] - seen, axis=2)
    square = float(np.sqrt((left**2).mean()))
    return ExpressionErrors(float(np.abs(left).mean()), square, float(away.mean()))


def _landmark_motion(model: MorphableModel) -> Floats:
    """(E, 68, 3) millimetres in head of the landmarks for each activation."""
    return np.asarray(model.expression[:, model.landmarks.vertex] * MILLIMETRES, np.float64)


def _mean_descriptors(readings: ExpressionReadings, which: Bools) -> Floats:
    seen, visible = readings.seen[which], readings.visible[which]
    total = np.einsum("fpd,fp->pd", seen.astype(np.float32), visible)
    return np.asarray(total / np.maximum(visible.sum(0)[:, None], 1.0), np.float64)


def _features(readings: ExpressionReadings, which: Bools, mean: Floats) -> Floats:
    """(N, points * channels) float32."""
    seen, visible = (each[which].astype(np.float32) for each in (readings.seen, readings.visible))
    return center_features(seen, visible, mean.astype(np.float32))


@dataclass(frozen=True)
class _Layers:
    """A trained network, of some units."""

    hidden: Floats
    hidden_offset: Floats
    weight: Floats
    fitted: Floats
    offset: Floats


def _train(
    model: MorphableModel,
    readings: ExpressionReadings,
    learned: Bools,
    mean: Floats,
    points: slice,
    of_units: Bools,
    layer: HiddenLayerConfig,
    config: ExpressionCorrectionConfig,
) -> _Layers:
    """The network that reads some ``points`` and corrects the units ``of_units``."""
    channels = mean.shape[1]
    features = _features(readings, learned, mean).reshape(-1, len(mean), channels)[:, points]
    rows = _tensor(features.reshape(len(features), -1) * config.gain)
    del features
    truth = _Truth.of(model, readings, learned, np.flatnonzero(of_units))
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = _Net(rows.shape[1], layer.width, len(of_units), int(of_units.sum()))
        batches = len(rows) // config.batch
        optimiser = torch.optim.AdamW(net.parameters(), config.rate, weight_decay=config.decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, config.rate, total_steps=batches * layer.epochs
        )
        for _ in range(layer.epochs):
            order = torch.randperm(len(rows), generator=generator)
            for batch in order[: batches * config.batch].reshape(batches, -1):
                seen = functional.dropout(rows[batch], config.dropout)
                change = net(seen, truth.fitted[batch])
                loss = truth.loss(batch, change, layer, config.farthest)
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
    return net.layers(config.gain)


class _Net(nn.Module):
    """One hidden layer, and a linear part for the fitted activations."""

    def __init__(self, features: int, width: int, fitted: int, units: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(features, width)
        self.out = nn.Linear(width, units)
        self.fitted = nn.Linear(fitted, units, bias=False)
        nn.init.zeros_(self.fitted.weight)

    def forward(self, seen: Tensor, fitted: Tensor) -> Tensor:
        """(B, units) change."""
        out: Tensor = self.out(functional.relu(self.hidden(seen))) + self.fitted(fitted)
        return out

    def layers(self, gain: float) -> _Layers:
        """The weights, for features that are not multiplied by ``gain``."""

        def table(values: Tensor) -> Floats:
            return np.asarray(values.detach().double().numpy().T)

        return _Layers(
            table(self.hidden.weight) * gain,
            table(self.hidden.bias),
            table(self.out.weight),
            table(self.fitted.weight),
            table(self.out.bias),
        )


@dataclass(frozen=True)
class _Truth:
    """The targets of the changes of some units."""

    units: Tensor
    fitted: Tensor
    left: Tensor  # (N, units) from the fitted activations to the true ones
    away: Tensor
    axes: Tensor
    mirrored: Tensor
    mirror: Tensor
    motion: Tensor  # (E, 68, 3)

    @staticmethod
    def of(
        model: MorphableModel, readings: ExpressionReadings, which: Bools, units: Ints
    ) -> _Truth:
        fitted, true = readings.fitted[which], readings.true[which]
        return _Truth(
            torch.from_numpy(units),
            _tensor(fitted),
            _tensor((true - fitted)[:, units]),
            _tensor(readings.away[which]),
            _tensor(readings.axes[which]),
            torch.from_numpy(readings.mirrored[which]),
            torch.from_numpy(mirror_units(model.expression_names)),
            _tensor(_landmark_motion(model)),
        )

    def loss(
        self, rows: Tensor, change: Tensor, layer: HiddenLayerConfig, farthest: float
    ) -> Tensor:
        """The loss of a batch's ``change``."""
        left = self.left[rows] - change
        every = torch.zeros(len(rows), len(self.mirror)).index_copy(1, self.units, change)
        every = torch.where(self.mirrored[rows][:, None], every[:, self.mirror], every)
        moved = torch.einsum("fe,enc->fnc", every, self.motion)
        seen = torch.einsum("fic,fnc->fni", self.axes[rows], moved)
        away = (self.away[rows] - seen).clamp(-farthest, farthest)
        return (
            (left**2).mean()
            + layer.absolute * left.abs().mean()
            + layer.landmarks * (away**2).mean()
        )


def _tensor(values: Floats) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))
