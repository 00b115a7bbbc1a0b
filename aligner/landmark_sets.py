"""Sets of landmarks by name: 5, 98 and 478 points beside the 68 of iBUG, and AFLW's 21."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from scipy.special import expit, logit

from dff.aligner.alignment import Alignment
from dff.aligner.eyes import find_irises
from dff.face.arrays import Array, Float, Floats, Ints
from dff.face.model.landmark_offsets import TERMS, UprightPose, pose_terms
from dff.face.model.morphable import MorphableModel

VERTICES_OF = "open-head"
"""The model whose vertices the sets name."""
SIDES = ("right", "left")
LEAST = 0.002  # probability of being visible, below which and above one minus which all are alike


class WrongModel(ValueError):
    """A landmark set of another face model is asked for."""


@dataclass(frozen=True, eq=False)
class PointBias:
    """The bias of people who mark P points, relative to those of a fitted mesh.

    Where they place the points, by the head's pose and shape, and which of them they take for
    visible, by its pose. Raises ValueError for tables that do not fit together.
    """

    # metres right and down in the photo of the upright face: for each of ``pose_terms``, and for
    # each identity, then expression coefficient
    by_pose: Float[Array, "points terms 2"]
    by_shape: Float[Array, "points coefficients 2"]
    # weights of the log odds of the fitted face's visibility, and of each of ``pose_terms``
    visible: Float[Array, "points weights"]
    pose_limit: Float[Array, " 2"]  # degrees: the largest yaw and pitch measured

    def __post_init__(self) -> None:
        count = len(self.by_pose)
        shapes = tuple(table.shape for table in vars(self).values())
        coefficients = self.by_shape.shape[1] if self.by_shape.ndim == 3 else -1
        wanted = ((count, TERMS, 2), (count, coefficients, 2), (count, 1 + TERMS), (2,))
        if shapes != wanted:
            raise ValueError(
                f"PointBias wants (P, {TERMS}, 2), (P, C, 2), (P, {1 + TERMS}) and (2,): {shapes}"
            )
        if not all(np.isfinite(table).all() for table in vars(self).values()):
            raise ValueError("the bias of points holds numbers that are not finite")

    def in_image(self, rotation: Floats, coefficients: Floats) -> Floats:
        """(B, P, 2) metres right and down in the photo.

        For (B, 3, 3) ``cam_from_head`` and the (B, C) coefficients of the faces, identity first.
        """
        pose = UprightPose.of(rotation)
        moved = np.einsum("bt,ptc->bpc", pose_terms(pose, self.pose_limit), self.by_pose)
        moved += np.einsum("bk,pkc->bpc", coefficients, self.by_shape)
        return np.asarray(moved @ pose.upright)

    def visibility(self, shown: Floats, rotation: Floats) -> Floats:
        """(B, P) probabilities that people mark the points.

        (B, P) ``shown``: the visibility of the fitted face. ``rotation``: as of ``in_image``.
        """
        terms = pose_terms(UprightPose.of(rotation), self.pose_limit)
        return np.asarray(
            expit(self.visible[:, 0] * log_odds(shown) + terms @ self.visible[:, 1:].T)
        )

    @staticmethod
    def from_json(table: dict[str, Any]) -> PointBias:
        """Raises ValueError for bad tables, KeyError for missing ones."""
        names = (one.name for one in fields(PointBias))
        return PointBias(**{name: np.array(table[name], np.float64) for name in names})

    def to_json(self) -> dict[str, Any]:
        """Plain lists, rounded to a hundredth of a millimetre, a micrometre and four digits."""
        return {
            "by_pose": np.round(self.by_pose, 5).tolist(),
            "by_shape": np.round(self.by_shape, 6).tolist(),
            "visible": np.round(self.visible, 4).tolist(),
            "pose_limit": np.round(self.pose_limit, 2).tolist(),
        }


def log_odds(shown: Floats) -> Floats:
    """The log odds of probabilities that are at least ``LEAST`` and at most one minus it."""
    return np.asarray(logit(np.clip(shown, LEAST, 1.0 - LEAST)))


@dataclass(frozen=True, eq=False)
class LandmarkSet:
    """How the points of a set follow from a fitted face."""

    name: str
    source: str
    means: tuple[tuple[int, tuple[tuple[int, float], ...]], ...]  # point: (landmark, weight), ...
    vertex: dict[int, int]  # of points that are vertices
    iris: dict[int, int]  # 0 right, 1 left, of points that are the centre of an iris
    # landmarks whose vertices on the fitted mesh have the point as their mean
    fitted: dict[int, tuple[int, ...]]
    # landmarks that are visible where the point is: of every point, or of none
    visible_with: dict[int, tuple[int, ...]]
    bias: PointBias | None = None

    def __len__(self) -> int:
        return len(self.means) + len(self.vertex) + len(self.iris) + len(self.fitted)

    def place(self, face: Alignment, model: MorphableModel) -> Floats:
        """(N, 2) pixels; (N, 3) with z towards the viewer where all points are vertices.

        Raises WrongModel for a model whose vertices the set does not name.
        """
        if (self.vertex or self.iris or self.bias) and model.name != VERTICES_OF:
            raise WrongModel(f"the landmark set {self.name!r} is one of {VERTICES_OF}")
        rows: Ints = np.array([*self.vertex.values()], dtype=np.int64)
        if len(rows) == len(self):
            return face.vertices_px[rows]
        out = self.place_on_mesh(face, model)
        for point, weights in self.means:
            out[point] = sum(weight * face.landmarks_2d[k] for k, weight in weights)
        if self.iris:
            out[[*self.iris]] = _project_irises(face, model)[[*self.iris.values()]]
        if self.bias is not None:
            shape = face.coefficients.joined[None]
            moved = self.bias.in_image(face.cam_from_head.rotation[None], shape)[0]
            out += moved * face.camera.scale
        return out

    def place_on_mesh(self, face: Alignment, model: MorphableModel) -> Floats:
        """(N, 2) pixels of the points on the fitted mesh, without bias.

        NaN for points that are elsewhere, and for vertices of another model.
        """
        out = np.full((len(self), 2), np.nan)
        pixels = face.vertices_px[:, :2]
        if model.name == VERTICES_OF:
            out[[*self.vertex]] = pixels[[*self.vertex.values()]]
        for point, landmarks in self.fitted.items():
            out[point] = pixels[model.landmarks.vertex[list(landmarks)]].mean(0)
        return out

    def visibility(self, face: Alignment) -> Floats:
        """(N,) probabilities that the photo shows the points; with a bias, that people mark them.

        For a set that says which landmarks its points are visible with.
        """
        landmarks = (list(self.visible_with[point]) for point in range(len(self)))
        shown = np.array([face.visibility[some].mean() for some in landmarks])
        if self.bias is None:
            return shown
        return self.bias.visibility(shown[None], face.cam_from_head.rotation[None])[0]

    def find_mirror(self, model: MorphableModel) -> Ints:
        """(N,) each point's counterpart on the other side, for a set on the mesh."""
        on_mesh = {point: [vertex] for point, vertex in self.vertex.items()} | {
            point: model.landmarks.vertex[list(some)].tolist()
            for point, some in self.fitted.items()
        }
        number = {frozenset(vertices): point for point, vertices in on_mesh.items()}
        other = [frozenset(model.mirror[on_mesh[point]].tolist()) for point in range(len(self))]
        return np.array([number[vertices] for vertices in other])


@cache
def load_landmark_sets() -> dict[str, LandmarkSet]:
    """Every set by name, from ``data/landmark_sets.toml``."""
    text = _read_data("landmark_sets.toml")
    return {name: _parse_set(name, about) for name, about in tomllib.loads(text).items()}


def _read_data(name: str) -> str:
    return (files("dff.aligner") / "data" / name).read_text("utf-8")


def _parse_set(name: str, about: dict[str, Any]) -> LandmarkSet:
    points = about.get("points", [{"vertex": vertex} for vertex in about.get("vertices", ())])
    numbered = list(enumerate(points))
    fitted = {i: tuple(p["fitted"]) for i, p in numbered if "fitted" in p}
    bias = about.get("bias")
    return LandmarkSet(
        name,
        about["source"],
        tuple((i, tuple((k, w) for k, w in p["mean"])) for i, p in numbered if "mean" in p),
        {i: p["vertex"] for i, p in numbered if "vertex" in p},
        {i: SIDES.index(p["iris"]) for i, p in numbered if "iris" in p},
        fitted,
        {i: tuple(p["visible_with"]) for i, p in numbered if "visible_with" in p} | fitted,
        None if bias is None else PointBias.from_json(json.loads(_read_data(bias))),
    )


def _project_irises(face: Alignment, model: MorphableModel) -> Floats:
    irises = find_irises(face, model)
    assert irises is not None, model.name
    return face.camera.px_from_cam(face.cam_from_head.apply(irises))
