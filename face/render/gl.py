"""Visibility by OpenGL: pyrender through EGL, on a GPU or on Mesa's software rasteriser.

An OpenGL context does not survive a fork, belongs to one thread, and cannot be released without
harm to others in the process (``eglTerminate``). So a process has one renderer, made at the first
frame and kept.
"""

from __future__ import annotations

import os
import threading
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dff.face.arrays import Floats, Ints
from dff.face.errors import NoRenderer
from dff.face.render.visibility import OUT_OF_REACH, SUBPIXELS, snapped

if TYPE_CHECKING:
    from dff.face.render.id_renderer import OffscreenIds

PACKAGES = ("libegl1", "libgl1", "libgl1-mesa-dri", "libglu1-mesa")
"""System libraries that this backend needs, as packages of Debian and Ubuntu."""


PYRENDER = "pip install --no-deps pyrender==0.1.45"
"""Apart from the extra, since pyrender pins a PyOpenGL that is too old for current Mesa."""


def visibility(
    px: Floats, screen_depth: Floats, faces: Ints, size: tuple[int, int]
) -> NDArray[np.int32]:
    """(H, W) triangle of each pixel; see ``dff.face.render.visibility.Visibility``.

    Raises NoRenderer where there is no off-screen OpenGL, and RuntimeError in another thread than
    the first frame's or in a process forked after it.
    """
    height, width = size
    grid = snapped(px)
    placed = (grid[:, 0] != OUT_OF_REACH) & np.isfinite(screen_depth)
    clip = np.zeros((len(px), 3), dtype=np.float32)
    if placed.any():
        near, far = screen_depth[placed].min(), screen_depth[placed].max()
        clip[:, :2] = grid * (2.0 / (SUBPIXELS * np.array([width, height]))) - 1.0
        clip[:, 2] = (screen_depth - near) * (
            1.8 / max(far - near, 1e-30)
        ) - 0.9  # well inside the clip volume
    triangles = np.ascontiguousarray(faces, dtype=np.uint32)
    if not placed.all():
        clip[~placed] = 0.0
        lost = ~placed[faces].all(axis=1)
        triangles = np.where(
            lost[:, None], np.uint32(0), triangles
        )  # no area: covers nothing, keeps its row
    return _renderer().triangle_ids(clip, triangles, size)


def renderer_name() -> str:
    """The OpenGL implementation's own name, for records (``llvmpipe`` is software)."""
    return _renderer().name


def _renderer() -> OffscreenIds:
    renderer, process, thread = _make()
    if process != os.getpid():
        raise RuntimeError(
            "the OpenGL renderer was made before this process was forked; start workers by spawn"
        )
    if thread != threading.get_ident():
        raise RuntimeError(
            "the OpenGL renderer belongs to the thread that drew first; draw from one thread"
        )
    return renderer


@lru_cache(maxsize=1)
def _make() -> tuple[OffscreenIds, int, int]:
    os.environ.setdefault("PYOPENGL_PLATFORM", "egl")  # read when OpenGL is imported
    os.environ.setdefault("LP_NUM_THREADS", "1")  # work is spread over processes, not within one
    try:
        from dff.face.render.id_renderer import OffscreenIds

        renderer = OffscreenIds()
    except ModuleNotFoundError as error:
        raise NoRenderer(
            f"{error.name} is not installed; install OpenGL's libraries with: "
            f"pip install 'deep-face-feature[gl]' && {PYRENDER}"
        ) from error
    except Exception as error:  # loaders raise AttributeError, AssertionError, GLError, ...
        raise NoRenderer(
            f"no off-screen OpenGL ({type(error).__name__}: {error}); "
            f"on Debian: apt-get install {' '.join(PACKAGES)}"
        ) from error
    return renderer, os.getpid(), threading.get_ident()
