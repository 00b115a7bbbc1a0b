"""The albedo that a photo shows on a fitted head: where it can be trusted, and under which
light.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from dff.face.arrays import Array, Bools, Float, Floats
from dff.face.geometry import lighting
from dff.face.geometry.camera import Pinhole
from dff.face.geometry.interpolation import bilinear, smoothstep
from dff.face.model.albedo import AlbedoModel
from dff.face.render.frame import HIDDEN_DEPTH, sample_texture, visible
from dff.face.texture.fitted_head import FittedHead
from dff.face.texture.matting import MATTING, MattingConfig, estimate_matte
from dff.face.texture.occluders import OCCLUDERS, OccluderConfig, Occlusion, detect_occluders

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Brightness of RGB. Source: ITU-R BT.601."""


@dataclass(frozen=True)
class UnwrapConfig:
    """How a photo's colours become albedo. Pixels are those of a 256 px crop.

    Pairs are the ends of a smooth step of trust, unless they are called a range.
    """

    facing: tuple[float, float] = (0.12, 0.50)  # cosine towards the camera
    # From the head's silhouette, px: the fitted one is some pixels off, beyond is the background
    silhouette: tuple[float, float] = (1.0, 7.0)
    inner_silhouette: tuple[float, float] = (0.5, 3.0)  # as of the nose before the cheek
    crease: float = 0.012  # metres of depth from pixel to pixel that make an inner silhouette
    matte: tuple[float, float] = (0.3, 0.9)
    hidden_depth: float = HIDDEN_DEPTH
    blur: float = 1.2  # px, of colours that vertices take
    skin_facing: float = -0.3  # component z of normals of skin where the light is measured
    # Range of shading over its mean: a light beyond it is mixed with an even one. What a photo
    # shows darker is shadow or hair, which diffuse light does not explain.
    shading: tuple[float, float] = (0.55, 1.60)
    least_shading: float = 0.8  # that is divided out, over the range's lower end
    # Range of a light's colours over their geometric mean: a stronger cast stays in the albedo,
    # since dividing a nearly empty channel by its light would only enlarge its noise.
    tint: tuple[float, float] = (0.62, 1.6)
    skin_luma: float = 0.52  # of albedo: the middle skin
    # Share of a face's brightness (log, over the middle skin's) that is put down to the light, the
    # rest to the skin. A photo alone can't tell; people differ by 0.35 about the middle, the
    # exposure of their faces by 0.22.
    exposure: float = 0.28
    tones: int = 16  # levels of brightness by which a photo's colours are tabulated
    monochrome: float = 1.8 / 255.0  # spread of colours of one brightness in a photo without any
    # Of the share that a channel has in skin: a photo that shows less has lost that channel.
    saturated: float = 0.3
    matting: MattingConfig = MATTING
    occluders: OccluderConfig = OCCLUDERS


UNWRAP = UnwrapConfig()


@dataclass(frozen=True, eq=False)
class TexelObservation:
    """A photo as seen from the surface of its fitted head. S px is the side of its crop."""

    head: FittedHead
    config: UnwrapConfig
    base: Float[Array, "T T 3"]  # statistical albedo, in the model's uv
    colours: Float[Array, "S S 3"]  # float32 0..1
    smooth: Float[Array, "S S 3"]  # without the finest detail, for the colours of vertices
    light: Float[Array, "9 3"]  # cam
    least_shading: Float[Array, " 3"]  # that is divided out
    level: Float[Array, " 3"]  # mean shading of the skin
    trust: Float[Array, "S S"]  # 0..1: falls towards silhouettes, background and occluders
    matte: Float[Array, "S S"]  # 0..1, of the person
    occlusion: Occlusion
    tones: Float[Array, "tones 3"] | None  # colours by brightness, of a photo without others

    def confidence(self, points: Floats, normals: Floats) -> Floats:
        """(N,) 0..1 trust in the photo at (N, 3) points in cam with unit (N, 3) normals."""
        camera = self.head.recovery.camera
        if isinstance(camera, Pinhole):
            view = points / np.linalg.norm(points, axis=1, keepdims=True)
        else:
            view = np.array([[0.0, 0.0, 1.0]])
        facing = smoothstep(-(normals * view).sum(1), *self.config.facing)
        px = camera.px_from_cam(points)
        inside = (px > 0).all(1) & (px < np.array(self.trust.shape[::-1])).all(1)
        seen = visible(self.head.frame, points, camera, self.config.hidden_depth)
        return np.where(seen & inside, facing * bilinear(self.trust[..., None], px)[:, 0], 0.0)

    def albedo(self, points: Floats, normals: Floats) -> Floats:
        """(N, 3) smooth colours at (N, 3) points with (N, 3) normals, with the light divided
        out.
        """
        px = self.head.recovery.camera.px_from_cam(points)
        return bilinear(self.smooth, px) / self.shading(normals)

    def shading(self, normals: Floats) -> Floats:
        """(N, 3) by which colours at (N, 3) normals are divided."""
        return np.maximum(lighting.shade(normals, self.light), self.least_shading)


def observe(
    head: FittedHead, albedo: AlbedoModel, config: UnwrapConfig = UNWRAP
) -> TexelObservation:
    """The part of a fitted head's albedo that its photo shows."""
    recovery = head.recovery
    base = np.clip(albedo.texture(recovery.albedo), 0.0, 1.0)
    tones = tabulate_tones(recovery.crop[recovery.valid] / np.float32(255.0), config)
    if tones is not None:
        # What was fitted is only as bright as the photo; its colours are those of most people.
        luma_of_mean = np.maximum(albedo.mean @ LUMA, 0.02)[..., None]
        base = (base @ LUMA)[..., None] * albedo.mean / luma_of_mean
    rendered = sample_texture(head.frame, base, head.model.uv, head.model.uv_faces)
    matte = estimate_matte(head, config.matting)
    occlusion = detect_occluders(head, rendered, config.occluders)
    trust = _measure_trust(head, matte, occlusion, config)
    colours = recovery.crop.astype(np.float32) / np.float32(255.0)
    skin = head.skin & (head.frame.normal[..., 2] < config.skin_facing)
    seen_skin = skin & (trust > 0.5)
    luma = float(np.median(colours[seen_skin] @ LUMA)) if seen_skin.any() else config.skin_luma
    colours, light = _restore_channels(head, colours, base, rendered, tones, config)
    exposure = float(np.exp(config.exposure * np.log(max(luma, 0.02) / config.skin_luma)))
    normals = head.frame.normal[skin].astype(np.float64)
    light, level = _soften_light(light, normals, exposure, config)
    return TexelObservation(
        head=head,
        config=config,
        base=base,
        colours=colours,
        smooth=cv2.GaussianBlur(colours, (0, 0), config.blur * head.unit),
        light=light,
        least_shading=level * config.shading[0] * config.least_shading,
        level=level,
        trust=trust,
        matte=matte,
        occlusion=occlusion,
        tones=tones,
    )


def _measure_trust(
    head: FittedHead, matte: Floats, occlusion: Occlusion, config: UnwrapConfig
) -> Floats:
    """(S, S) 0..1."""
    frame, unit = head.frame, head.unit
    inside = (frame.mask & head.recovery.valid).astype(np.uint8)
    outer = cv2.distanceTransform(inside, cv2.DIST_L2, 5) / unit
    flat = _find_flat(head, config).astype(np.uint8)
    inner = cv2.distanceTransform(flat, cv2.DIST_L2, 5) / unit
    clear = np.float32(1.0) - occlusion.mask
    return (
        smoothstep(outer, *config.silhouette)
        * smoothstep(inner, *config.inner_silhouette)
        * smoothstep(matte, *config.matte)
        * clear
    )


def _find_flat(head: FittedHead, config: UnwrapConfig) -> Bools:
    """(S, S) where the depth changes little from pixel to pixel, and the background.

    The head's silhouette counts as flat: it has its own, wider margin.
    """
    box = np.ones((3, 3), dtype=np.uint8)
    mask, depth = head.frame.mask, head.frame.depth
    far = cv2.dilate(np.where(mask, depth, 0.0).astype(np.float32), box)
    near = cv2.erode(np.where(mask, depth, np.float32(1e9)), box)
    return np.asarray(~mask | (far - near < config.crease))


def _restore_channels(
    head: FittedHead,
    colours: Floats,
    base: Floats,
    rendered: Floats,
    tones: Floats | None,
    config: UnwrapConfig,
) -> tuple[Floats, Floats]:
    """(S, S, 3) colours with the channels that the photo has lost, and the (9, 3) light.

    They take the hue of the statistical albedo ``rendered``, of ``base`` in uv.
    """
    luma = np.maximum(rendered @ LUMA, np.float32(0.02))
    hues = np.where(head.frame.mask[..., None], rendered / luma[..., None], np.float32(1.0))
    light = head.recovery.light
    brightness = (colours @ LUMA)[..., None]
    if tones is None:
        return np.maximum(colours, config.saturated * brightness * hues), light
    share = LUMA * base.reshape(-1, 3).mean(0)
    grey = np.repeat((light @ share)[:, None] / share.sum(), 3, axis=1)
    return brightness * hues, grey


def tabulate_tones(colours: Floats, config: UnwrapConfig = UNWRAP) -> Floats | None:
    """(tones, 3) mean colours by brightness of a grey or toned photo's (N, 3) colours in 0..1.

    None for a photo in colour.
    """
    if len(colours) == 0:
        return None
    some = colours[:: max(len(colours) // 4096, 1)].astype(np.float64)
    levels = config.tones
    bins = np.clip((some @ LUMA * float(levels)).astype(np.int64), 0, levels - 1)
    count = np.bincount(bins, minlength=levels)
    totals = np.stack([np.bincount(bins, some[:, c], levels) for c in range(3)], axis=1)
    mean = totals / np.maximum(count, 1)[:, None]
    # Within a bin brightness still varies: what is left of a colour beyond it is what counts.
    rest = some - mean[bins]
    rest -= (rest @ LUMA)[:, None]
    if float(np.abs(rest).mean()) > config.monochrome:
        return None
    known = count > 0
    at = place_tones(levels)
    return np.stack([np.interp(at, at[known], mean[known, c]) for c in range(3)], axis=1)


def place_tones(levels: int) -> Floats:
    """(levels,) brightness 0..1 in the middle of each bin of a table of tones."""
    return (np.arange(levels) + 0.5) / float(levels)


def _soften_light(
    light: Floats, normals: Floats, exposure: float, config: UnwrapConfig
) -> tuple[Floats, Floats]:
    """(9, 3) ``light`` made fit to be divided out at (N, 3) ``normals``, and its (3,) mean shading.

    It is mixed with the even light of its mean until the shading keeps ``config.shading``, and
    scaled to an ``exposure``.
    """
    if len(normals) == 0:
        return light, np.full(3, exposure)
    darkest, brightest = config.shading
    shading = lighting.basis(normals) @ light
    mean = np.maximum(shading.mean(0), 1e-3)
    low, high = np.percentile(shading, (3, 97), axis=0) / mean
    share = np.minimum((1.0 - darkest) / np.maximum(1.0 - low, 1e-6), 1.0)
    share = np.minimum(share, (brightest - 1.0) / np.maximum(high - 1.0, 1e-6))
    mix = float(share.min())
    level = np.clip(mean / float(np.exp(np.log(mean).mean())), *config.tint)
    level *= exposure / float(level @ LUMA)
    even = (1.0 - mix) * lighting.ambient(1.0) * mean
    return (mix * light + even) * (level / mean), level
