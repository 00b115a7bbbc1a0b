"""Random light, in spherical harmonics of order 0 to 2 (``dff.face.geometry.lighting``), in cam."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dff.face.arrays import Floats
from dff.face.geometry import lighting
from dff.pipeline.scene.camera_sensor import sample_tint


@dataclass(frozen=True)
class LightConfig:
    """The distribution of lights. Ranges are uniform."""

    # A hard light is one lamp and hardly any ambient light.
    hard_share: float = 0.12
    coloured_share: float = 0.08  # of lights that mix lamps of different colours
    hard_ambient: tuple[float, float] = (0.06, 0.2)
    ambient: tuple[float, float] = (0.25, 0.9)
    lamps: tuple[int, int] = (1, 4)  # their number; the upper end is excluded
    hard_strength: tuple[float, float] = (0.6, 1.2)
    strength: tuple[float, float] = (2.0, 0.3)  # shape and scale of a gamma distribution
    azimuth_sd: float = 65.0  # degrees from straight before the face
    elevation: tuple[float, float] = (25.0, 30.0)  # degrees: mean, standard deviation
    elevation_limits: tuple[float, float] = (-50.0, 85.0)
    ambient_tint_sd: float = 0.06
    coloured_tint_sd: float = 0.30
    tint_sd: float = 0.08
    # Cameras keep some of the warmth of lamps and low sun: faces in photos are redder than a
    # perfect white balance would make them.
    warmth: tuple[float, float, float] = (1.06, 1.0, 0.93)  # RGB
    # Brightest minus darkest shading over its mean, in lights recovered from photos.
    unevenness: float = 0.6  # median
    unevenness_sd: float = 0.35  # of the logarithm
    # Photos are exposed for faces, whose skin is brighter than most of what surrounds it.
    exposure: tuple[float, float] = (0.62, 1.25)  # mean shading of normals towards the camera
    # A photo whose subject is black is not kept.
    least_frontal: float = 0.33  # shading of the normal towards the camera, over the mean


LIGHT = LightConfig()

# Ramamoorthi and Hanrahan 2001: the clamped cosine in spherical harmonics of order 0, 1, 2.
_COSINE = np.array([np.pi] + [2.0 * np.pi / 3.0] * 3 + [np.pi / 4.0] * 5)

_FACING = lighting.facing_normals(np.linspace(-1.2, 1.2, 9).tolist(), (-0.6, 0.0, 0.6))
"""Normals that face the camera."""

_FRONTAL = len(_FACING) // 2  # the normal straight towards the camera


def directional_light(direction: Floats) -> Floats:
    """(9,) light of a distant lamp in the unit (3,) ``direction`` from the face, in cam.

    It shades by ``max(normal . direction, 0)``, to second order.
    """
    return np.asarray(_COSINE * lighting.basis(direction))


def sample_light(*, rng: np.random.Generator, config: LightConfig = LIGHT) -> Floats:
    """(9, 3) float32 light in cam: ambient and coloured lamps, mostly above and before the face.

    Lights that are not hard are made as even as those recovered from photos. The exposure is
    normalised: normals that face the camera are shaded by ``config.exposure`` on average.
    """
    kind = rng.random()
    hard, coloured = kind < config.hard_share, kind > 1.0 - config.coloured_share
    warmth = np.array(config.warmth)
    tint = sample_tint(config.ambient_tint_sd, rng=rng) * warmth
    ambient = float(rng.uniform(*(config.hard_ambient if hard else config.ambient)))
    lamps = 1 if hard else int(rng.integers(*config.lamps))
    light = np.outer(lighting.ambient(ambient)[:, 0], tint)
    for _ in range(lamps):
        direction = _sample_direction(config, rng)
        strength = rng.uniform(*config.hard_strength) if hard else rng.gamma(*config.strength)
        tint_sd = config.coloured_tint_sd if coloured else config.tint_sd
        colour = sample_tint(tint_sd, rng=rng) * float(strength)
        light += np.outer(directional_light(direction), colour * warmth)
    if not hard:
        unevenness = rng.normal(np.log(config.unevenness), config.unevenness_sd)
        missing = _missing_ambient(light, float(np.exp(unevenness)))
        if missing > 0:
            light += np.outer(lighting.ambient(missing)[:, 0], tint)
    shading = lighting.shade(_FACING, light).mean(axis=1)
    exposure = float(rng.uniform(*config.exposure)) / float(shading.mean())
    return np.asarray(
        light * max(exposure, config.least_frontal / max(float(shading[_FRONTAL]), 0.05)),
        dtype=np.float32,
    )


def _sample_direction(config: LightConfig, rng: np.random.Generator) -> Floats:
    """(3,) unit vector in cam from the face to a lamp."""
    azimuth = np.deg2rad(rng.normal(0.0, config.azimuth_sd))
    elevation = np.deg2rad(np.clip(rng.normal(*config.elevation), *config.elevation_limits))
    x, z = np.sin(azimuth) * np.cos(elevation), -np.cos(azimuth) * np.cos(elevation)
    return np.array([x, -np.sin(elevation), z])


def _missing_ambient(light: Floats, unevenness: float) -> float:
    """The ambient light that makes (9, 3) light no more uneven; negative when it is more even."""
    grey = lighting.shade(_FACING, light).mean(axis=1)
    return float(np.ptp(grey)) / unevenness - float(grey.mean())
