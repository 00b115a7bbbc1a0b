"""The fits of B faces: the record that a fitter's passes return."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dff.aligner.config import AlignConfig
from dff.aligner.fitting.batch import take_rows
from dff.aligner.fitting.correspondence import Matches
from dff.aligner.fitting.crop import Crops
from dff.aligner.fitting.fit_model import FitModel, FitState
from dff.aligner.fitting.visibility import Visibility
from dff.face.arrays import Array, Bool, Bools, Float, Floats, Ints


@dataclass(frozen=True)
class FaceFit:
    """The current fits of B faces, and what the last forward pass showed of them."""

    state: FitState
    crops: Crops  # of the last forward pass; before it, those of the first
    landmarks: Float[Array, "faces 68 2"]  # pixels
    visibility: Visibility
    matches: Matches
    px: Float[Array, "faces pixels 2"]  # pixels of the photo that were matched
    # probability that a pixel shows the face and matches a point that the fit puts close to it
    agreement: Float[Array, "faces pixels"]
    probes: Float[Array, "faces 68 4"]  # what the network shows at the landmarks
    # mean distance of the agreeing matches, fraction of the face size; NaN: nothing observed
    residual: Float[Array, " faces"]
    motion: Float[Array, " faces"]  # of the landmarks in the last pass, fraction of the face size
    detected: Bool[Array, " faces"]  # the state is that of a detection, not yet a fit
    lost: Bool[Array, " faces"]  # too few pixels of a face were seen
    trust: Float[Array, " faces"]  # confidence of the fit that this one begins from, 0 to 1
    # metres right and down in the photo of the upright face: of landmarks from those of the mesh
    refinement: Float[Array, "faces 68 2"]
    # activations: what the descriptors add to the expressions of the states
    expression: Float[Array, "faces expressions"]

    @staticmethod
    def begin(
        fit_model: FitModel,
        state: FitState,
        crops: Crops,
        config: AlignConfig,
        *,
        detected: bool,
        trust: Floats | float = 1.0,
    ) -> FaceFit:
        """The record before the first pass, without observations."""
        b, pixels = len(state.scale), config.observation.pixels
        anchors = len(fit_model.anchor_mean)
        return FaceFit(
            state=state,
            crops=crops,
            landmarks=fit_model.landmarks(state),
            visibility=Visibility.unknown(b, anchors, config.visibility),
            matches=Matches.none(b, pixels, config.observation.candidates),
            px=np.zeros((b, pixels, 2)),
            agreement=np.zeros((b, pixels)),
            probes=np.zeros((b, 68, 4)),
            residual=np.zeros(b),
            motion=np.full(b, np.inf),
            detected=np.full(b, detected),
            lost=np.zeros(b, dtype=bool),
            trust=np.full(b, trust, np.float64),
            refinement=np.zeros((b, 68, 2)),
            expression=np.zeros((b, len(fit_model.model.expression))),
        )

    def __getitem__(self, rows: Bools | Ints) -> FaceFit:
        return take_rows(self, rows)

    @property
    def pitch(self) -> Floats:
        """(B,) pixels of the photo between neighbouring matched pixels."""
        return np.asarray(self.matches.pitch * (self.crops.side / self.crops.size))
