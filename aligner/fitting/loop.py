"""The loop: passes of a fitter over the photos of B faces, until each face is done.

A pass observes the photos at the current fits, computes residuals and Jacobians, and takes a step
that lowers the cost. A face leaves the loop when it stops early, when too few of its pixels are
matched, or after the last pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dff.aligner.alignment import Alignment
from dff.aligner.detection import Detection, Search
from dff.aligner.fitting.batch import replace_rows
from dff.aligner.fitting.face_fit import FaceFit
from dff.aligner.fitting.fit_model import FitModel
from dff.face.arrays import Array, Bools, Bytes, Float, Floats, Int


class Fitter(Protocol):
    """A method of fitting a face model to photos."""

    passes: int  # largest number of passes

    @property
    def fit_model(self) -> FitModel:
        """The fit model whose states are fitted."""
        ...

    def step(self, number: int, images: Sequence[Bytes], before: FaceFit) -> Search[FaceFit]:
        """The fits of B faces after pass ``number`` over their ``images``; some may be lost.

        Yields between its parts.
        """
        ...

    def early_stop(self, number: int, motion: Floats) -> Bools:
        """(B,) whether faces are done after pass ``number`` moved their landmarks by ``motion``."""
        ...


class FaceFitter(Fitter, Protocol):
    """A fitter of single faces."""

    def begin(self, detections: Sequence[Detection]) -> FaceFit:
        """The initial fits of detected faces."""
        ...

    def resume(self, faces: Sequence[Alignment]) -> FaceFit:
        """The initial fits of faces that were aligned in a neighbouring frame."""
        ...


@dataclass(frozen=True)
class Pass:
    """The result of one pass."""

    faces: Int[Array, " stepped"]  # rows of the faces that were stepped
    fit: FaceFit  # of these
    # (stepped,) of their landmarks, fraction of the face size; infinite for the first of a face
    motion: Float[Array, " stepped"]
    all_faces: FaceFit  # the current fits of all B faces


def is_last_pass(fitter: Fitter, number: int, motion: Floats) -> bool:
    """Whether some of the faces of pass ``number``, which moved by ``motion``, take no further one.

    (B,) ``motion``: as ``Pass.motion``.
    """
    return number + 1 == fitter.passes or bool(fitter.early_stop(number, motion).any())


def fit_passes(
    fitter: Fitter,
    images: Sequence[Bytes],
    fit: FaceFit,
    *,
    give_up: Callable[[Pass], Bools] | None = None,
) -> Iterator[Pass | None]:
    """Fit B faces, each in its image; yields every pass, and None between the parts of one.

    ``give_up``: whether each of the faces of a pass takes no further one.
    """
    active = np.arange(len(images))
    for number in range(fitter.passes):
        everyone = len(active) == len(images)
        before = fit if everyone else fit[active]
        after = yield from fitter.step(number, [images[i] for i in active.tolist()], before)
        fit = after if everyone else replace_rows(fit, active, after)
        stepped = ~after.lost
        motion = np.where(before.detected, np.inf, after.motion)[stepped]
        done = Pass(active[stepped], after if stepped.all() else after[stepped], motion, fit)
        yield done
        stopped = fitter.early_stop(number, motion)
        if give_up is not None and number + 1 < fitter.passes and not stopped.all():
            stopped |= give_up(done)
        active = active[stepped][~stopped]
        if len(active) == 0:
            return


def last_fit(fitter: Fitter, images: Sequence[Bytes], fit: FaceFit) -> Search[FaceFit]:
    """The fits of B faces after all passes; yields between the parts of these."""
    for done in fit_passes(fitter, images, fit):
        if done is not None:
            fit = done.all_faces
        yield
    return fit
