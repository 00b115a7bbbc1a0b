"""Rendering backends by name."""

from __future__ import annotations

from dff.face.render import zbuffer
from dff.face.render.visibility import Visibility

NAMES = ("zbuffer", "pyrender")


def backend(name: str) -> Visibility:
    """The backend ``zbuffer`` (numba) or ``pyrender`` (OpenGL through EGL).

    Raises ValueError for another name.
    """
    if name == "zbuffer":
        return zbuffer.visibility
    if name == "pyrender":
        # OpenGL is optional, so it is loaded on demand.
        from dff.face.render import gl

        return gl.visibility
    raise ValueError(f"no renderer {name!r}: there are {', '.join(NAMES)}")


def identity(name: str) -> str:
    """The identity of a backend's pixels: its name, with that of the OpenGL implementation.

    Raises ValueError for another name, NoRenderer where there is no off-screen OpenGL.
    """
    if name == "pyrender":
        from dff.face.render import gl

        return f"pyrender on {gl.renderer_name()}"
    backend(name)
    return name
