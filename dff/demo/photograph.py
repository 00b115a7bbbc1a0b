"""The demo's photograph: Eileen Collins, NASA, public domain."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

from dff.face.arrays import Bytes, Floats
from dff.face.geometry.camera import Box
from dff.infra.photos.landmark_files import parse_pts

LICENCE = "LicenseRef-public-domain"


def write_photograph(folder: Path) -> Bytes:
    """Write scikit-image's astronaut with a ``.pts`` file into a new ``folder``.

    (512, 512, 3) uint8 RGB of it.
    """
    folder.mkdir(parents=True)
    image = np.asarray(data.astronaut(), dtype=np.uint8)
    Image.fromarray(image).save(folder / "astronaut.png")
    (folder / "astronaut.pts").write_bytes(_landmark_file())
    return image


def read_landmarks() -> Floats:
    """(68, 2) annotated landmarks of the photograph, pixels."""
    return parse_pts(_landmark_file())


def face_region() -> tuple[slice, slice]:
    """Rows and columns of the photograph around its face."""
    box = Box.around(read_landmarks()).square(1.9)
    return slice(int(max(box.y0, 0)), int(box.y1)), slice(int(max(box.x0, 0)), int(box.x1))


def _landmark_file() -> bytes:
    return files("dff").joinpath("data/astronaut.pts").read_bytes()
