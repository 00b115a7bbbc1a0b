"""A face as plain lists and numbers: the alignment, its camera, and what else is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dff.aligner.alignment import Alignment
from dff.aligner.eyes import find_irises
from dff.aligner.intrinsics import Intrinsics, find_quaternion
from dff.aligner.landmark_sets import SIDES, load_landmark_sets
from dff.face.arrays import Floats
from dff.face.model.morphable import MorphableModel

IRISES, BLENDSHAPES = "irises", "blendshapes"
NEUTRAL = "_neutral"
"""MediaPipe's first blendshape, which it never reports either."""
NOT_MEDIAPIPE = ("tongueOut",)
"""ARKit's expressions that MediaPipe does not report."""


@dataclass(frozen=True)
class FaceDescriber:
    """Describes faces of a model.

    Raises ValueError for names in ``extras`` that are neither landmark sets, "irises"
    nor "blendshapes".
    """

    model: MorphableModel
    extras: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        check_extras(self.extras)

    def describe(
        self, face: Alignment, camera: Intrinsics, *, trace: bool = False, mesh: bool = False
    ) -> dict[str, Any]:
        """``Alignment.to_json`` with ``intrinsics``, ``head_in_camera`` and the extras.

        ``landmark_visibility`` of the landmark sets for which it was measured.

        Raises WrongModel for landmark sets of another face model.
        """
        placed = camera.place_head(face.vertices, face.camera, face.cam_from_head)
        out = face.to_json(trace=trace, mesh=mesh) | {
            "intrinsics": {
                "focal": round(camera.focal, 2),
                "centre": _round(camera.centre, 2),
                "source": camera.source,
            },
            "head_in_camera": {
                "rotation": _round(placed.rotation, 6),
                "quaternion": _round(find_quaternion(placed.rotation), 6),
                "translation": _round(placed.translation, 5),
            },
        }
        known = load_landmark_sets()
        if sets := [known[name] for name in self.extras if name in known]:
            out["landmarks"] = {one.name: _round(one.place(face, self.model), 2) for one in sets}
            shown = {one.name: one.visibility(face) for one in sets if one.visible_with}
            if shown:
                out["landmark_visibility"] = {name: _round(p, 3) for name, p in shown.items()}
        if IRISES in self.extras:
            out["irises"] = self._describe_irises(face)
        if BLENDSHAPES in self.extras:
            out["blendshapes"] = describe_blendshapes(face, self.model)
        return out

    def _describe_irises(self, face: Alignment) -> dict[str, Any] | None:
        irises = find_irises(face, self.model)
        if irises is None:
            return None
        px = face.camera.px_from_cam(face.cam_from_head.apply(irises))
        return {side: _round(px[i], 2) for i, side in enumerate(SIDES)}


def check_extras(extras: Sequence[str]) -> None:
    """Raise ValueError for a name that is not known."""
    known = known_extras()
    for name in extras:
        if name not in known:
            raise ValueError(f"no landmarks are called {name!r}: there are {', '.join(known)}")


def known_extras() -> list[str]:
    """The names of what can be added to an answer."""
    return [*load_landmark_sets(), IRISES, BLENDSHAPES]


def parse_extras(text: str | None) -> tuple[str, ...]:
    """Names from a list with commas; each once. Raises ValueError for commas without a name."""
    names = tuple(dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip()))
    if text and not names:
        raise ValueError(f"{text!r} names nothing: there are {', '.join(known_extras())}")
    return names


def describe_blendshapes(face: Alignment, model: MorphableModel) -> dict[str, float]:
    """Activations from 0 to 1 by MediaPipe's 52 names, which but for one are ARKit's."""
    values = np.clip(face.coefficients.expression, 0.0, 1.0)
    named = dict(zip(model.expression_names, values.tolist(), strict=False))
    return {NEUTRAL: 0.0} | {
        name: round(value, 4) for name, value in named.items() if name not in NOT_MEDIAPIPE
    }


def _round(values: Floats | Sequence[float], digits: int) -> Any:
    return np.round(np.asarray(values, dtype=np.float64), digits).tolist()
