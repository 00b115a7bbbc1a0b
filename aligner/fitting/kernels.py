"""The inner loops of the fit to soft correspondences, compiled by numba.

Each works on all B faces of a batch, one after the other, so that a face's numbers do not depend on
the others. Names and shapes are those of ``FitState``, ``Matches`` and ``Lines``. Only the anchors
that some pixel may correspond to are shaped and projected. ``dff.aligner.fitting.steps`` and
``dff.aligner.fitting.assessment`` call them and say what they compute.
"""

from __future__ import annotations

import numba
import numpy as np

from dff.face.numba_cache import CACHE
from dff.face.solve.gauss_newton import (
    accumulate_moments,
    fill_rows,
    pose_of_moments,
    solve_step,
    turn_by_vector,
)
from dff.face.solve.gram import LANES
from dff.face.solve.robust import geman_mcclure

NEGLIGIBLE = 2e-3  # share of the likeliest anchor's below which a candidate is not added


@numba.njit(cache=CACHE, nogil=True, fastmath=True, error_model="numpy")
def shape_anchors(anchor, mask, coefficients, mean, basis, shaped):  # type: ignore[no-untyped-def]
    """Fill ``shaped`` (A, 3), metres in head, for the candidates of the pixels in use.

    (A, 3) ``mean`` and (A, 3, P) ``basis``, float32; other rows are left as they are.
    """
    done = np.zeros(len(mean), np.bool_)
    modes = basis.shape[2]
    shape = coefficients.astype(np.float32)
    flat = basis.reshape(-1)
    for i in range(len(anchor)):
        if mask[i] <= 0.0:
            continue
        for j in range(anchor.shape[1]):
            a = anchor[i, j]
            if done[a]:
                continue
            done[a] = True
            for c in range(3):
                start = np.uint64((a * 3 + c) * modes)
                moved = np.float32(0.0)
                for k in range(np.uint64(modes)):
                    moved += flat[start + k] * shape[k]
                shaped[a, c] = np.float64(mean[a, c]) + moved


@numba.njit(cache=CACHE, nogil=True, fastmath=True, error_model="numpy")
def project_point(point, rotation, scale, centre, inverse_depth):  # type: ignore[no-untyped-def]
    """Pixels x, y of a point in head (``dff.face.geometry.camera.NearPerspective``)."""
    x, y, z = point[0], point[1], point[2]
    tx = rotation[0, 0] * x + rotation[0, 1] * y + rotation[0, 2] * z
    ty = rotation[1, 0] * x + rotation[1, 1] * y + rotation[1, 2] * z
    tz = rotation[2, 0] * x + rotation[2, 1] * y + rotation[2, 2] * z
    near = scale / (1.0 + inverse_depth * tz)
    return tx * near + centre[0], ty * near + centre[1]


@numba.njit(cache=CACHE, nogil=True, fastmath=True, error_model="numpy")
def project_anchors(  # type: ignore[no-untyped-def]
    anchor, mask, shaped, rotation, scale, centre, inverse_depth, predicted
):
    """Fill ``predicted`` (A, 2), pixels, for the candidates of the pixels in use."""
    done = np.zeros(len(shaped), np.bool_)
    for i in range(len(anchor)):
        if mask[i] <= 0.0:
            continue
        for j in range(anchor.shape[1]):
            a = anchor[i, j]
            if not done[a]:
                done[a] = True
                x, y = project_point(shaped[a], rotation, scale, centre, inverse_depth)
                predicted[a, 0], predicted[a, 1] = x, y


@numba.njit(cache=CACHE, nogil=True, fastmath=True, error_model="numpy")
def share_candidates(anchor, probability, px, predicted, slope, visible, share):  # type: ignore[no-untyped-def]
    """Fill ``share`` (K,) of one pixel's candidates; returns their sum.

    ``slope``: of the gate, -1 / (2 gate^2); zero for none.
    """
    top = np.float32(0.0)
    for j in range(len(anchor)):
        a = anchor[j]
        s = probability[j] * visible[a]
        if slope != 0.0:
            dx = px[0] - predicted[a, 0]
            dy = px[1] - predicted[a, 1]
            s *= np.exp(slope * (dx * dx + dy * dy))
        share[j] = s
        top = max(top, share[j])
    total = 0.0
    for j in range(len(anchor)):
        if share[j] < np.float32(NEGLIGIBLE) * top:
            share[j] = 0.0
        total += share[j]
    return total


@numba.njit(cache=CACHE, nogil=True, fastmath=True, error_model="numpy")
def blend_rows(anchor, share, total, mean, basis, out_mean, out_basis):  # type: ignore[no-untyped-def]
    """Weighted means of the candidates' rows: (3,) of ``mean``, (3 P,) of ``basis``."""
    first = True
    for j in range(len(anchor)):
        w = share[j] / np.float32(total)
        if w <= 0.0:
            continue
        a = anchor[j]
        for c in range(3):
            out_mean[c] = w * mean[a, c] + (0.0 if first else out_mean[c])
        row = basis[a]
        if first:
            for c in range(len(out_basis)):
                out_basis[c] = w * row[c]
        else:
            for c in range(len(out_basis)):
                out_basis[c] += w * row[c]
        first = False


@numba.njit(cache=CACHE, nogil=True, fastmath=True, error_model="numpy")
def blend_points(anchor, probability, mask, px, visible, shaped, points, weight):  # type: ignore[no-untyped-def]
    """Fill (N, 3) ``points`` and (N,) ``weight`` of one face's soft correspondences, ungated."""
    share = np.empty(anchor.shape[1], np.float32)
    for i in range(len(anchor)):
        weight[i] = 0.0
        points[i] = 0.0
        if mask[i] <= 0.0:
            continue
        total = share_candidates(anchor[i], probability[i], px[i], px, 0.0, visible, share)
        if total < 1e-6:
            continue
        weight[i] = mask[i] * total
        for j in range(anchor.shape[1]):
            w = share[j] / total
            if w > 0.0:
                for c in range(3):
                    points[i, c] += w * shaped[anchor[i, j], c]


@numba.njit(cache=CACHE, nogil=True)
def is_plausible(scale, rotation, centre, coefficients, old_scale, old_centre, face_size):  # type: ignore[no-untyped-def]
    """Whether one face's numbers, size and place are plausible, after those before."""
    ratio = scale / old_scale
    if not (np.isfinite(scale) and 0.1 < ratio < 10.0):
        return False
    for i in range(3):
        for j in range(3):
            if not np.isfinite(rotation[i, j]):
                return False
    for k in range(len(coefficients)):
        if not np.isfinite(coefficients[k]):
            return False
    dx, dy = centre[0] - old_centre[0], centre[1] - old_centre[1]
    return np.sqrt(dx * dx + dy * dy) < 5.0 * face_size


@numba.njit(cache=CACHE, nogil=True, error_model="numpy")
def move_by(step, face_size, i, scale, rotation, centre, coefficients):  # type: ignore[no-untyped-def]
    """Move face ``i`` by a ``step`` in the columns of the Jacobian, unless it is implausible."""
    new_scale = scale[i] * np.exp(min(max(step[0], -1.0), 1.0))
    turned = turn_by_vector(step[1:4], rotation[i])
    new_centre = centre[i] + step[4:6]
    shape = coefficients[i] + step[6:]
    if is_plausible(new_scale, turned, new_centre, shape, scale[i], centre[i], face_size):
        scale[i], rotation[i], centre[i], coefficients[i] = new_scale, turned, new_centre, shape


@numba.njit(cache=CACHE, nogil=True, error_model="numpy")
def pose_points(  # type: ignore[no-untyped-def]
    points, px, weight, noises, size, i, scale, rotation, centre, coefficients, inverse_depth
):
    """Pose of face ``i`` in closed form, once for each of ``noises``, without the outliers."""
    face_size = scale[i] * size
    inliers = weight.copy()
    moments, targets = np.empty((4, 4)), np.empty((4, 2))
    for noise in noises:
        accumulate_moments(points, px, inliers, moments, targets)
        new_scale, turned, new_centre = pose_of_moments(moments, targets)
        if is_plausible(
            new_scale, turned, new_centre, coefficients[i], scale[i], centre[i], face_size
        ):
            scale[i], rotation[i], centre[i] = new_scale, turned, new_centre
        reach = noise * face_size
        for n in range(len(px)):
            if weight[n] > 0.0:
                x, y = project_point(points[n], rotation[i], scale[i], centre[i], inverse_depth[i])
                square = (px[n, 0] - x) ** 2 + (px[n, 1] - y) ** 2
                inliers[n] = weight[n] * geman_mcclure(square / reach**2)


@numba.njit(cache=CACHE, nogil=True, error_model="numpy")
def find_poses(  # type: ignore[no-untyped-def]
    anchor,
    probability,
    mask,
    px,
    anchor_mean,
    no_basis,
    size,
    pose_noise,
    rigid_noise,
    observations,
    scale,
    rotation,
    centre,
    inverse_depth,
):
    """Poses of the mean face from all matches: in closed form, then by steps; moves the states."""
    faces, pixels = mask.shape
    shaped = anchor_mean.astype(np.float64)
    visible = np.ones(len(anchor_mean))
    points, weight = np.empty((pixels, 3)), np.empty(pixels)
    none = np.zeros((faces, 0))
    rows = np.zeros((2 * pixels, LANES), np.float32)
    across = np.zeros((0, 2))
    for i in range(faces):
        blend_points(anchor[i], probability[i], mask[i], px[i], visible, shaped, points, weight)
        pose_points(
            points, px[i], weight, pose_noise, size, i, scale, rotation, centre, none, inverse_depth
        )
        weight *= observations / pixels
        for noise in rigid_noise:
            face_size = scale[i] * size
            used = fill_rows(
                rotation[i],
                scale[i],
                centre[i],
                inverse_depth[i],
                noise * face_size,
                points,
                no_basis,
                none[i].astype(np.float32),
                px[i],
                weight,
                across,
                rows,
                0,
            )
            found, step = solve_step(rows[:used], none[i])
            if found:
                move_by(step, face_size, i, scale, rotation, centre, none)


@numba.njit(cache=CACHE, nogil=True, error_model="numpy")
def find_jumped(  # type: ignore[no-untyped-def]
    anchor,
    probability,
    mask,
    px,
    visible,
    anchor_mean,
    anchor_basis,
    size,
    pose_noise,
    still_reach,
    still,
    scale,
    rotation,
    centre,
    coefficients,
    inverse_depth,
):
    """(B,) whether the matches hold too little at each pose; then the pose is found anew."""
    faces, pixels = mask.shape
    jumped = np.zeros(faces, np.bool_)
    shaped = np.zeros((len(anchor_mean), 3))
    points, weight = np.empty((pixels, 3)), np.empty(pixels)
    for i in range(faces):
        shape_anchors(anchor[i], mask[i], coefficients[i], anchor_mean, anchor_basis, shaped)
        blend_points(anchor[i], probability[i], mask[i], px[i], visible[i], shaped, points, weight)
        reach, near = still_reach * scale[i] * size, 0.0
        for n in range(pixels):
            if weight[n] > 0.0:
                x, y = project_point(points[n], rotation[i], scale[i], centre[i], inverse_depth[i])
                square = (px[i, n, 0] - x) ** 2 + (px[i, n, 1] - y) ** 2
                near += weight[n] * geman_mcclure(square / reach**2)
        jumped[i] = near < still * weight.sum()
        if jumped[i]:
            pose_points(
                points,
                px[i],
                weight,
                pose_noise,
                size,
                i,
                scale,
                rotation,
                centre,
                coefficients,
                inverse_depth,
            )
    return jumped


@numba.njit(cache=CACHE, nogil=True, error_model="numpy")
def take_steps(  # type: ignore[no-untyped-def]
    anchor,
    probability,
    mask,
    px,
    visible,
    anchor_mean,
    anchor_basis,
    size,
    gate,
    noises,
    observations,
    line_mean,
    line_basis,
    line_targets,
    line_normal,
    line_weights,
    scale,
    rotation,
    centre,
    coefficients,
    inverse_depth,
):
    """Soft correspondences about each prediction, and a Gauss-Newton step for each of ``noises``.

    Moves the states. ``gate`` and ``noises``: fractions of the face size.
    """
    faces, pixels, keep = anchor.shape
    anchors, modes = len(anchor_mean), anchor_basis.shape[2]
    flat = anchor_basis.reshape(anchors, -1)
    shaped, predicted = np.zeros((anchors, 3)), np.zeros((anchors, 2))
    share = np.empty(keep, np.float32)
    mean, basis = np.empty((pixels, 3)), np.empty((pixels, 3, modes), np.float32)
    flat_basis = basis.reshape(pixels, -1)
    weight = np.empty(pixels)
    width = -(-(6 + modes + 1) // LANES) * LANES
    rows = np.zeros((2 * pixels + line_weights.shape[1], width), np.float32)
    across = np.zeros((0, 2))
    for i in range(faces):
        face_size = scale[i] * size
        shape_anchors(anchor[i], mask[i], coefficients[i], anchor_mean, anchor_basis, shaped)
        pose = rotation[i], scale[i], centre[i], inverse_depth[i]
        project_anchors(anchor[i], mask[i], shaped, *pose, predicted)
        slope = -0.5 / (gate * face_size) ** 2
        for n in range(pixels):
            weight[n] = 0.0
            if mask[i, n] <= 0.0:
                continue
            total = share_candidates(
                anchor[i, n], probability[i, n], px[i, n], predicted, slope, visible[i], share
            )
            if total < 1e-6:
                continue
            weight[n] = mask[i, n] * total * (observations / pixels)
            blend_rows(anchor[i, n], share, total, anchor_mean, flat, mean[n], flat_basis[n])
        for noise in noises:
            shape = coefficients[i].astype(np.float32)
            used = fill_rows(
                rotation[i],
                scale[i],
                centre[i],
                inverse_depth[i],
                noise * face_size,
                mean,
                basis,
                shape,
                px[i],
                weight,
                across,
                rows,
                0,
            )
            if line_weights.shape[1]:
                used = fill_rows(
                    rotation[i],
                    scale[i],
                    centre[i],
                    inverse_depth[i],
                    noise * face_size,
                    line_mean[i],
                    line_basis[i],
                    shape,
                    line_targets[i],
                    line_weights[i],
                    line_normal[i],
                    rows,
                    used,
                )
            found, step = solve_step(rows[:used], coefficients[i])
            if found:
                move_by(step, face_size, i, scale, rotation, centre, coefficients)


@numba.njit(cache=CACHE, nogil=True, error_model="numpy")
def follow_faces(  # type: ignore[no-untyped-def]
    anchor,
    probability,
    mask,
    px,
    visible,
    anchor_mean,
    anchor_basis,
    size,
    pose_noise,
    still_reach,
    still,
    gates,
    noises,
    observations,
    gate,
    tolerance,
    scale,
    rotation,
    centre,
    coefficients,
    inverse_depth,
):
    """``find_jumped``, ``take_steps`` and ``agree`` in one call; returns the (B, N) agreement.

    Moves the states. (C,) ``gates`` and (C, S) ``noises`` of C soft correspondences with S steps.
    """
    faces, modes = len(scale), coefficients.shape[1]
    find_jumped(
        anchor,
        probability,
        mask,
        px,
        visible,
        anchor_mean,
        anchor_basis,
        size,
        pose_noise,
        still_reach,
        still,
        scale,
        rotation,
        centre,
        coefficients,
        inverse_depth,
    )
    none = np.zeros((faces, 0, 2))
    for step in range(len(gates)):
        take_steps(
            anchor,
            probability,
            mask,
            px,
            visible,
            anchor_mean,
            anchor_basis,
            size,
            gates[step],
            noises[step],
            observations,
            np.zeros((faces, 0, 3)),
            np.zeros((faces, 0, 3, modes), np.float32),
            none,
            none,
            np.zeros((faces, 0)),
            scale,
            rotation,
            centre,
            coefficients,
            inverse_depth,
        )
    agreement, _ = agree(
        anchor,
        probability,
        mask,
        px,
        visible,
        anchor_mean,
        anchor_basis,
        size,
        gate,
        tolerance,
        scale,
        rotation,
        centre,
        coefficients,
        inverse_depth,
    )
    return agreement


@numba.njit(cache=CACHE, nogil=True, fastmath=True, error_model="numpy")
def agree(  # type: ignore[no-untyped-def]
    anchor,
    probability,
    mask,
    px,
    visible,
    anchor_mean,
    anchor_basis,
    size,
    gate,
    tolerance,
    scale,
    rotation,
    centre,
    coefficients,
    inverse_depth,
):
    """(B, N) agreement of each pixel and (B,) mean distance of the agreeing matches.

    ``gate``, ``tolerance`` and the distance are fractions of the face size.
    """
    faces, pixels, keep = anchor.shape
    anchors = len(anchor_mean)
    agreement, residual = np.zeros((faces, pixels)), np.zeros(faces)
    shaped, predicted = np.zeros((anchors, 3)), np.zeros((anchors, 2))
    share = np.empty(keep, np.float32)
    for i in range(faces):
        face_size = scale[i] * size
        shape_anchors(anchor[i], mask[i], coefficients[i], anchor_mean, anchor_basis, shaped)
        pose = rotation[i], scale[i], centre[i], inverse_depth[i]
        project_anchors(anchor[i], mask[i], shaped, *pose, predicted)
        slope, agreeing, far = -0.5 / (gate * face_size) ** 2, 0.0, 0.0
        for n in range(pixels):
            if mask[i, n] <= 0.0:
                continue
            total = share_candidates(
                anchor[i, n], probability[i, n], px[i, n], predicted, slope, visible[i], share
            )
            if total < 1e-6:
                continue
            x, y = -px[i, n, 0], -px[i, n, 1]
            for j in range(keep):
                w = share[j] / total
                x += w * predicted[anchor[i, n, j], 0]
                y += w * predicted[anchor[i, n, j], 1]
            distance = np.sqrt(x * x + y * y) / face_size
            agrees = mask[i, n] * total * np.exp(-0.5 * (distance / tolerance) ** 2)
            agreement[i, n] = agrees
            agreeing += agrees
            far += agrees * distance
        residual[i] = far / max(agreeing, 1e-9)
    return agreement, residual
