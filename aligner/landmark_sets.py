"""Sets of landmarks by name: 5, 98 and 478 points beside the 68 of iBUG."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from dff.aligner.alignment import Alignment
from dff.aligner.eyes import find_irises
from dff.face.arrays import Floats, Ints
from dff.face.model.morphable import MorphableModel

VERTICES_OF = "open-head"
"""The model whose vertices the sets name."""
SIDES = ("right", "left")


class WrongModel(ValueError):
    """A landmark set of another face model is asked for."""


@dataclass(frozen=True, eq=False)
class LandmarkSet:
    """How the points of a set follow from a fitted face."""

    name: str
    source: str
    means: tuple[tuple[int, tuple[tuple[int, float], ...]], ...]  # point: (landmark, weight), ...
    vertex: dict[int, int]  # of points that are vertices
    iris: dict[int, int]  # 0 right, 1 left, of points that are the centre of an iris

    def __len__(self) -> int:
        return len(self.means) + len(self.vertex) + len(self.iris)

    def place(self, face: Alignment, model: MorphableModel) -> Floats:
        """(N, 2) pixels; (N, 3) with z towards the viewer where all points are vertices.

        Raises WrongModel for a model whose vertices the set does not name.
        """
        if (self.vertex or self.iris) and model.name != VERTICES_OF:
            raise WrongModel(f"the landmark set {self.name!r} is one of {VERTICES_OF}")
        rows: Ints = np.array([*self.vertex.values()], dtype=np.int64)
        if len(rows) == len(self):
            return face.vertices_px[rows]
        out = np.empty((len(self), 2))
        for point, weights in self.means:
            out[point] = sum(weight * face.landmarks_2d[k] for k, weight in weights)
        out[[*self.vertex]] = face.vertices_px[rows, :2]
        if self.iris:
            out[[*self.iris]] = _project_irises(face, model)[[*self.iris.values()]]
        return out


@cache
def load_landmark_sets() -> dict[str, LandmarkSet]:
    """Every set by name, from ``data/landmark_sets.toml``."""
    text = files("dff.aligner").joinpath("data", "landmark_sets.toml").read_text("utf-8")
    return {name: _parse_set(name, about) for name, about in tomllib.loads(text).items()}


def _parse_set(name: str, about: dict[str, Any]) -> LandmarkSet:
    points = about.get("points", [{"vertex": vertex} for vertex in about.get("vertices", ())])
    numbered = list(enumerate(points))
    return LandmarkSet(
        name,
        about["source"],
        tuple((i, tuple((k, w) for k, w in p["mean"])) for i, p in numbered if "mean" in p),
        {i: p["vertex"] for i, p in numbered if "vertex" in p},
        {i: SIDES.index(p["iris"]) for i, p in numbered if "iris" in p},
    )


def _project_irises(face: Alignment, model: MorphableModel) -> Floats:
    irises = find_irises(face, model)
    assert irises is not None, model.name
    return face.camera.px_from_cam(face.cam_from_head.apply(irises))
