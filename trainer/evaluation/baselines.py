"""Descriptors to compare: the Deep Face Feature, and general ones as baselines.

Baselines: Lowe, "Distinctive image features from scale-invariant keypoints" (2004), dense; Tola,
Lepetit, Fua, "DAISY: an efficient dense descriptor" (2010); normalised correlation of patches.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch

from dff.face.arrays import Bytes, Floats
from dff.face.descriptor import STRIDE, Anchors, Network, image_batch
from dff.face.extras import require_extra
from dff.face.geometry.interpolation import bilinear
from dff.face.matching import describe_crop
from dff.trainer.evaluation.matching import Describe

with require_extra("train"):
    from skimage.feature import daisy


def make_network_descriptor(net: Network) -> Describe:
    """The Deep Face Feature of a network, interpolated between its output pixels."""

    def describe(image: Bytes, px: Floats) -> Floats:
        return _normalise(_describe_points(net, image, px))

    return describe


def make_anchor_descriptor(net: Network, anchors: Anchors, *, mirrored: bool = False) -> Describe:
    """Square roots of the anchor probabilities at a point, which are a unit vector.

    The cosine of two is Bhattacharyya's coefficient of the probabilities (``dff.face.matching``).
    ``mirrored``: the mirrored crop is described too, and the cosine is the mean of both.
    """

    def describe(image: Bytes, px: Floats) -> Floats:
        features = describe_crop(net, image, mirrored=mirrored)
        return features.anchor_roots(anchors, px / STRIDE)

    return describe


@torch.no_grad()
def _describe_points(net: Network, image: Bytes, px: Floats) -> Floats:
    """(N, D) a network's descriptors at (N, 2) px of a crop, float32."""
    features = net(image_batch(torch.from_numpy(image[None])))
    return _interpolate_grid(features.descriptor[0].permute(1, 2, 0).numpy(), px)


def _interpolate_grid(grid: Floats, px: Floats) -> Floats:
    """(N, D) float32 bilinear values at (N, 2) px of a (H, W, D) map of output pixels."""
    return bilinear(grid, px / STRIDE).astype(np.float32)


def make_patch_descriptor(side: int) -> Describe:
    """Grey patches of ``side`` px, whose cosine is the normalised cross-correlation."""
    steps = np.arange(side) - (side - 1) / 2
    window = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)

    def describe(image: Bytes, px: Floats) -> Floats:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        x, y = np.asarray(px[:, None] + window - 0.5, dtype=np.float32).transpose(2, 0, 1)
        flat = np.asarray(
            cv2.remap(grey, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT), dtype=np.float32
        )
        return _normalise(flat - flat.mean(1, keepdims=True))

    return describe


def make_sift_descriptor(width: float) -> Describe:
    """Upright SIFT (OpenCV); its 4 x 4 cells are ``width`` px wide together."""
    sift = cv2.SIFT.create()

    def describe(image: Bytes, px: Floats) -> Floats:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        # OpenCV's cells are 1.5 times the keypoint's size wide.
        points = [cv2.KeyPoint(float(x), float(y), width / 6.0, 0.0) for x, y in px - 0.5]
        _, found = sift.compute(grey, points)
        return _normalise(np.asarray(found, np.float32))

    return describe


def make_daisy_descriptor(radius: int) -> Describe:
    """DAISY (scikit-image) with an outer ring of ``radius`` px, interpolated between output px."""

    def describe(image: Bytes, px: Floats) -> Floats:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255.0
        # scikit-image describes pixel centres; means of 2 x 2 pixels have the centres of the
        # output pixels.
        padded = np.pad(cv2.blur(grey, (2, 2), anchor=(0, 0)), radius, mode="reflect")
        grid = np.asarray(daisy(padded, step=STRIDE, radius=radius), np.float32)
        return _normalise(_interpolate_grid(grid, px))

    return describe


def _normalise(vectors: Floats) -> Floats:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-6), dtype=np.float32)


def make_baselines() -> dict[str, Describe]:
    """General descriptors to compare with: patches, dense SIFT of three widths, and DAISY.

    Widths in px of the crop. The best width of SIFT depends on the views, so three are tried;
    patches and DAISY have one each, chosen without a search.
    """
    sift = {f"sift {width}": make_sift_descriptor(width) for width in (24, 48, 72)}
    return {"patches": make_patch_descriptor(16), **sift, "daisy": make_daisy_descriptor(16)}
