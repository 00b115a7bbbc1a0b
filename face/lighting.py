"""Diffuse light as nine spherical-harmonic coefficients for each colour channel.

Source: Ramamoorthi and Hanrahan, "An Efficient Representation for Irradiance Environment Maps" (2001).
Shading multiplies albedo in the image's own (sRGB-encoded) values, as usual in morphable-model fitting:
``colour = albedo * (basis(normal) @ light)``.
"""

from __future__ import annotations

import numpy as np

from face.arrays import Floats

_C0, _C1, _C2, _C3, _C4 = 0.282095, 0.488603, 1.092548, 0.315392, 0.546274


def basis(normals: Floats) -> Floats:
    """(..., 3) unit normals in ``cam`` to the (..., 9) real spherical harmonics of order 0 to 2."""
    x, y, z = normals[..., 0], normals[..., 1], normals[..., 2]
    return np.stack(
        [
            np.full_like(x, _C0),
            _C1 * y,
            _C1 * z,
            _C1 * x,
            _C2 * x * y,
            _C2 * y * z,
            _C3 * (3.0 * z * z - 1.0),
            _C2 * x * z,
            _C4 * (x * x - y * y),
        ],
        axis=-1,
    )


def ambient(level: float = 1.0) -> Floats:
    """(9, 3) light that shades every normal by ``level``."""
    light = np.zeros((9, 3))
    light[0] = level / _C0
    return light


def shade(normals: Floats, light: Floats) -> Floats:
    """(..., 3) RGB shading of (..., 3) unit normals in ``cam`` under (9, 3) ``light``; never negative."""
    return np.asarray(np.maximum(basis(normals) @ light, 0.0))
