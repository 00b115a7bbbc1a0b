"""Identities of ICT-FaceKit, a model of real scans, on the topology of the open head.

The mean scan is registered in two steps. First the open head itself is fitted to it, with its
identities and residual deformations: landmarks hold it, and its points glide on the surface of the
scan. Then non-rigid closest points take away what is left. ICT-FaceKit's jaw landmarks are left
out: they lie on the contour of a frontal view, 13 to 23 mm in front of the open head's.
Displacements are carried to the vertices that have a reliable counterpart. Ears, the inside of the
mouth, eyes and teeth follow smoothly.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree

from dff.face.arrays import Bools, Floats, Ints
from dff.face.geometry.mesh import SurfacePoints, triangle_normals, vertex_normals
from dff.face.io.assets import load_model
from dff.face.io.registration import (
    Nearest,
    Similarity,
    Surface,
    graph_laplacian,
    part,
    similarity,
)
from dff.face.model.landmarks import EYES, INDEX, INNER, MOUTH_CORNERS
from dff.face.model.morphable import MorphableModel

SKIN = ("face", "lips", "brows", "ears", "neck", "scalp")
FACE = ("face", "lips", "brows")
# Landmarks whose places both models agree on. Brows and the bridge of the nose differ.
PAIRED = (
    *range(EYES.start, EYES.stop),
    *MOUTH_CORNERS,
    *(
        INDEX[name]
        for name in (
            "lip_upper_middle",
            "lip_lower_middle",
            "lip_upper_right_peak",
            "lip_upper_left_peak",
            "lip_upper_inner_right",
            "lip_upper_inner_middle",
            "lip_upper_inner_left",
            "lip_lower_inner_left",
            "lip_lower_inner_middle",
            "lip_lower_inner_right",
            "nose_tip",
            "nose_base",
            "nostril_right_outer",
            "nostril_left_outer",
        )
    ),
)
# Of the fit: metres of noise across the surface, and how far a counterpart may lie
SCHEDULE = (
    (0.004, 0.03),
    (0.003, 0.02),
    (0.002, 0.02),
    (0.002, 0.015),
    (0.0015, 0.012),
    (0.0015, 0.012),
    (0.001, 0.01),
    (0.001, 0.01),
)
GLIDING = 0.01  # metres of noise along the surface
LANDMARK_NOISE = 0.00075  # metres
PRIOR = 2.0  # weight of the model's prior
LEAST_COSINE = 0.6  # between normals of counterparts
STIFFNESS = (30.0, 10.0, 3.0, 1.0, 1.0)  # of the non-rigid closest points
HELD_OUT = 0.1  # share of the scans' directions that the head does not learn, for tests
EAR_FADE = 0.02  # metres over which the open head's own variation fades from the ears


@dataclass(frozen=True)
class ScanIdentities:
    """The scans' mean and their directions, all on the topology of the open head."""

    mean: Floats  # (V, 3) metres, head
    modes: Floats  # (K, V, 3) metres of one standard deviation
    kept: Floats  # (K, L) orthonormal columns: directions that the head learns

    def sample(self, count: int, *, rng: np.random.Generator) -> Floats:
        """(count, V, 3) float32 people of the kept directions, with the variance of all."""
        total, used = self.kept.shape
        row = rng.normal(size=(count, used)) * np.sqrt(total / used) @ self.kept.T
        return np.asarray(self.mean + np.tensordot(row, self.modes, 1), dtype=np.float32)


def carry_scans(head: MorphableModel, path: Path) -> ScanIdentities:
    """The identities of the ICT-FaceKit file at ``path`` on the topology of ``head``."""
    scans = load_model(str(path))
    at, found, surface, placed = register_scans(head, scans)
    rows = np.unique(head.faces[head.find_triangles(*SKIN)])
    away = np.linalg.norm(found.of(surface.vertices, surface.faces) - at[rows], axis=1)
    normal = triangle_normals(surface.vertices, surface.faces)[found.triangle]
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    cosine = (vertex_normals(at, head.faces)[rows] * normal).sum(1)
    weight = np.zeros(len(at))
    weight[rows] = np.where(away < 0.0015, 1.0, np.where(away < 0.004, 0.1, 0.0))
    weight[rows[cosine < 0.5]] = 0.0
    weight[_vertices(head, "ears")] *= 0.02
    weight[_vertices(head, "mouth") & ~_vertices(head, "lips")] = 0.0
    modes = np.stack([found.of(mode, surface.faces) for mode in scans.identity.astype(np.float64)])
    shift = np.zeros((len(modes) + 1, len(at), 3))
    shift[0] = at - head.template
    shift[1:, rows] = placed.scale * modes @ placed.rotation.T
    smooth = extend(head, shift, weight)
    turn = np.linalg.qr(np.random.default_rng(19).normal(size=(len(modes), len(modes))))[0]
    held = round(HELD_OUT * len(modes))
    return ScanIdentities(head.template + smooth[0], smooth[1:], turn[:, held:])


def register_scans(
    head: MorphableModel, scans: MorphableModel
) -> tuple[Floats, SurfacePoints, Surface, Similarity]:
    """Register the head's template to the scans' mean.

    Returns the registered vertices (V, 3), the surface points of the skin's vertices, in order of
    their numbers, the scans' surface, and the similarity that placed it.
    """
    own, theirs = head.landmarks.vertex, scans.landmarks.vertex
    placed = similarity(
        scans.template[theirs[INNER]].astype(np.float64),
        head.template[own[INNER]].astype(np.float64),
    )
    skin = scans.find_triangles(*(name for name in SKIN if name in scans.region_names))
    surface = Surface(placed.apply(scans.template.astype(np.float64)), scans.faces[skin])
    nearest = Nearest(surface)
    pairs = list(PAIRED)
    at = _fit_head(head, nearest, own[pairs], surface.vertices[theirs[pairs]])
    moving, rows = part(at, head.faces, head.find_triangles(*SKIN))
    current = np.array(moving.vertices)
    laplacian = graph_laplacian(moving.faces, len(rows))
    ears = _vertices(head, "ears")[rows]
    for stiffness in STIFFNESS:
        found, away = nearest(current)
        cosine = (vertex_normals(current, moving.faces) * nearest.normals[found.triangle]).sum(1)
        weight = ((away < 0.01) & (cosine > LEAST_COSINE)) * np.where(ears, 0.1, 1.0)
        target = found.of(surface.vertices, surface.faces) - current
        matrix = sparse.csc_matrix(sparse.diags(weight + 1e-6) + stiffness * laplacian)
        current = current + splu(matrix).solve(weight[:, None] * target)
    out = at.copy()
    out[rows] = current
    return out, nearest(current)[0], surface, placed


def _fit_head(head: MorphableModel, nearest: Nearest, vertex: Ints, goal: Floats) -> Floats:
    """(V, 3) the head, with identities, residual deformations and pose, fitted to a surface.

    (N,) ``vertex`` are held at (N, 3) ``goal``. Iterative closest points to planes.
    """
    surface = nearest.surface
    template = head.template.astype(np.float64)
    shape = np.concatenate([head.identity, head.deformations]).astype(np.float64)
    axes = np.eye(3)
    pose = [np.cross(axis, template) for axis in axes]
    pose += [np.broadcast_to(axis, template.shape) for axis in axes] + [template]
    basis = np.concatenate([shape, np.stack(pose)])
    prior = np.concatenate([np.ones(len(shape)), np.repeat([0.3, 0.05, 0.3], [3, 3, 1]) ** -2.0])
    rows = np.flatnonzero(_vertices(head, *SKIN) & ~_vertices(head, "ears"))
    weight = np.where(_vertices(head, *FACE)[rows], 1.0, 0.3)
    freely = basis[:, rows].reshape(len(basis), -1)
    held = basis[:, vertex].reshape(len(basis), -1)
    at = template
    for noise, reach in SCHEDULE:
        found, away = nearest(at[rows])
        normal = nearest.normals[found.triangle]
        cosine = (vertex_normals(at, head.faces)[rows] * normal).sum(1)
        use = weight * ((away < reach) & (cosine > LEAST_COSINE))
        missing = found.of(surface.vertices, surface.faces) - template[rows]
        across = np.einsum("kvc,vc->kv", basis[:, rows], normal)
        matrix = (across * use / noise**2) @ across.T
        gradient = across @ (use / noise**2 * (missing * normal).sum(1))
        along = np.repeat(use, 3) / GLIDING**2
        matrix += (freely * along) @ freely.T + held @ held.T / LANDMARK_NOISE**2
        gradient += freely @ (along * missing.ravel())
        gradient += held @ (goal - template[vertex]).ravel() / LANDMARK_NOISE**2
        solution = np.linalg.solve(matrix + PRIOR * np.diag(prior), gradient)
        at = template + np.tensordot(solution, basis, 1)
    return np.asarray(at)


def extend(head: MorphableModel, shift: Floats, weight: Floats) -> Floats:
    """(M, V, 3) displacements, smooth, and near ``shift`` as far as (V,) ``weight`` says.

    The inside of the mouth follows the skin in front of it, eyeballs move with their lids as a
    whole, teeth and tongue with the inside of the mouth.
    """
    template = head.template.astype(np.float64)
    shift, weight = shift.copy(), weight.copy()
    inside = np.flatnonzero(_vertices(head, "mouth") & ~_vertices(head, "lips", "face"))
    outside = _vertices(head, "face", "lips") & ~_vertices(head, "mouth")
    front = np.flatnonzero(outside & (template[:, 2] > -0.03) & (weight > 0.5))
    gap = np.linalg.norm(template[inside][:, None] - template[front], axis=-1)
    nearest = gap.min(1, keepdims=True)
    share = np.exp(-0.5 * ((gap - nearest) / np.maximum(0.006, 0.7 * nearest)) ** 2)
    share /= share.sum(1, keepdims=True)
    shift[:, inside] = np.einsum("iw,nwc->nic", share, shift[:, front], optimize=True)
    weight[inside] = 0.3
    chosen = head.find_triangles(*SKIN, "mouth")
    surface, rows = part(template, head.faces, chosen)
    laplacian = graph_laplacian(surface.faces, len(rows))
    mean = sparse.diags(1.0 / np.maximum(laplacian.diagonal(), 1.0)) @ laplacian
    matrix = sparse.diags(weight[rows]) + mean.T @ mean + 1e-4 * laplacian
    flat = shift[:, rows].transpose(1, 0, 2).reshape(len(rows), -1)
    solved = splu(sparse.csc_matrix(matrix)).solve(weight[rows][:, None] * flat)
    out = np.zeros_like(shift)
    out[:, rows] = solved.reshape(len(rows), len(shift), 3).transpose(1, 0, 2)
    lids = np.flatnonzero(_vertices(head, "face") & ~_vertices(head, "mouth"))
    eyes = np.flatnonzero(_vertices(head, "eyes"))
    for side in (1, -1):
        eye = eyes[np.sign(template[eyes, 0]) == side]
        away, _ = cKDTree(template[eye]).query(template[lids])
        out[:, eye] = out[:, lids[away < 0.004]].mean(1, keepdims=True)
    inner = np.flatnonzero(_vertices(head, "teeth", "tongue"))
    wall = np.flatnonzero(_vertices(head, "mouth"))
    wall = wall[np.linalg.norm(template[wall] - template[inner].mean(0), axis=1) < 0.06]
    gap = np.linalg.norm(template[inner][:, None] - template[wall], axis=-1)
    share = np.exp(-0.5 * (gap / 0.012) ** 2)
    share /= share.sum(1, keepdims=True)
    out[:, inner] = np.einsum("iw,nwc->nic", share, out[:, wall], optimize=True)
    return out


def vary_ears(head: MorphableModel, people: Floats, own: Floats) -> Floats:
    """(N, V, 3) people whose ears differ as those of the (N, V, 3) ``own`` people of the head.

    The scans' ears are not registered.
    """
    template = head.template.astype(np.float64)
    away, _ = cKDTree(template[_vertices(head, "ears")]).query(template)
    near = np.clip(1.0 - away / EAR_FADE, 0.0, 1.0)
    share = (near**2 * (3.0 - 2.0 * near)).astype(np.float32)
    return np.asarray(people + share[:, None] * (own - head.template))


def _vertices(head: MorphableModel, *regions: str) -> Bools:
    out = np.zeros(len(head.template), bool)
    out[head.faces[head.find_triangles(*regions)]] = True
    return out
