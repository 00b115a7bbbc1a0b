"""The targets of the detector's network for a scene, and the loss of its outputs.

Source: Zhou, Wang, Krähenbühl, "Objects as points" (arXiv 1904.07850): Gaussians about the centres,
penalty-reduced focal loss, L1 loss of the boxes at the centres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dff.face.arrays import Array, Float, Floats
from dff.face.detector_net import DETECTOR_CHANNELS, DETECTOR_STRIDE, UNIT
from dff.face.solve.gauss_newton import initial_pose
from dff.trainer.detection.config import DetectorTrainConfig
from dff.trainer.detection.scenes import DetectionScene


@dataclass(frozen=True)
class Targets:
    """Targets of the cells of a scene."""

    heat: Float[Array, "rows columns"]  # 1 at the centre of a face, falling about it
    counted: Float[Array, "rows columns"]  # 0 where a face may be detected, but need not
    answer: Float[Array, "rows columns 10"]  # box and rotation, as the network answers them
    weight: Float[Array, "rows columns"]  # of these answers: zero beside all centres


def build_targets(scene: DetectionScene, template: Floats, config: DetectorTrainConfig) -> Targets:
    """The targets of one scene. (68, 3) ``template``: landmarks of the mean face, metres."""
    cells = config.scene.size // DETECTOR_STRIDE
    heat, counted = np.zeros((cells, cells), np.float32), np.ones((cells, cells), np.float32)
    answer = np.zeros((cells, cells, DETECTOR_CHANNELS - 1), np.float32)
    weight = np.zeros((cells, cells), np.float32)
    low, high = scene.landmarks.min(1), scene.landmarks.max(1)
    centre, size = (low + high) / 2 / DETECTOR_STRIDE, high - low
    rows = _rotation_rows(scene.landmarks, template)
    grid = np.stack(np.meshgrid(np.arange(cells), np.arange(cells)), -1) + 0.5
    for i in np.argsort(-size.max(1)):  # the nearest, smallest faces last
        visible, longest = scene.visible[i], float(size[i].max())
        if visible < config.scene.hidden or longest > config.scene.too_large:
            continue
        spread = config.spread * longest / DETECTOR_STRIDE + config.least_spread
        cell = np.floor(centre[i]).astype(int)
        square = ((grid - centre[i]) ** 2).sum(-1)
        bump = np.exp(-0.5 * square / spread**2).astype(np.float32)
        possible = config.scene.smallest <= longest <= config.scene.largest
        if visible < config.scene.whole or not possible:
            counted[bump > 0.1] = 0.0
        elif (cell >= 0).all() and (cell < cells).all():
            bump[cell[1], cell[0]] = 1.0
            counted[bump > heat] = 1.0
            np.maximum(heat, bump, out=heat)
        else:
            continue
        near = bump > np.maximum(weight, 0.4)
        weight[near] = bump[near]
        answer[near, :2] = centre[i] - grid[near]
        answer[near, 2:4] = np.log(np.maximum(size[i], 1.0) / UNIT)
        answer[near, 4:] = rows[i]
    return Targets(heat, counted, answer, weight)


def _rotation_rows(landmarks: Floats, template: Floats) -> Floats:
    """(F, 6) the first two rows of the rotations of mean faces that fit (F, 68, 2) landmarks."""
    if not len(landmarks):
        return np.zeros((0, 6))
    points = np.broadcast_to(template, (len(landmarks), *template.shape))
    pose = initial_pose(points, landmarks, np.ones(landmarks.shape[:2]), 0)
    return np.asarray(pose.rotation[:, :2].reshape(-1, 6))


def detection_loss(found: Tensor, targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Terms of the loss of (B, channels, rows, columns) outputs: ``centre``, ``box``, ``rotation``.

    ``targets``: of the scenes, stacked. Each term is a mean over the centres of the batch.
    """
    heat, answers = found[:, 0].float(), found[:, 1:].float().permute(0, 2, 3, 1)
    target = targets["heat"]
    likely = torch.sigmoid(heat)
    at_centre = (target == 1.0).float()
    missed = functional.softplus(-heat) * (1.0 - likely) ** 2 * at_centre
    false = functional.softplus(heat) * likely**2 * (1.0 - target) ** 4 * (1.0 - at_centre)
    centres = at_centre.sum().clamp_min(1.0)
    weight = targets["weight"]
    total = weight.sum().clamp_min(1.0)
    # offsets in units of the face size, so that small faces count as much as large ones
    face = torch.exp(targets["answer"][..., 2:4].mean(-1, keepdim=True)) * UNIT / DETECTOR_STRIDE
    error = (answers - targets["answer"]).abs()
    shift = (error[..., :2] / face).sum(-1)
    return {
        "centre": ((missed + false) * targets["counted"]).sum() / centres,
        "box": ((shift + error[..., 2:4].sum(-1)) * weight).sum() / total,
        "rotation": (error[..., 4:].sum(-1) * weight).sum() / total,
    }
