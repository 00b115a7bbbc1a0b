"""The paper's cascade: learned linear regressors on descriptors at projected points of the face.

Each stage reads the descriptors at those projected points of the model that are visible on the
fitted mesh. A linear map of them gives the change of pose and shape. The descriptor is the Deep
Face Feature or, as the baseline, SIFT at the same points of the same crops. Sources: Jiang, Zhang,
Deng, Guo, Liu, "Deep Face Feature for Face Alignment" (arXiv 1708.02721); cascades on SIFT: Xiong
and De la Torre 2013.

From the second stage on there are three maps, chosen by the yaw estimated so far, because the
visible points depend on the yaw.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from dff.aligner.confidence import Calibration
from dff.face.arrays import Array, Float, Floats, Integer, Ints
from dff.face.descriptor import Anchors
from dff.face.solve.gauss_newton import POSE

Kind = Literal["dff", "sift"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Files of cascades hold one map for each range, so these values are part of their format.
TURNS = (-25.0, 25.0)  # degrees of yaw in the crop between the maps of a stage


@dataclass(frozen=True)
class Stage:
    """The maps of one stage from descriptors to the change of a face, all float32.

    The change is in the columns of ``dff.aligner.fitting.change.change_between``. Raises ValueError
    when shapes disagree.
    """

    mean: Float[Array, "points channels"]  # descriptor of each point where it is visible
    weight: Float[Array, "maps rows columns"]  # maps: 1 or len(TURNS) + 1; rows: points * channels
    offset: Float[Array, "maps columns"]  # columns: 6 + modes

    def __post_init__(self) -> None:
        maps, rows, changes = self.weight.shape if self.weight.ndim == 3 else (0, 0, 0)
        if maps not in (1, len(TURNS) + 1) or rows != self.mean.size or changes <= POSE:
            raise ValueError(
                f"a stage with weights {self.weight.shape} for means {self.mean.shape}"
            )
        if self.mean.ndim != 2 or self.offset.shape != (maps, changes):
            raise ValueError(
                f"a stage with means {self.mean.shape} and offsets {self.offset.shape}"
            )
        if not all(np.isfinite(part).all() for part in (self.mean, self.weight, self.offset)):
            raise ValueError("a stage with numbers that are not finite")

    def rows(self, seen: Floats, visible: Floats) -> Floats:
        """(B, M * D) input of the maps from (B, M, D) descriptors: zero where points are hidden."""
        return np.asarray((seen - self.mean) * visible[..., None]).reshape(len(seen), -1)

    def change(self, rows: Floats, yaw: Floats) -> Floats:
        """(B, 6 + P) for (B,) degrees of yaw in the crop."""
        which = choose_map(yaw) if len(self.weight) > 1 else np.zeros(len(rows), int)
        out = np.zeros((len(rows), self.offset.shape[1]))
        for i in np.unique(which):
            out[which == i] = rows[which == i] @ self.weight[i] + self.offset[i]
        return out


@dataclass(frozen=True)
class Cascade:
    """Stages and the descriptors that they read. Raises ValueError when they disagree."""

    kind: Kind
    # rows of the fit model's landmarks and, counted on from them, its anchors
    points: Integer[Array, " points"]
    # (P, K + E) float32, latent directions of the fit model: eigenvectors differ between machines
    directions: Float[Array, "modes coefficients"]
    extent: float  # crop pixels that a SIFT descriptor covers; not used by the network
    components: Floats | None  # (128, D) float32, of SIFT descriptors; None for DFF
    stages: tuple[Stage, ...]
    anchors: str  # ``fingerprint`` of the anchors that it was learned with
    card: dict[str, Any]  # provenance
    calibration: Calibration | None = None  # of its fits; None: that of dense fits, which differ

    def __post_init__(self) -> None:
        if (
            self.kind not in KINDS
            or not self.stages
            or self.points.ndim != 1
            or (self.points < 0).any()
        ):
            raise ValueError(
                f"a cascade of kind {self.kind!r} with {len(self.stages)} stages, "
                f"points {self.points}"
            )
        if (self.components is None) != (self.kind == "dff") or not 1 <= self.extent <= 256:
            raise ValueError(
                f"a cascade of kind {self.kind!r} with extent {self.extent} "
                "and the other's components"
            )
        if self.directions.ndim != 2 or not np.isfinite(self.directions).all():
            raise ValueError(f"a cascade with directions {self.directions.shape}, or not finite")
        shapes = {(stage.mean.shape, stage.offset.shape[1]) for stage in self.stages}
        if len(shapes) != 1 or len(self.stages[0].mean) != len(self.points):
            raise ValueError(f"stages of {sorted(shapes)} for {len(self.points)} points")
        if self.stages[0].offset.shape[1] != POSE + len(self.directions):
            raise ValueError(f"stages of {sorted(shapes)} for {len(self.directions)} directions")
        if self.components is not None and self.components.shape != (
            128,
            self.stages[0].mean.shape[1],
        ):
            raise ValueError(
                f"components {self.components.shape} for means {self.stages[0].mean.shape}"
            )


def fingerprint(anchors: Anchors) -> str:
    """A hash that identifies anchors and, through their descriptors, their network."""
    both = anchors.vertex.astype("<i4").tobytes() + anchors.descriptor.astype("<f4").tobytes()
    return hashlib.sha256(both).hexdigest()


def choose_map(yaw: Floats) -> Ints:
    """(B,) index of the map of a stage for (B,) degrees of yaw."""
    return np.searchsorted(TURNS, yaw, side="right")
