"""Points of one photo, found in another: what processes send each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dff.face.arrays import Array, Bool, Bools, Float

NO_POINTS = "there is nothing to match: give points, landmarks or vertices"


@dataclass(frozen=True, eq=False)
class FoundPoints:
    """N points of one photo, found in another.

    Pixels are of the whole photos, with the first pixel's centre at (0.5, 0.5).
    """

    names: tuple[str, ...]  # of each point: of the landmark, the vertex, or its pixels
    source: Float[Array, "points 2"]  # pixels of the first photo
    # pixels of the second photo; NaN for points that are not on a face. Of a point that is not
    # visible: where the fitted mesh has it, behind what hides it
    px: Float[Array, "points 2"]
    # that the second photo shows the point, and the match lies within 5 % of the face's box of it
    probability: Float[Array, " points"]
    visibility: Float[Array, " points"]  # probability that the second photo shows the point
    on_face: Bool[Array, " points"]  # the first photo shows a face there

    @property
    def visible(self) -> Bools:
        """(N,) whether the second photo more likely shows the point than not."""
        return np.asarray(self.on_face & (self.visibility > 0.5))

    @property
    def status(self) -> Sequence[str]:
        """Of each point: "visible", "not visible" or "not on a face"."""
        return [
            "not on a face" if not on_face else "visible" if visible else "not visible"
            for on_face, visible in zip(self.on_face, self.visible, strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, pixels rounded to a hundredth; x and y are null off the face."""
        return {
            "points": [
                {
                    "name": name,
                    "source": [round(float(v), 2) for v in self.source[i]],
                    "x": round(float(self.px[i, 0]), 2) if self.on_face[i] else None,
                    "y": round(float(self.px[i, 1]), 2) if self.on_face[i] else None,
                    "probability": round(float(self.probability[i]), 3),
                    "visible": bool(self.visible[i]),
                    "visibility": round(float(self.visibility[i]), 3),
                    "status": self.status[i],
                }
                for i, name in enumerate(self.names)
            ]
        }

    @staticmethod
    def from_json(answer: Mapping[str, Any]) -> FoundPoints:
        """The points that ``to_json`` wrote.

        Raises KeyError, TypeError or ValueError for another object.
        """
        points = answer["points"]
        px = [[point["x"], point["y"]] for point in points]
        return FoundPoints(
            names=tuple(point["name"] for point in points),
            source=np.array([point["source"] for point in points], dtype=np.float64).reshape(-1, 2),
            px=np.array(px, dtype=np.float64).reshape(-1, 2),  # None becomes NaN
            probability=np.array([point["probability"] for point in points], dtype=np.float64),
            visibility=np.array([point["visibility"] for point in points], dtype=np.float64),
            on_face=np.array([point["x"] is not None for point in points], dtype=bool),
        )
