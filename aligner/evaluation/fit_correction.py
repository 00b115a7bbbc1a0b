"""Learning the correction of fits on rendered views, whose pose and shape are known.

Every view is fitted from a box with the errors of a detector. After each pass the descriptors at
the landmarks are recorded, with the change from the fit to the nearest true state. A ridge
regression maps one to the other; its penalty is that of least error on identities of their own.
Where no penalty lowers the error, there is no correction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from dff.aligner.align import Aligner
from dff.aligner.config import VisibilityConfig
from dff.aligner.evaluation.true_states import TrueStateConfig, find_true_states
from dff.aligner.evaluation.view_fits import fit_views
from dff.aligner.fitting.batch import join_rows
from dff.aligner.fitting.change import (
    apply_change,
    change_between,
    mirror_change,
)
from dff.aligner.fitting.correction import prepare_features, read_landmark_descriptors
from dff.aligner.fitting.fit_model import FitModel, FitState, build_fit_model
from dff.aligner.fitting.fitters import DenseFitter
from dff.aligner.fitting.observation import Observation
from dff.aligner.fitting.visibility import Visibility
from dff.face.arrays import Array, Bool, Bools, Float, Floats, Int
from dff.face.errors import BadDataset
from dff.face.model.landmarks import nme_box
from dff.face.solve.fit_correction import FitCorrection
from dff.face.solve.least_squares import ridge
from dff.infra.datasets.dataset import Dataset
from dff.infra.datasets.split import Split


@dataclass(frozen=True)
class FitCorrectionConfig:
    """The regression of fit corrections. Raises ValueError for counts that make no sense."""

    views: int = 12_000  # at most
    fewest: int = 1000  # views, below which a map would overfit
    # of the ridge, in mean squares of a feature row: those that are tried
    penalties: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)
    folds: int = 5  # one in ``folds`` identities is held out to choose the penalty
    # of the predicted change that is applied: photos differ from rendered views (chosen on 272
    # photos of AFLW2000-3D and 185 of 300-W)
    strength: float = 0.6
    worst: float = 0.12  # ``nme_box`` beyond which a fit failed, and tells nothing
    true_states: TrueStateConfig = field(default_factory=TrueStateConfig)

    def __post_init__(self) -> None:
        if min(self.views, self.fewest) < 1 or self.folds < 2:
            raise ValueError(f"FitCorrectionConfig wants positive counts: {self}")


@dataclass(frozen=True)
class FitErrors:
    """N fits of rendered views after a pass, and what they miss."""

    seen: Float[Array, "fits 68 channels"]  # descriptors, float16; of mirrored faces where mirrored
    visible: Float[Array, "fits 68"]
    change: Float[Array, "fits changes"]  # to the true states, of mirrored faces where mirrored
    state: FitState
    angle: Float[Array, " fits"]  # radians, of the crops
    mirrored: Bool[Array, " fits"]
    truth: Float[Array, "fits 68 2"]  # landmarks, pixels
    person: Int[Array, " fits"]


class _Recorder:
    """A ``Corrector`` that changes nothing, and records what it could correct."""

    def __init__(self, fit_model: FitModel, visibility: VisibilityConfig) -> None:
        self.fit_model, self.visibility = fit_model, visibility
        self.found: list[tuple[Floats, Floats, FitState, Floats, bool]] = []

    def correct(
        self, observation: Observation, state: FitState, visibility: Visibility, *, mirrored: bool
    ) -> FitState:
        seen, visible = read_landmark_descriptors(
            self.fit_model, self.visibility, observation, state, visibility, mirrored=mirrored
        )
        angle = observation.crops.angle
        self.found.append((seen.astype(np.float16), visible, state, angle, mirrored))
        return state


def learn_fit_correction(
    aligner: Aligner,
    dataset: Dataset,
    *,
    split: Split | None,
    config: FitCorrectionConfig | None = None,
    watch: Callable[[int], object] = lambda views: None,
) -> FitCorrection | None:
    """The correction for the dense fits of an aligner, or None where it would not help.

    From views of a ``split``: "dev", or None for all where the dataset was not trained on.
    ``watch`` is told the number of views after each. Raises BadDataset when there are too few.
    """
    config = config or FitCorrectionConfig()
    fit_model = build_fit_model(aligner.model, aligner.anchors, aligner.config.fit_model)
    errors = measure_fits(aligner, fit_model, dataset, split=split, config=config, watch=watch)
    return fit_correction(fit_model, errors, config)


def measure_fits(
    aligner: Aligner,
    fit_model: FitModel,
    dataset: Dataset,
    *,
    split: Split | None,
    config: FitCorrectionConfig,
    watch: Callable[[int], object] = lambda views: None,
) -> FitErrors:
    """The fits of a dataset's views after each pass. Raises BadDataset when they are too few.

    ``fit_model``: in whose latent directions the changes are.
    """
    fitter = DenseFitter(aligner.net, aligner.anchors, aligner.model, aligner.config)
    recorder = fitter.corrector = _Recorder(fitter.fit_model, aligner.config.visibility)
    out: list[FitErrors] = []
    for row, person in fit_views(
        fitter,
        dataset,
        most=config.views,
        fewest=config.fewest,
        split=split,
        purpose="the correction of fits",
        watch=watch,
    ):
        truth = row.landmarks_3d.astype(np.float64)
        for seen, visible, state, angle, mirrored in recorder.found:
            plain = replace(state, coefficients=state.coefficients[:, : len(fit_model.modes)])
            if nme_box(fit_model.landmarks(plain)[0], truth) > config.worst:
                continue
            true = find_true_states(fit_model, [row], plain, config.true_states)
            change = change_between(plain, true, angle, fit_model.face_size(plain))
            if mirrored:
                change = mirror_change(change, fit_model.mirrored_latents)
            one = FitErrors(
                seen,
                visible,
                change,
                plain,
                angle,
                np.array([mirrored]),
                truth[None],
                np.array([person]),
            )
            out.append(one)
        recorder.found.clear()
    if not out:
        raise BadDataset(f"no view of {dataset.storage.uri} could be fitted")
    return join_rows(out)


def fit_correction(
    fit_model: FitModel, errors: FitErrors, config: FitCorrectionConfig
) -> FitCorrection | None:
    """The ridge regression from the descriptors of fits to their changes; None: it does not help.

    ``fit_model``: in whose latent directions the changes are.
    """
    rows, mean = prepare_features(errors.seen, errors.visible)
    change = errors.change.astype(np.float32)
    part = errors.person % config.folds
    judged = part == 0
    if judged.all() or not judged.any():
        return None

    def error(change: Floats) -> float:
        return _error(fit_model, errors, judged, change)

    maps = ridge(rows[~judged], change[~judged], config.penalties)
    left = [error(np.zeros((judged.sum(), change.shape[1])))]
    left += [error(rows[judged] @ weight + offset) for weight, offset in maps]
    best = int(np.argmin(left))
    if best == 0:
        return None
    ((weight, offset),) = ridge(rows, change, [config.penalties[best - 1]])
    return FitCorrection(
        mean, weight * config.strength, offset * config.strength, fit_model.modes.copy()
    )


def _error(fit_model: FitModel, errors: FitErrors, which: Bools, change: Floats) -> float:
    """Mean ``nme_box``, a fraction, of ``which`` fits after a predicted change."""
    turned = mirror_change(change, fit_model.mirrored_latents)
    change = np.where(errors.mirrored[which][:, None], turned, change)
    state = errors.state[which]
    moved = apply_change(state, change, errors.angle[which], fit_model.face_size(state))
    found, truth = fit_model.landmarks(moved), errors.truth[which]
    return float(np.mean([nme_box(*pair) for pair in zip(found, truth, strict=True)]))
