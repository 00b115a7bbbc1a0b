"""The features of a cascade: descriptors at projected points of the face."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch.nn import functional

from dff.aligner.config import VisibilityConfig
from dff.aligner.fitting.crop import Crops
from dff.aligner.fitting.fit_model import FitModel, FitState
from dff.aligner.fitting.visibility import compute_visibility
from dff.face.arrays import Array, Bytes, Floats, Integer
from dff.face.descriptor import Network, image_batch
from dff.face.solve.gauss_newton import evaluate_shape, project

BATCH = 32  # images in one call of the network


@dataclass(frozen=True)
class PointFeatures:
    """The points of a face at which features are read, and their descriptor."""

    # (M,) rows of the fit model's landmarks and, counted on from them, its anchors
    points: Integer[Array, " points"]
    extent: float  # crop pixels that a SIFT descriptor covers
    components: Floats | None  # (128, D) float32, of SIFT descriptors; None: the network's

    def locate(self, fit_model: FitModel, state: FitState) -> Floats:
        """(B, M, 2) pixels of the photos: where the points of B faces lie."""
        mean = np.concatenate([fit_model.landmark_mean, fit_model.anchor_mean])[self.points]
        basis = np.concatenate([fit_model.landmark_basis, fit_model.anchor_basis])[self.points]
        return project(state, evaluate_shape(mean, basis, state.coefficients), state.inverse_depth)

    def read(
        self,
        fit_model: FitModel,
        net: Network,
        images: Sequence[Bytes],
        crops: Crops,
        state: FitState,
        config: VisibilityConfig,
    ) -> tuple[Floats, Floats]:
        """(B, M, D) descriptors at the points of B faces, and (B, M) their visibility, 0 to 1."""
        places = crops.crop_from_photo(self.locate(fit_model, state))
        visibility = compute_visibility(fit_model, state, config)
        both = [visibility.landmarks(config.occlusion), visibility.anchors]
        visible = np.concatenate(both, axis=1)[:, self.points].astype(np.float32)
        pixels = np.stack([crops.cut(image, i) for i, image in enumerate(images)])
        if self.components is not None:
            sift = describe_sift(pixels, places, self.extent)
            return np.asarray(sift @ self.components), visible
        parts = [slice(i, i + BATCH) for i in range(0, len(pixels), BATCH)]
        described = [describe_dff(net, pixels[part], places[part]) for part in parts]
        return np.concatenate(described), visible


def describe_dff(net: Network, pixels: Bytes, places: Floats) -> Floats:
    """(B, M, D) float32 descriptors at (B, M, 2) ``places`` of (B, S, S, 3) crops."""
    with torch.inference_mode():
        maps = net(image_batch(torch.from_numpy(pixels))).descriptor.float()
    grid = torch.from_numpy((2 * places / pixels.shape[1] - 1).astype(np.float32))[:, None]
    found = functional.grid_sample(maps, grid, align_corners=False, padding_mode="border")
    return np.ascontiguousarray(found[:, :, 0].permute(0, 2, 1).numpy())


def describe_sift(pixels: Bytes, places: Floats, extent: float) -> Floats:
    """(B, M, 128) float32 upright SIFT descriptors of unit length, ``extent`` pixels wide.

    At (B, M, 2) ``places`` of (B, S, S, 3) crops.
    """
    sift = cv2.SIFT.create()
    out = []
    for crop, points in zip(pixels, places, strict=True):
        # OpenCV counts the first pixel's centre as 0, and its cells are 1.5 times the keypoint's
        # size wide.
        keys = [cv2.KeyPoint(float(x) - 0.5, float(y) - 0.5, extent / 6.0, 0.0) for x, y in points]
        _, found = sift.compute(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), keys)
        out.append(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-6))
    return np.asarray(out, dtype=np.float32)
