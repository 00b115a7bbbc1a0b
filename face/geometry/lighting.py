"""Diffuse light as nine spherical-harmonic coefficients for each colour channel.

Source: Ramamoorthi and Hanrahan, "An Efficient Representation for Irradiance Environment Maps"
(2001). Shading multiplies albedo in the image's own (sRGB-encoded) values, as usual in
morphable-model fitting: ``colour = albedo * (basis(normal) @ light)``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dff.face.arrays import Floats

C0, C1, C2, C3, C4 = 0.282095, 0.488603, 1.092548, 0.315392, 0.546274
"""Norms of the real spherical harmonics, in the order of ``basis``."""


def basis(normals: Floats) -> Floats:
    """(..., 3) unit normals in ``cam`` to the (..., 9) real spherical harmonics of order 0 to 2."""
    x, y, z = normals[..., 0], normals[..., 1], normals[..., 2]
    return np.stack(
        [
            np.full_like(x, C0),
            C1 * y,
            C1 * z,
            C1 * x,
            C2 * x * y,
            C2 * y * z,
            C3 * (3.0 * z * z - 1.0),
            C2 * x * z,
            C4 * (x * x - y * y),
        ],
        axis=-1,
    )


def basis_gradient(normals: Floats) -> Floats:
    """(..., 9, 3) derivatives of ``basis`` by the three components of (..., 3) normals."""
    x, y, z = normals[..., 0], normals[..., 1], normals[..., 2]
    out = np.zeros((*normals.shape[:-1], 9, 3), dtype=normals.dtype)
    out[..., 1, 1] = out[..., 2, 2] = out[..., 3, 0] = C1
    out[..., 4, 0], out[..., 4, 1] = C2 * y, C2 * x
    out[..., 5, 1], out[..., 5, 2] = C2 * z, C2 * y
    out[..., 6, 2] = 6.0 * C3 * z
    out[..., 7, 0], out[..., 7, 2] = C2 * z, C2 * x
    out[..., 8, 0], out[..., 8, 1] = 2.0 * C4 * x, -2.0 * C4 * y
    return out


def facing_normals(azimuths: Sequence[float], elevations: Sequence[float]) -> Floats:
    """(N, 3) unit normals in ``cam`` that face the camera, turned by angles in radians.

    ``azimuths``: to the right of the image; ``elevations``: down. Each with each, azimuths first.
    """
    return np.array(
        [
            [np.sin(a) * np.cos(e), np.sin(e), -np.cos(a) * np.cos(e)]
            for a in azimuths
            for e in elevations
        ]
    )


def ambient(level: float = 1.0) -> Floats:
    """(9, 3) light that shades every normal by ``level``."""
    light = np.zeros((9, 3))
    light[0] = level / C0
    return light


def shade(normals: Floats, light: Floats) -> Floats:
    """(..., 3) RGB shading, at least 0, of (..., 3) unit normals in ``cam`` under (9, 3) light."""
    return np.asarray(np.maximum(basis(normals) @ light, 0.0))
