"""The check of array axes finds what it is there for."""

from __future__ import annotations

import numpy as np
import pytest

from dff.face.geometry.mesh import SurfacePoints
from tests.shapes import WrongShape


def test_axes_that_disagree_with_a_fields_annotation_are_named() -> None:
    SurfacePoints(np.zeros(4, np.int64), np.zeros((4, 3)))
    with pytest.raises(WrongShape, match=r"SurfacePoints.triangle.*float64 \(4,\)"):
        SurfacePoints(np.zeros(4), np.zeros((4, 3)))
