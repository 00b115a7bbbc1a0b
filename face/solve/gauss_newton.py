"""Fit pose and shape to points in images: robust Gauss-Newton, many faces at once.

The model is ``px = scale * (x, y) / (1 + inverse_depth * z) + centre`` of the points ``rotation @
(mean + basis @ coefficients)`` (``NearPerspective``); without an inverse depth it is weak
perspective. Every array has a leading batch axis B; points N; coefficients P (identity then
expression). The energy of a face is

    sum_n weight_n * rho(|residual_n| / noise) + sum_p ((coefficient_p - prior_p) / sd_p)^2

with Geman-McClure's rho, so ``noise`` (pixels) is both the scale of the data term and where
outliers begin. Sources: Black and Rangarajan 1996 (robust re-weighting), Dementhon and Davis 1995
(scaled orthography).
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

from dff.face.arrays import Array, Bools, Float, Floats, Ints
from dff.face.geometry.camera import WeakPerspective
from dff.face.geometry.transform import Rigid, rotation_from_vector, skew
from dff.face.numba_cache import CACHE
from dff.face.solve.gram import LANES, multiply_by_own
from dff.face.solve.least_squares import damp, normal_equations
from dff.face.solve.robust import geman_mcclure, robust_weights

POSE = 6  # log scale, rotation vector, centre
DAMPING = 1e-6  # of Gauss-Newton steps: multiplies the diagonal of their matrices by 1 + it


@dataclass(frozen=True)
class FaceState:
    """Pose and shape of B faces. Raises ValueError when the shapes disagree."""

    scale: Float[Array, " faces"]  # pixels per metre
    rotation: Float[Array, "faces 3 3"]  # cam_from_head
    centre: Float[Array, "faces 2"]  # pixels, where the head's origin falls
    coefficients: Float[Array, "faces coefficients"]  # identity then expression

    def __post_init__(self) -> None:
        b = len(self.scale)
        if (
            self.rotation.shape != (b, 3, 3)
            or self.centre.shape != (b, 2)
            or len(self.coefficients) != b
        ):
            raise ValueError("FaceState fields disagree about the batch")

    def camera(self, face: int) -> WeakPerspective:
        """The weak-perspective camera of one face."""
        return WeakPerspective(float(self.scale[face]), self.centre[face])

    def cam_from_head(self, face: int) -> Rigid:
        """The rotation of one face as a transform; the cam origin is the head's origin."""
        return Rigid(self.rotation[face], np.zeros(3))

    def __getitem__(self, rows: slice | Ints | Bools) -> FaceState:
        return FaceState(
            self.scale[rows], self.rotation[rows], self.centre[rows], self.coefficients[rows]
        )


@dataclass(frozen=True)
class Lines:
    """Point-to-line terms: points whose distance from an image line is known, C for each face."""

    mean: Float[Array, "faces points 3"]  # metres
    basis: Float[Array, "faces points 3 coefficients"]  # metres
    targets: Float[Array, "faces points 2"]  # pixels, anywhere on the lines
    normal: Float[Array, "faces points 2"]  # unit vectors across them
    weights: Float[Array, "faces points"]

    @staticmethod
    def none(faces: int, coefficients: int) -> Lines:
        """No point."""
        return Lines(
            mean=np.zeros((faces, 0, 3)),
            basis=np.zeros((faces, 0, 3, coefficients), np.float32),
            targets=np.zeros((faces, 0, 2)),
            normal=np.zeros((faces, 0, 2)),
            weights=np.zeros((faces, 0)),
        )


def evaluate_shape(mean: Floats, basis: Floats, coefficients: Floats) -> Floats:
    """(B, N, 3) head points of (B, P) coefficients.

    The mean is (N, 3) or (B, N, 3), the basis (N, 3, P) or (B, N, 3, P).
    """
    flat = basis.reshape(*basis.shape[:-3], basis.shape[-3] * 3, basis.shape[-1])
    moved = np.matmul(flat, coefficients[..., None])[..., 0]
    return np.asarray(mean + moved.reshape(len(coefficients), -1, 3))


def project(state: FaceState, points: Floats, inverse_depth: Floats | None = None) -> Floats:
    """(B, N, 2) pixels of (B, N, 3) head points; (B,) 1 / metres ``inverse_depth`` of cameras."""
    seen = points @ np.swapaxes(state.rotation, 1, 2)
    if inverse_depth is not None:
        seen[..., :2] /= 1.0 + inverse_depth[:, None, None] * seen[..., 2:]
    return np.asarray(seen[..., :2] * state.scale[:, None, None] + state.centre[:, None])


def jacobian(
    state: FaceState, mean: Floats, basis: Floats, inverse_depth: Floats | None = None
) -> tuple[Floats, Floats]:
    """(B, N, 2) projections and their (B, N, 2, 6 + P) derivatives.

    The columns are: log scale, rotation vector applied on the left (``exp(w) @ rotation``), centre,
    coefficients. ``inverse_depth`` as in ``project``.
    """
    if inverse_depth is not None:
        return _perspective_jacobian(state, mean, basis, inverse_depth)
    points = evaluate_shape(mean, basis, state.coefficients)
    b, n, _ = points.shape
    turned = points @ np.swapaxes(state.rotation, 1, 2)
    scale = state.scale[:, None, None]
    px = turned[..., :2] * scale + state.centre[:, None]
    out = np.empty((b, n, 2, POSE + state.coefficients.shape[1]))
    out[..., 0] = turned[..., :2] * scale
    out[..., 1:4] = -skew(turned)[..., :2, :] * scale[..., None]
    out[..., 4:6] = np.eye(2)
    rows = state.rotation[:, :2] * scale  # (B, 2, 3)
    if basis.ndim == 3:
        side_by_side = np.ascontiguousarray(np.moveaxis(basis, 1, 0)).reshape(3, -1)
        out[..., POSE:] = np.moveaxis((rows @ side_by_side).reshape(b, 2, n, -1), 1, 2)
    else:
        out[..., POSE:] = np.matmul(rows[:, None], basis)
    return px, out


def _perspective_jacobian(
    state: FaceState, mean: Floats, basis: Floats, inverse_depth: Floats
) -> tuple[Floats, Floats]:
    points = evaluate_shape(mean, basis, state.coefficients)
    turned = points @ np.swapaxes(state.rotation, 1, 2)
    away = 1.0 / (1.0 + inverse_depth[:, None] * turned[..., 2])
    scale = (state.scale[:, None] * away)[..., None]
    across = turned[..., :2] * scale
    inward = (across * (inverse_depth[:, None] * away)[..., None])[
        ..., None
    ]  # by how much a point's projection moves for each metre
    out = np.empty((*turned.shape[:2], 2, POSE + state.coefficients.shape[1]))
    out[..., 0] = across
    turns = -skew(turned)
    out[..., 1:4] = turns[..., :2, :] * scale[..., None] - inward * turns[..., 2:, :]
    out[..., 4:6] = np.eye(2)
    rows = (
        state.rotation[:, None, :2] * scale[..., None] - inward * state.rotation[:, None, 2:]
    )  # (B, N, 2, 3)
    out[..., POSE:] = np.matmul(rows, basis)
    return across + state.centre[:, None], out


def apply_step(state: FaceState, delta: Floats) -> FaceState:
    """The state after (B, 6 + P) ``delta`` in the columns of ``jacobian``."""
    return FaceState(
        state.scale * np.exp(np.clip(delta[:, 0], -1.0, 1.0)),
        rotation_from_vector(delta[:, 1:4]) @ state.rotation,
        state.centre + delta[:, 4:6],
        state.coefficients + delta[:, POSE:],
    )


def step(
    state: FaceState,
    mean: Floats,
    basis: Floats,
    targets: Floats,
    weights: Floats,
    *,
    noise: Floats,
    prior: Floats,
    prior_sd: Floats,
    inverse_depth: Floats | None = None,
    lines: Lines | None = None,
    damping: float = DAMPING,
) -> FaceState:
    """One damped Gauss-Newton step to (B, N, 2) ``targets`` with (B, N) ``weights`` and ``lines``.

    ``noise`` (B,) pixels; ``prior`` and ``prior_sd`` (P,) or (B, P). A coefficient of zero sd is
    fixed. ``inverse_depth`` as in ``project``.
    """
    hessian, gradient = _normal_equations(
        state, mean, basis, targets, weights, noise, inverse_depth, lines
    )
    frozen = np.broadcast_to(prior_sd, state.coefficients.shape) <= 0
    precision = np.where(frozen, 1e12, 1.0 / np.where(frozen, 1.0, prior_sd) ** 2)
    damp(hessian, damping)
    shape = np.arange(POSE, hessian.shape[1])
    hessian[:, shape, shape] += precision
    pull = np.where(frozen, 0.0, prior - state.coefficients)
    gradient[:, POSE:] += precision * pull
    return apply_step(state, np.linalg.solve(hessian, gradient[..., None])[..., 0])


def _normal_equations(
    state: FaceState,
    mean: Floats,
    basis: Floats,
    targets: Floats,
    weights: Floats,
    noise: Floats,
    inverse_depth: Floats | None,
    lines: Lines | None,
) -> tuple[Floats, Floats]:
    """``linearise`` without the Jacobian in memory; float64, from rows as precise as ``basis``."""
    b, n, _ = targets.shape
    q = POSE + basis.shape[-1]
    depth = np.zeros(b) if inverse_depth is None else inverse_depth
    count = 2 * n + (0 if lines is None else lines.weights.shape[1])
    rows = np.empty((count, q + 1), basis.dtype)
    out = np.empty((b, q + 1, q + 1))
    across = np.zeros((0, 2))
    for i in range(b):
        camera = state.rotation[i], state.scale[i], state.centre[i], depth[i], noise[i]
        shape = state.coefficients[i].astype(basis.dtype)
        own_mean, own_basis = (
            mean if mean.ndim == 2 else mean[i],
            basis if basis.ndim == 3 else basis[i],
        )
        used = fill_rows(
            *camera, own_mean, own_basis, shape, targets[i], weights[i], across, rows, 0
        )
        if lines is not None:
            own = lines.mean[i], lines.basis[i].astype(basis.dtype, copy=False), shape
            goal = lines.targets[i], lines.weights[i], lines.normal[i]
            used = fill_rows(*camera, *own, *goal, rows, used)
        out[i] = rows[:used].T @ rows[:used]
    return out[:, :q, :q], out[:, :q, q]


@numba.njit(cache=CACHE, nogil=True, fastmath=True, error_model="numpy")
def fill_rows(  # type: ignore[no-untyped-def]
    rotation,
    scale,
    centre,
    inverse_depth,
    noise,
    mean,
    basis,
    coefficients,
    targets,
    weights,
    normal,
    rows,
    used,
):
    """Write the weighted rows (J, residual) of one face's points; how many are ``used`` then.

    Two rows for a point, or its row across the line where there is a ``normal``. Points without
    weight are left out.
    """
    modes, across = basis.shape[2], len(normal) > 0
    p = np.empty(3)
    ahead = np.empty(3, basis.dtype)
    for n in range(len(targets)):
        if weights[n] <= 0.0:
            continue
        for c in range(3):
            moved = 0.0
            for k in range(modes):
                moved += basis[n, c, k] * coefficients[k]
            p[c] = mean[n, c] + moved
        tx = rotation[0, 0] * p[0] + rotation[0, 1] * p[1] + rotation[0, 2] * p[2]
        ty = rotation[1, 0] * p[0] + rotation[1, 1] * p[1] + rotation[1, 2] * p[2]
        tz = rotation[2, 0] * p[0] + rotation[2, 1] * p[1] + rotation[2, 2] * p[2]
        away = 1.0 / (1.0 + inverse_depth * tz)
        near = scale * away
        x, y = tx * near, ty * near
        ix, iy = x * inverse_depth * away, y * inverse_depth * away
        rx, ry = targets[n, 0] - x - centre[0], targets[n, 1] - y - centre[1]
        nx, ny = 1.0, 0.0
        if across:
            nx, ny = normal[n, 0], normal[n, 1]
            rx = rx * nx + ry * ny
            ry = 0.0
        w = weights[n] * geman_mcclure((rx * rx + ry * ry) / (noise * noise))
        root = np.sqrt(w) / noise
        for turn in range(1 if across else 2):
            if turn == 1:
                nx, ny, rx = 0.0, 1.0, ry
            row = rows[used]
            row[0] = root * (nx * x + ny * y)
            row[1] = root * (nx * (-ix * ty) + ny * (-tz * near - iy * ty))
            row[2] = root * (nx * (tz * near + ix * tx) + ny * (iy * tx))
            row[3] = root * (nx * (-ty * near) + ny * (tx * near))
            row[4], row[5] = root * nx, root * ny
            for c in range(3):
                ahead[c] = root * (
                    nx * (rotation[0, c] * near - ix * rotation[2, c])
                    + ny * (rotation[1, c] * near - iy * rotation[2, c])
                )
            for k in range(modes):
                row[6 + k] = (
                    ahead[0] * basis[n, 0, k]
                    + ahead[1] * basis[n, 1, k]
                    + ahead[2] * basis[n, 2, k]
                )
            row[6 + modes] = root * rx
            used += 1
    return used


@numba.njit(cache=CACHE, nogil=True, error_model="numpy")
def solve_step(rows, coefficients):  # type: ignore[no-untyped-def]
    """Whether a damped step exists, and the (6 + P,) step, from the ``fill_rows`` of one face.

    The prior of the (P,) ``coefficients`` is standard normal. Zeros follow the columns of
    ``fill_rows`` in float32 ``rows``, up to a multiple of ``gram.LANES``.
    """
    q, width = POSE + len(coefficients), rows.shape[1]
    product = np.empty((width, width), np.float32)
    multiply_by_own(rows, product)
    # the residuals follow the Jacobian in the rows, so their products are the right side
    system = np.empty((q, width))
    for i in range(q):
        system[i] = product[i]
        system[i, i] = system[i, i] * (1.0 + DAMPING) + 1e-9
    for k in range(len(coefficients)):
        system[POSE + k, POSE + k] += 1.0
        system[POSE + k, q] -= coefficients[k]
    step = np.empty((1, q))
    return solve_positive(system, step), step[0]


@numba.njit(cache=CACHE, nogil=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")
def solve_positive(system, x):  # type: ignore[no-untyped-def]
    """Solve positive definite equations by Cholesky's method in place; False where there are none.

    (Q, W) ``system``, contiguous: the upper triangle of the matrix, then R right sides, then what
    is ignored. It is overwritten. (R, Q) ``x``: the solutions.
    """
    q, width = system.shape
    flat = system.reshape(-1)
    for j in range(q):
        # whole registers, though they begin left of the diagonal: what is there is never read
        left = j // LANES * LANES
        to, count, k = j * width + left, width - left, 0
        while k + 4 <= j:
            _subtract_rows(flat, to, count, k * width + left, width, j - left)
            k += 4
        while k < j:
            factor = flat[k * width + j]
            end, a = np.uint64(to), np.uint64(k * width + left)
            for i in range(np.uint64(count)):
                flat[end + i] -= factor * flat[a + i]
            k += 1
        pivot = flat[j * width + j]
        if not pivot > 0.0:  # NaN, too
            return False
        inverse, end = 1.0 / np.sqrt(pivot), np.uint64(to)
        for i in range(np.uint64(count)):
            flat[end + i] *= inverse
    for side in range(len(x)):
        for j in range(q - 1, -1, -1):
            rest = system[j, q + side]
            for i in range(j + 1, q):
                rest -= system[j, i] * x[side, i]
            x[side, j] = rest / system[j, j]
    return True


@numba.njit(cache=CACHE, nogil=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")
def _subtract_rows(flat, to, count, first, line, at):  # type: ignore[no-untyped-def]
    """Subtract four rows, ``line`` numbers apart, each times its number ``at``, from ``count``."""
    end, a, step, f = np.uint64(to), np.uint64(first), np.uint64(line), np.uint64(at)
    b, c, d = a + step, a + step + step, a + step + step + step
    fa, fb, fc, fd = flat[a + f], flat[b + f], flat[c + f], flat[d + f]
    for i in range(np.uint64(count)):
        flat[end + i] -= fa * flat[a + i] + fb * flat[b + i] + fc * flat[c + i] + fd * flat[d + i]


@numba.njit(cache=CACHE, nogil=True, error_model="numpy")
def turn_by_vector(v, rotation):  # type: ignore[no-untyped-def]
    """A (3, 3) rotation turned by a rotation vector (Rodrigues)."""
    square = v[0] * v[0] + v[1] * v[1] + v[2] * v[2]
    angle = np.sqrt(square)
    a, b = 1.0 - square / 6.0, 0.5 - square / 24.0
    if angle >= 1e-6:
        a, b = np.sin(angle) / angle, (1.0 - np.cos(angle)) / square
    out = np.empty((3, 3))
    for c in range(3):
        x, y, z = rotation[0, c], rotation[1, c], rotation[2, c]
        kx, ky, kz = v[1] * z - v[2] * y, v[2] * x - v[0] * z, v[0] * y - v[1] * x
        out[0, c] = x + a * kx + b * (v[1] * kz - v[2] * ky)
        out[1, c] = y + a * ky + b * (v[2] * kx - v[0] * kz)
        out[2, c] = z + a * kz + b * (v[0] * ky - v[1] * kx)
    return out


@numba.njit(cache=CACHE, nogil=True, fastmath=True, error_model="numpy")
def accumulate_moments(points, px, weight, moments, targets):  # type: ignore[no-untyped-def]
    """Fill the (4, 4) and (4, 2) moments that ``pose_from_moments`` takes, of one face."""
    moments[:] = 0.0
    targets[:] = 0.0
    p = np.ones(4)
    for n in range(len(px)):
        w = weight[n]
        if w <= 0.0:
            continue
        p[0], p[1], p[2] = points[n, 0], points[n, 1], points[n, 2]
        for a in range(4):
            for b in range(a + 1):
                moments[a, b] += w * p[a] * p[b]
            targets[a, 0] += w * p[a] * px[n, 0]
            targets[a, 1] += w * p[a] * px[n, 1]
    for a in range(4):
        for b in range(a):
            moments[b, a] = moments[a, b]


@numba.njit(cache=CACHE, nogil=True, error_model="numpy")
def pose_of_moments(moments, targets):  # type: ignore[no-untyped-def]
    """``pose_from_moments`` of one face: scale, (3, 3) rotation and (2,) centre.

    They are not finite where the points lie in one plane or nearly so.
    """
    trace = moments[0, 0] + moments[1, 1] + moments[2, 2] + moments[3, 3]
    normal = moments.copy()
    for a in range(3):
        normal[a, a] += 1e-7 * trace
    affine = np.empty((2, 4))
    if not solve_positive(np.concatenate((normal, targets), axis=1), affine):
        affine[:] = np.nan
    rows = affine[:, :3].copy()
    # the polar decomposition: rows = root @ flat, where root is the square root of rows @ rows.T
    xx, yy = (rows[0] ** 2).sum(), (rows[1] ** 2).sum()
    xy = (rows[0] * rows[1]).sum()
    product = np.sqrt(max(xx * yy - xy * xy, 0.0))  # of the singular values
    total = np.sqrt(xx + yy + 2.0 * product)  # and their sum
    rotation, centre = np.empty((3, 3)), np.empty(2)
    for c in range(3):
        rotation[0, c] = ((yy + product) * rows[0, c] - xy * rows[1, c]) / (product * total)
        rotation[1, c] = ((xx + product) * rows[1, c] - xy * rows[0, c]) / (product * total)
    rotation[2] = np.cross(rotation[0], rotation[1])
    scale = max(total / 2.0, 1e-6)
    for side in range(2):
        turned = scale * (rotation[side] * moments[3, :3]).sum()
        centre[side] = (targets[3, side] - turned) / max(moments[3, 3], 1e-12)
    return scale, rotation, centre


def linearise(
    residual: Floats,
    jac: Floats,
    weights: Floats,
    noise: Floats,
    across: tuple[Lines, Floats, Floats] | None = None,
) -> tuple[Floats, Floats]:
    """(B, Q, Q) Gauss-Newton matrix and (B, Q) descent direction of the data term.

    (B, N, 2) ``residual``, its (B, N, 2, Q) derivatives ``jac``, (B, N) ``weights``, (B,)
    ``noise``. ``across``: lines, the (B, C, 2) pixels of their points and the (B, C, 2, Q)
    derivatives of these.
    """
    b, n, _, q = jac.shape
    w = weights * robust_weights(residual, noise[:, None]) / noise[:, None] ** 2
    hessian, gradient = normal_equations(
        jac.reshape(b, 2 * n, q), residual.reshape(b, 2 * n), np.repeat(w, 2, axis=1)
    )
    if across is not None:
        lines, px, turns = across
        away = ((lines.targets - px) * lines.normal).sum(-1)
        w = lines.weights * robust_weights(away[..., None], noise[:, None]) / noise[:, None] ** 2
        more = normal_equations(np.matmul(lines.normal[:, :, None], turns)[:, :, 0], away, w)
        hessian, gradient = hessian + more[0], gradient + more[1]
    return hessian, gradient


def initial_pose(mean: Floats, targets: Floats, weights: Floats, coefficients: int) -> FaceState:
    """Closed-form scaled-orthographic pose from (B, N, 2) ``targets``.

    ``mean``: their (N, 3) or (B, N, 3) points in ``head``. (B, N) ``weights``: at least four points
    with weight must not lie in one plane. The coefficients start at zero.
    """
    b, n, _ = targets.shape
    points = np.broadcast_to(mean, (b, n, 3))
    homogeneous = np.concatenate([points, np.ones((b, n, 1))], axis=2)
    weighted = np.swapaxes(homogeneous * weights[..., None], 1, 2)
    return pose_from_moments(weighted @ homogeneous, weighted @ targets, coefficients)


def pose_from_moments(points: Floats, targets: Floats, coefficients: int) -> FaceState:
    """``initial_pose`` from moments: weighted sums over points p = (x, y, z, 1) and targets t.

    ``points`` (B, 4, 4) are the sums of p p^T, ``targets`` (B, 4, 2) those of p t^T.
    """
    b = len(points)
    trace = np.trace(points, axis1=1, axis2=2)
    normal = points + 1e-7 * trace[:, None, None] * np.diag([1.0, 1.0, 1.0, 0.0])
    affine = np.linalg.solve(normal, targets)  # (B, 4, 2)
    rows = np.swapaxes(affine[:, :3], 1, 2)  # (B, 2, 3)
    u, s, vt = np.linalg.svd(rows, full_matrices=False)
    flat = u @ vt
    rotation = np.empty((b, 3, 3))
    rotation[:, :2] = flat
    (ax, ay, az), (bx, by, bz) = flat[:, 0].T, flat[:, 1].T
    rotation[:, 2] = np.array([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx]).T
    scale = np.maximum(s.mean(1), 1e-6)
    # The mean offset between the targets and the turned points.
    turned = scale[:, None] * np.einsum("bij,bj->bi", flat, points[:, 3, :3])
    centre = (targets[:, 3] - turned) / np.maximum(points[:, 3, 3], 1e-12)[:, None]
    return FaceState(scale, rotation, centre, np.zeros((b, coefficients)))
