"""Photometric bundle adjustment: a point of the skin has one albedo in all photos of a person.

The network's errors are similar in all photos of a person, so more photos do not average them out.
Comparing the photos with each other corrects them. Where the skin has texture, points move until
all photos show the same colour there (multi-view stereo); elsewhere shading determines the normals
(photometric stereo). One or two photos do not determine both shape and albedo, so the normal
equations of the soft correspondences regularise the rest.

The residual of a photo at a point is ``brightness - albedo * shade(normal)``, in grey; albedo is
one unknown of each point, light nine of each photo (``dff.face.geometry.lighting``). The albedo is
eliminated exactly from the Gauss-Newton step of all unknowns (variable projection).

Sources: Delaunoy and Pollefeys, "Photometric Bundle Adjustment for Dense Multi-View 3D Modeling",
CVPR 2014; Basri, Jacobs and Kemelmacher, "Photometric Stereo with General, Unknown Lighting", IJCV
2007.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from scipy.special import expit

from dff.aligner.config import AlignConfig, PhotometricFitConfig
from dff.aligner.detection import Search
from dff.aligner.fitting.crop import Crops, row_turns
from dff.aligner.fitting.depth_buffer import DepthBuffer
from dff.aligner.fitting.fit_model import FitModel, FitState, PersonFitModel
from dff.aligner.fitting.observation import Observation
from dff.aligner.fitting.perspective import move, perspective_jacobian
from dff.face.arrays import Array, Bools, Bytes, Float, Floats, Integer, Ints
from dff.face.descriptor import STRIDE
from dff.face.geometry.interpolation import bilinear_with_gradient
from dff.face.geometry.lighting import ambient, basis, basis_gradient
from dff.face.geometry.mesh import SurfacePoints
from dff.face.geometry.transform import skew
from dff.face.model.landmarks import NOSE_TIP
from dff.face.render.kernels import smooth_normals
from dff.face.solve.gauss_newton import POSE, evaluate_shape, project
from dff.face.solve.least_squares import eliminate_scalars, marginalise
from dff.face.solve.photometric import (
    light_prior,
    normal_derivatives,
    skin_triangles,
    spread_points,
)
from dff.face.solve.robust import robust_weights

LIGHT = 9  # unknowns of a photo's light


@dataclass(frozen=True)
class Skin:
    """Points of a fit model's skin, evenly spread, whose brightness is compared."""

    points: SurfacePoints  # (N,)
    corners: Integer[Array, "points 3"]  # vertices of their triangles
    mean: Float[Array, "points 3"]  # metres
    basis: Float[Array, "points 3 modes"]  # float32
    # float32, change of the template's unit normals by the latent coefficients
    turning: Float[Array, "points 3 modes"]

    @staticmethod
    def of(fit_model: FitModel, config: PhotometricFitConfig) -> Skin:
        """The skin within ``config.radius`` of the tip of the nose."""
        model = fit_model.model
        triangles = skin_triangles(model)
        tip = model.template[model.landmarks.vertex[NOSE_TIP]]
        away = np.linalg.norm(model.template[model.faces[triangles]].mean(1) - tip, axis=1)
        triangles = triangles[away < config.radius]
        points = spread_points(model, triangles, config.points)
        touched = np.zeros(len(model.template), dtype=bool)
        touched[model.faces[triangles]] = True
        # The normals of the skin's vertices depend on neighbouring triangles too.
        ring = model.faces[touched[model.faces].any(axis=1)]
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
        at_points = np.einsum("nk,nkcp->ncp", weight, modes[corners]).astype(np.float32)
        return Skin(points, corners, mean, at_points, turning)


@dataclass(frozen=True)
class SkinObservation:
    """Brightness of B photos at N points of the skin, and the points' normals."""

    brightness: Float[Array, "photos points"]  # 0 to 1
    by_pixel: Float[Array, "photos points 2"]  # its derivatives
    normal: Float[Array, "photos points 3"]  # unit, camera frame
    harmonics: Float[Array, "photos points 9"]
    weight: Float[Array, "photos points"]  # 0 hidden to 1 fully visible


@dataclass(frozen=True)
class Shading:
    """Albedo and lights that explain a ``SkinObservation``."""

    albedo: Float[Array, " points"]
    light: Float[Array, "photos 9"]

    def shade(self, seen: SkinObservation) -> Floats:
        """(B, N) shading, which multiplies the albedo."""
        return np.asarray(np.maximum((seen.harmonics @ self.light[..., None])[..., 0], 1e-3))


@dataclass(frozen=True)
class GreyCrops:
    """Grey, slightly blurred crops of B photos, all of one size."""

    grey: Sequence[Floats]  # (S, S, 1) float32, 0 to 1
    crops: Crops
    photo: Integer[Array, "photos 2"]  # width and height of the photos, pixels

    @staticmethod
    def of(
        images: Sequence[Bytes], crops: Crops, face_size: Floats, config: PhotometricFitConfig
    ) -> GreyCrops:
        """Crops of (H, W, 3) uint8 RGB ``images``, in which faces have that (B,) size."""
        fine = replace(crops, size=config.side)
        blur = np.maximum(config.blur * face_size * config.side / fine.side, 0.5)
        grey = []
        for i, (image, sd) in enumerate(zip(images, blur, strict=True)):
            cut = fine.cut(image, i).mean(axis=2, dtype=np.float32) / np.float32(255.0)
            grey.append(cv2.GaussianBlur(cut, (0, 0), float(sd))[..., None])
        return GreyCrops(grey, fine, np.array([image.shape[1::-1] for image in images]))

    def sample(self, px: Floats) -> tuple[Floats, Floats, Bools]:
        """(B, N) brightness at (B, N, 2) photo pixels, its slope, and whether these are inside.

        The (B, N, 2) slope is the derivative by the pixels of the photos. Inside is within photo
        and crop.
        """
        size = self.crops.size
        places = self.crops.crop_from_photo(px)
        within = [(px > 1), (px < self.photo[:, None] - 1), (places > 1), (places < size - 1)]
        inside = np.all(within, axis=(0, 3))
        seen = [
            bilinear_with_gradient(grey, at) for grey, at in zip(self.grey, places, strict=True)
        ]
        slope = np.stack([slope[:, 0] for _, slope in seen]) @ row_turns(self.crops.angle)
        slope = slope * (size / self.crops.side)[:, None, None]
        return np.stack([value[:, 0] for value, _ in seen]), np.asarray(slope), np.asarray(inside)


def adjust_photometrically(
    skin: Skin,
    fit_model: PersonFitModel,
    images: Sequence[Bytes],
    state: FitState,
    system: Floats,
    observation: Observation,
    config: AlignConfig,
    *,
    trust: Floats,
) -> Search[FitState]:
    """The state of B photos of one person that explains their brightness, given ``system``.

    ``images``: (H, W, 3) uint8 RGB. The rows of ``state`` share their first coefficients.
    ``system``: (B, Q, Q) Gauss-Newton matrices of the soft correspondences about ``state``, in the
    columns of ``perspective_jacobian``. ``trust`` (B,): weight of each photo, 0 to 1. Yields in
    every Gauss-Newton step, also after each photo.
    """
    settings, person = config.photometric, config.multi_image
    b, columns = system.shape[:2]
    shared = fit_model.shared
    face_size = fit_model.face_size(state)
    unknowns = [_unknowns(i, columns, shared) for i in range(b)]
    slack = _allow_slack(system, face_size, settings)
    held = _hold(slack, unknowns, shared, person.inverse_depth_sd)
    light_mean, light_precision = _grey_light_prior()
    per_point = settings.observations / len(skin.mean)
    stiff = per_point / settings.albedo_sd**2
    crops = GreyCrops.of(images, observation.crops, face_size, settings)
    total = np.zeros(len(held))  # change since ``state``
    found, shading = state, None
    for number in range(settings.steps):
        yield
        seen = observe_skin(skin, fit_model, crops, found, observation, settings)
        yield
        rounds = settings.later_alternations if number else settings.first_alternations
        shading = _explain(seen, shading, per_point, trust, rounds, settings)
        shade = shading.shade(seen)
        residual = seen.brightness - shading.albedo * shade
        weight = _weigh(seen, residual, per_point * trust, settings)
        hessian, gradient = held.copy(), -held @ total
        # The Schur complement of each point's albedo, which couples the photos.
        coupling = np.zeros((len(skin.mean), len(held)), np.float32)
        stiffness = stiff + (weight * shade**2).sum(0)
        pull = (weight * shade * residual).sum(0) - stiff * (shading.albedo - settings.albedo)
        for i, columns_of_photo in enumerate(unknowns):
            yield
            rows = residual_jacobian(skin, seen, shading, found, i)
            weighted = rows * weight[i, :, None].astype(np.float32)
            light = columns_of_photo[columns:]
            hessian[columns_of_photo[:, None], columns_of_photo] += weighted.T @ rows
            hessian[light[:, None], light] += light_precision
            gradient[columns_of_photo] -= weighted.T @ residual[i].astype(np.float32)
            gradient[light] += light_precision @ (light_mean - shading.light[i])
            coupling[:, columns_of_photo] += weighted * shade[i, :, None].astype(np.float32)
        yield
        mutual, pulled = eliminate_scalars(stiffness, coupling, pull)
        hessian -= mutual
        gradient += pulled
        diagonal = np.arange(len(held))
        hessian[diagonal, diagonal] += 1e-6 * hessian[diagonal, diagonal] + 1e-9
        delta = np.linalg.solve(hessian, gradient)
        light = np.stack([delta[of_photo[columns:]] for of_photo in unknowns])
        shading = replace(shading, light=shading.light + light)
        for of_photo in unknowns:
            delta[of_photo[columns:]] = 0.0
        total += delta
        found = move(state, np.stack([total[of_photo[:columns]] for of_photo in unknowns]), person)
    return found


def _unknowns(photo: int, columns: int, shared: int) -> Ints:
    """Indices of a photo's state, ``columns`` of them, and of its light among all unknowns.

    The shared coefficients come first.
    """
    own_columns = columns - shared + LIGHT
    begin = shared + photo * own_columns
    own = np.arange(begin, begin + own_columns)
    return np.concatenate([own[:POSE], np.arange(shared), own[POSE:]])


def _allow_slack(system: Floats, face_size: Floats, config: PhotometricFitConfig) -> Floats:
    """The system of correspondences, marginalised over an error of the pose that they share."""
    turn, shift = np.deg2rad(config.slack_degrees), config.slack_shift
    sd = np.tile([config.slack_scale, *[turn] * 3, shift, shift], (len(face_size), 1))
    sd[:, 4:] *= face_size[:, None]
    free = system[:, :POSE, :POSE] + np.eye(POSE) / sd[:, None] ** 2
    return marginalise(free, system[:, :POSE], system)


def _hold(system: Floats, unknowns: Sequence[Ints], shared: int, inverse_depth_sd: float) -> Floats:
    """(U, U) precision of all unknowns but the lights: soft correspondences and priors."""
    columns = system.shape[1]
    size = int(unknowns[-1].max()) + 1
    out = np.zeros((size, size))
    prior = np.zeros(size)
    prior[:shared] = 1.0
    for of_photo, one in zip(unknowns, system, strict=True):
        state = of_photo[:columns]
        out[state[:, None], state] += one
        prior[state[POSE + shared : -1]] = 1.0
        prior[state[-1]] = inverse_depth_sd**-2
    out[np.arange(size), np.arange(size)] += prior
    return out


def _grey_light_prior() -> tuple[Floats, Floats]:
    """``dff.face.solve.photometric.light_prior`` of grey light: (9,) mean, (9, 9) precision."""
    mean, precision = light_prior()
    return mean[::3], precision.reshape(9, 3, 9, 3).sum((1, 3)) / 3.0


def observe_skin(
    skin: Skin,
    fit_model: PersonFitModel,
    crops: GreyCrops,
    state: FitState,
    observation: Observation,
    config: PhotometricFitConfig,
) -> SkinObservation:
    """Observe the photos at the points of the skin, projected by the current fits."""
    points = evaluate_shape(skin.mean, skin.basis, state.coefficients)
    at = project(state, points, state.inverse_depth)
    b, n, _ = at.shape
    brightness, by_pixel, inside = crops.sample(at)
    normal, weight = np.empty((b, n, 3)), np.empty((b, n))
    in_crop = observation.crops.crop_from_photo(at) / STRIDE
    faces = fit_model.model.faces
    for i, vertices in enumerate(fit_model.vertices(state)):
        turned = vertices @ state.rotation[i].T
        corner = smooth_normals(turned, faces)[skin.corners]
        between = np.einsum("nk,nkc->nc", skin.points.barycentric, corner)
        normal[i] = between / np.maximum(np.linalg.norm(between, axis=1, keepdims=True), 1e-9)
        face, _ = bilinear_with_gradient(observation.face_logit[i][..., None], in_crop[i])
        buffer = DepthBuffer.of(turned, float(state.inverse_depth[i]), faces, config.buffer)
        seen = np.einsum("nk,nkc->nc", skin.points.barycentric, buffer.seen[skin.corners])
        clear = buffer.clear(seen, clearance=config.clearance, occlusion=config.occlusion)
        weight[i] = inside[i] & clear
        weight[i] *= expit(np.clip(face[:, 0], -30.0, 30.0))
    facing = (-normal[..., 2] - config.grazing) / (config.frontal - config.grazing)
    weight *= np.clip(facing, 0.0, 1.0)
    return SkinObservation(brightness, by_pixel, normal, basis(normal), weight)


def _weigh(
    seen: SkinObservation, residual: Floats, per_point: Floats, config: PhotometricFitConfig
) -> Floats:
    """(B, N) weights of squared residuals in the energy."""
    robust = np.stack([robust_weights(row[:, None], config.outlier) for row in residual])
    return np.asarray(seen.weight * robust * per_point[:, None] / config.noise**2)


def _explain(
    seen: SkinObservation,
    before: Shading | None,
    per_point: float,
    trust: Floats,
    rounds: int,
    config: PhotometricFitConfig,
) -> Shading:
    """Solve for albedo and lights by alternating robust least squares."""
    mean, precision = _grey_light_prior()
    found = _first_shading(seen, config.albedo) if before is None else before
    stiff = per_point / config.albedo_sd**2
    for _ in range(rounds):
        shade = found.shade(seen)
        residual = seen.brightness - found.albedo * shade
        weight = _weigh(seen, residual, per_point * trust, config)
        albedo = ((weight * shade * seen.brightness).sum(0) + stiff * config.albedo) / (
            (weight * shade**2).sum(0) + stiff
        )
        design = seen.harmonics * albedo[:, None]
        weighted = np.swapaxes(design * weight[..., None], 1, 2)
        right = (weighted @ seen.brightness[..., None])[..., 0] + precision @ mean
        light = np.linalg.solve(weighted @ design + precision, right[..., None])[..., 0]
        found = Shading(albedo, light)
    return found


def _first_shading(seen: SkinObservation, albedo: float) -> Shading:
    """Uniform albedo, and ambient light of each photo's brightness."""
    bright = np.where(seen.weight > 0.3, seen.brightness, np.nan)
    # A photo that shows no point well gets one value, as its median must exist.
    bright[:, 0] = np.where((seen.weight > 0.3).any(1), bright[:, 0], albedo)
    light = ambient()[:, 0] * np.nanmedian(bright, axis=1)[:, None] / albedo
    return Shading(np.full(seen.weight.shape[1], albedo), light)


def residual_jacobian(
    skin: Skin, seen: SkinObservation, shading: Shading, state: FitState, photo: int
) -> Floats:
    """(N, Q + 9) float32 derivatives of a photo's residuals by its state and its light."""
    normal, harmonics, light = seen.normal[photo], seen.harmonics[photo], shading.light[photo]
    lit = shading.albedo * (harmonics @ light > 0.0)
    # One photo at a time: those of thirty photos would take a gigabyte.
    jac = perspective_jacobian(state[photo : photo + 1], skin.mean, skin.basis)[1][0]
    columns = jac.shape[2]
    shape = slice(POSE, columns - 1)
    out = np.empty((len(normal), columns + LIGHT), np.float32)
    out[:, :columns] = np.matmul(seen.by_pixel[photo, :, None], jac)[:, 0]
    by_normal = np.einsum("nkx,k->nx", basis_gradient(normal), light) * lit[:, None]
    out[:, 1:4] -= np.matmul(by_normal[:, None], -skew(normal))[:, 0]
    by_normal -= (by_normal * normal).sum(1, keepdims=True) * normal  # a normal keeps its length
    in_head = (by_normal @ state.rotation[photo]).astype(np.float32)
    out[:, shape] -= np.matmul(in_head[:, None], skin.turning)[:, 0]
    out[:, columns:] = -lit[:, None] * harmonics
    return out
