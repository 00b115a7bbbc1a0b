"""Photos of one person agree on the skin: a point of it has one albedo in all of them, each in a
light of its own.

The network judges every photo alike, so what it misjudges it misjudges in all of them, and more
photos do not average that out. The photos tell more among themselves. Where the skin has marks,
points move to where all photos show the same (stereo of many views); where it has none, shading
turns its normals (photometric stereo). One photo is explained by any shape with some albedo, and
two by little better, so what is found by votes of pixels holds the rest.

The residual of a photo at a point is ``seen - albedo * shade(normal)``, in grey; albedo is one
unknown of each point, light nine of each photo (``dff.face.geometry.lighting``). The albedo is
eliminated exactly from the Gauss-Newton step of all unknowns at once, so shape and poses move as if
it followed them.

Sources: Delaunoy and Pollefeys, "Photometric Bundle Adjustment for Dense Multi-View 3D Modeling",
CVPR 2014; Basri, Jacobs and Kemelmacher, "Photometric Stereo with General, Unknown Lighting", IJCV
2007.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from dff.aligner.fitting.crop import Crops
from dff.aligner.fitting.loop import FitModel, Look
from dff.aligner.fitting.perspective import PerspectiveFitModel, near_jacobian
from dff.face.arrays import Bools, Bytes, Floats, Ints
from dff.face.descriptor import STRIDE
from dff.face.geometry.interpolation import bilinear_with_gradient
from dff.face.geometry.lighting import ambient, basis, basis_gradient
from dff.face.geometry.mesh import SurfacePoints
from dff.face.geometry.transform import skew
from dff.face.model.landmarks import NAMES
from dff.face.render import zbuffer
from dff.face.render.kernels import smooth_normals
from dff.face.solve.gauss_newton import POSE, FaceState, apply_step, evaluate_shape, project
from dff.face.solve.photometric import (
    light_prior,
    normal_derivatives,
    skin_triangles,
    spread_points,
)
from dff.face.solve.robust import robust_weights

POINTS, WITHIN = (
    1500,
    0.1,
)  # of the skin, and the metres from the tip of the nose within which they lie
NOISE = 0.04  # of brightness in 0 to 1: what light and albedo leave of a photo, standard deviation
STRANGE = 0.05  # residual that counts a quarter: a hand, a strand of hair, a highlight
ALBEDO, ALBEDO_SD = (
    0.45,
    3.0,
)  # of skin, in grey: nearly any, or shape would explain away what photos of one look show
SIDE = 256  # pixels of the crops in which photos are compared
BLUR = 0.008  # standard deviation of the blur under which they are, fraction of the unit
BUFFER = 160  # pixels of the visibility buffer's side
ROUND = 2  # of them: a point is seen only where nothing before it is as near as that
OCCLUSION = 0.012  # metres behind the surface that is seen at which a point is hidden
ASLANT, SQUARE = (
    0.3,
    0.6,
)  # cosines to the camera at which a point begins to count, and counts fully
STEPS, BEGINNING, LATER = (
    3,
    8,
    2,
)  # Gauss-Newton, and how often light and albedo follow each other before each of them
SLACK_SCALE, SLACK_TURN, SLACK_SHIFT = 0.05, np.deg2rad(4.0), 0.03
"""By what all votes of a photo may be off together, standard deviations: share, radians, fraction
of the unit.
"""


@dataclass(frozen=True)
class Skin:
    """Points of a rig's skin, evenly spread, whose brightness is compared."""

    points: SurfacePoints  # (N,)
    corners: Ints  # (N, 3) vertices of their triangles
    mean: Floats  # (N, 3) metres
    basis: Floats  # (N, 3, P) float32
    turning: Floats  # (N, 3, P) float32 change of the template's unit normals by the latents

    @staticmethod
    def of(fit_model: FitModel) -> Skin:
        model = fit_model.model
        triangles = skin_triangles(model)
        tip = model.template[model.landmarks.vertex[NAMES.index("nose_tip")]]
        away = np.linalg.norm(model.template[model.faces[triangles]].mean(1) - tip, axis=1)
        triangles = triangles[away < WITHIN]
        points = spread_points(model, triangles, POINTS)
        touched = np.zeros(len(model.template), dtype=bool)
        touched[model.faces[triangles]] = True
        ring = model.faces[
            touched[model.faces].any(axis=1)
        ]  # also what borders them turns their normals
        used, rows = np.unique(ring, return_inverse=True)
        corners, weight = model.faces[points.triangle], points.barycentric
        modes = fit_model.vertex_basis
        turning = normal_derivatives(
            model.template[used].astype(np.float64),
            modes[used].astype(np.float64),
            rows.reshape(ring.shape),
            np.searchsorted(used, corners),
            weight,
        )
        mean = np.einsum("nk,nkc->nc", weight, model.template[corners].astype(np.float64))
        return Skin(
            points,
            corners,
            mean,
            np.einsum("nk,nkcp->ncp", weight, modes[corners]).astype(np.float32),
            turning,
        )


@dataclass(frozen=True)
class Seen:
    """What B photos show at N points of the skin, and how these lie to the camera."""

    brightness: Floats  # (B, N) 0 to 1
    by_pixel: Floats  # (B, N, 2) its derivatives
    normal: Floats  # (B, N, 3) unit, cam
    harmonics: Floats  # (B, N, 9)
    weight: Floats  # (B, N) 0 to 1, how well they are seen


@dataclass(frozen=True)
class Shading:
    """What explains it."""

    albedo: Floats  # (N,)
    light: Floats  # (B, 9)

    def of(self, seen: Seen) -> Floats:
        """(B, N) by what the albedo is multiplied."""
        return np.asarray(np.maximum((seen.harmonics @ self.light[..., None])[..., 0], 1e-3))


@dataclass(frozen=True)
class Pictures:
    """Of B photos what the crops show, in grey and a little blurred: however large the photos
    are.
    """

    grey: Sequence[Floats]  # (SIDE, SIDE, 1) float32, 0 to 1
    crops: Crops
    photo: Floats  # (B, 2) width and height of the photos, pixels

    @staticmethod
    def of(images: Sequence[Bytes], crops: Crops, unit: Floats) -> Pictures:
        """Of (H, W, 3) uint8 RGB ``images``, in which faces have that ``unit``."""
        close = replace(crops, size=SIDE)
        blur = np.maximum(BLUR * unit * SIDE / close.side, 0.5)
        grey = []
        for i, (image, sd) in enumerate(zip(images, blur, strict=True)):
            cut = close.cut(image, i).mean(axis=2, dtype=np.float32) / np.float32(255.0)
            grey.append(cv2.GaussianBlur(cut, (0, 0), float(sd))[..., None])
        return Pictures(grey, close, np.array([image.shape[1::-1] for image in images]))

    def at(self, px: Floats) -> tuple[Floats, Floats, Bools]:
        """(B, N) brightness at (B, N, 2) pixels of the photos, its (B, N, 2) derivatives, and where
        there is any.
        """
        places = self.crops.crop_from_photo(px)
        within = [(px > 1), (px < self.photo[:, None] - 1), (places > 1), (places < SIDE - 1)]
        inside = np.all(within, axis=(0, 3))
        seen = [
            bilinear_with_gradient(grey, where)
            for grey, where in zip(self.grey, places, strict=True)
        ]
        slope = np.stack([slope[:, 0] for _, slope in seen])
        c, s = np.cos(self.crops.angle), np.sin(self.crops.angle)
        turn = np.stack(
            [np.stack([c, s], -1), np.stack([-s, c], -1)], -2
        )  # row vectors to the photo's axes
        slope = slope @ turn * (SIDE / self.crops.side)[:, None, None]
        return np.stack([value[:, 0] for value, _ in seen]), np.asarray(slope), np.asarray(inside)


def agreed(
    skin: Skin,
    fit_model: PerspectiveFitModel,
    images: Sequence[Bytes],
    state: FaceState,
    votes: Floats,
    look: Look,
    *,
    strength: float,
    trust: Floats,
) -> FaceState:
    """The state of B photos of one person, held by (B, 6 + P, 6 + P) ``votes`` about ``state``,
    that explains them.

    ``images``: (H, W, 3) uint8 RGB. The rows of ``state`` share their identity. ``votes`` are the
    normal equations that found it; ``strength`` is how many independent observations the whole skin
    of a photo is worth, ``trust`` (B,) by how much each photo counts.
    """
    b, columns = votes.shape[:2]
    shared = fit_model.identities
    unit = fit_model.unit(state)
    places = [_places(i, columns, shared) for i in range(b)]
    held = _held(_eased(votes, unit), places, shared)
    mean, precision = _light_prior()
    per_point = strength / len(skin.mean)
    pictures = Pictures.of(images, look.crops, unit)
    gone = np.zeros(len(held))  # since ``state``
    found, shading = state, None
    for number in range(STEPS):
        seen = _seen(skin, fit_model, pictures, found, look)
        shading = _explained(seen, shading, per_point, trust, BEGINNING if number == 0 else LATER)
        level = shading.of(seen)
        residual = seen.brightness - shading.albedo * level
        weight = _weight(seen, residual, per_point * trust)
        hessian, gradient = held.copy(), -held @ gone
        # Of each point, with its albedo: what the photos say together (the Schur complement of the
        # albedo).
        coupling = np.zeros((len(skin.mean), len(held)), np.float32)
        stiffness = per_point / ALBEDO_SD**2 + (weight * level**2).sum(0)
        pull = (weight * level * residual).sum(0) - per_point / ALBEDO_SD**2 * (
            shading.albedo - ALBEDO
        )
        for i, place in enumerate(places):
            rows = _rows(skin, seen, shading, found, i)
            weighted = rows * weight[i, :, None].astype(np.float32)
            light = place[columns:]
            hessian[place[:, None], place] += weighted.T @ rows
            hessian[light[:, None], light] += precision
            gradient[place] -= weighted.T @ residual[i].astype(np.float32)
            gradient[light] += precision @ (mean - shading.light[i])
            coupling[:, place] += weighted * level[i, :, None].astype(np.float32)
        coupling /= np.sqrt(stiffness)[:, None].astype(np.float32)
        hessian -= coupling.T @ coupling
        gradient += coupling.T @ (pull / np.sqrt(stiffness)).astype(np.float32)
        diagonal = np.arange(len(held))
        hessian[diagonal, diagonal] += 1e-6 * hessian[diagonal, diagonal] + 1e-9
        delta = np.linalg.solve(hessian, gradient)
        light = np.stack([delta[place[columns:]] for place in places])
        shading = replace(shading, light=shading.light + light)
        for place in places:
            delta[place[columns:]] = 0.0
        gone += delta
        found = apply_step(state, np.stack([gone[place[:columns]] for place in places]))
    return found


def _places(photo: int, columns: int, shared: int) -> Ints:
    """Where the ``columns`` of a photo's state, then its light, lie among the unknowns: what is
    shared comes first.
    """
    begin = shared + photo * (columns - shared + 9)
    own = np.arange(begin, begin + columns - shared + 9)
    return np.concatenate([own[:POSE], np.arange(shared), own[POSE:]])


def _eased(votes: Floats, unit: Floats) -> Floats:
    """Normal equations of votes that may all be off together by a pose: marginalised over it."""
    sd = np.tile([SLACK_SCALE, *[SLACK_TURN] * 3, SLACK_SHIFT, SLACK_SHIFT], (len(unit), 1))
    sd[:, 4:] *= unit[:, None]
    pose = votes[:, :, :POSE]
    free = votes[:, :POSE, :POSE] + np.eye(POSE) / sd[:, None] ** 2
    return np.asarray(votes - pose @ np.linalg.solve(free, np.swapaxes(pose, 1, 2)))


def _held(votes: Floats, places: Sequence[Ints], shared: int) -> Floats:
    """(U, U) what votes and priors say of all unknowns, lights aside."""
    columns = votes.shape[1]
    size = int(places[-1].max()) + 1
    out = np.zeros((size, size))
    prior = np.zeros(size)
    prior[:shared] = 1.0
    for place, photo in zip(places, votes, strict=True):
        state = place[:columns]
        out[state[:, None], state] += photo
        prior[state[POSE + shared :]] = 1.0
    out[np.arange(size), np.arange(size)] += prior
    return out


def _light_prior() -> tuple[Floats, Floats]:
    """``dff.face.solve.photometric.light_prior`` of grey light: (9,) mean and (9, 9) precision."""
    mean, precision = light_prior()
    return mean[::3], precision.reshape(9, 3, 9, 3).sum((1, 3)) / 3.0


def _seen(
    skin: Skin, fit_model: PerspectiveFitModel, pictures: Pictures, state: FaceState, look: Look
) -> Seen:
    at = project(
        state, evaluate_shape(skin.mean, skin.basis, state.coefficients), fit_model.nearness(state)
    )
    b, n, _ = at.shape
    brightness, by_pixel, inside = pictures.at(at)
    normal, weight = np.empty((b, n, 3)), np.empty((b, n))
    in_crop = look.crops.crop_from_photo(at) / STRIDE
    for i, (vertices, near) in enumerate(
        zip(fit_model.vertices(state), fit_model.nearness(state), strict=True)
    ):
        turned = vertices @ state.rotation[i].T
        corner = smooth_normals(turned, fit_model.model.faces)[skin.corners]
        between = np.einsum("nk,nkc->nc", skin.points.barycentric, corner)
        normal[i] = between / np.maximum(np.linalg.norm(between, axis=1, keepdims=True), 1e-9)
        logit = look.face_logit[i]
        face, _ = bilinear_with_gradient(logit[..., None], in_crop[i])
        shown = inside[i] & _unhidden(skin, fit_model, turned, float(near))
        weight[i] = shown / (1.0 + np.exp(-np.clip(face[:, 0], -30.0, 30.0)))
    weight *= np.clip((-normal[..., 2] - ASLANT) / (SQUARE - ASLANT), 0.0, 1.0)
    return Seen(brightness, by_pixel, normal, basis(normal), weight)


def _unhidden(skin: Skin, fit_model: FitModel, turned: Floats, near: float) -> Bools:
    """(N,) whether nothing of the mesh is before the points, and nothing beside them that is."""
    faces = fit_model.model.faces
    seen = turned / (1.0 + near * turned[:, 2:])
    low, high = seen[:, :2].min(0), seen[:, :2].max(0)
    scale = BUFFER / float((high - low).max())
    ids = zbuffer.visibility((seen[:, :2] - low) * scale, seen[:, 2], faces, (BUFFER, BUFFER))
    # Of each pixel the farthest corner of its triangle; then the nearest surface round it.
    depth = np.where(ids >= 0, seen[faces[np.maximum(ids, 0)], 2].max(-1), np.inf).astype(
        np.float32
    )
    depth = np.asarray(cv2.erode(depth, np.ones((2 * ROUND + 1, 2 * ROUND + 1), np.uint8)))
    points = np.einsum("nk,nkc->nc", skin.points.barycentric, seen[skin.corners])
    column, row = np.clip(((points[:, :2] - low) * scale).astype(np.int64), 0, BUFFER - 1).T
    return np.asarray(points[:, 2] < depth[row, column] + OCCLUSION)


def _weight(seen: Seen, residual: Floats, per_point: Floats) -> Floats:
    """(B, N) of squared residuals in the energy."""
    robust = np.stack([robust_weights(row[:, None], STRANGE) for row in residual])
    return np.asarray(seen.weight * robust * per_point[:, None] / NOISE**2)


def _explained(
    seen: Seen, before: Shading | None, per_point: float, trust: Floats, rounds: int
) -> Shading:
    """Albedo and lights by alternating robust least squares."""
    mean, precision = _light_prior()
    if before is None:
        bright = np.where(seen.weight > 0.3, seen.brightness, np.nan)
        bright[:, 0] = np.where(
            (seen.weight > 0.3).any(1), bright[:, 0], ALBEDO
        )  # a median of something
        light = ambient()[:, 0] * np.nanmedian(bright, axis=1)[:, None] / ALBEDO
        before = Shading(np.full(seen.weight.shape[1], ALBEDO), light)
    found = before
    stiff = per_point / ALBEDO_SD**2
    for _ in range(rounds):
        level = found.of(seen)
        weight = _weight(seen, seen.brightness - found.albedo * level, per_point * trust)
        albedo = ((weight * level * seen.brightness).sum(0) + stiff * ALBEDO) / (
            (weight * level**2).sum(0) + stiff
        )
        design = seen.harmonics * albedo[:, None]
        weighted = np.swapaxes(design * weight[..., None], 1, 2)
        right = (weighted @ seen.brightness[..., None])[..., 0] + precision @ mean
        found = Shading(
            albedo, np.linalg.solve(weighted @ design + precision, right[..., None])[..., 0]
        )
    return found


def _rows(skin: Skin, seen: Seen, shading: Shading, state: FaceState, photo: int) -> Floats:
    """(N, 6 + P + 9) float32 derivatives of a photo's residuals by its state and its light."""
    normal, harmonics, light = seen.normal[photo], seen.harmonics[photo], shading.light[photo]
    lit = shading.albedo * (harmonics @ light > 0.0)
    # Of one photo at a time: of thirty they would fill a gigabyte.
    jac = near_jacobian(state[photo : photo + 1], skin.mean, skin.basis)[1][0]
    columns = jac.shape[2]
    out = np.empty((len(normal), columns + 9), np.float32)
    out[:, :columns] = np.matmul(seen.by_pixel[photo, :, None], jac)[:, 0]
    by_normal = np.einsum("nkx,k->nx", basis_gradient(normal), light) * lit[:, None]
    out[:, 1:4] -= np.matmul(by_normal[:, None], -skew(normal))[:, 0]
    by_normal -= (by_normal * normal).sum(1, keepdims=True) * normal  # a normal keeps its length
    in_head = (by_normal @ state.rotation[photo]).astype(np.float32)
    out[:, POSE:columns] -= np.matmul(in_head[:, None], skin.turning)[:, 0]
    out[:, columns:] = -lit[:, None] * harmonics
    return out
