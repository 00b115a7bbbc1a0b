"""A pyrender renderer that draws triangle ids instead of colours, and the EGL context it lives in.

Only ``dff.face.render.gl`` imports this module: importing it needs OpenGL, and PYOPENGL_PLATFORM
must be set before. Stock pyrender output is no ground truth: it is multi-sampled, its depth is a
perspective one for every camera, and 8-bit colours hold no exact surface point. Here positions come
projected, so the camera plays no part.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import OpenGL.GL as gl
import pyrender
from numpy.typing import NDArray
from pyrender.platforms import egl
from pyrender.shader_program import ShaderProgram, ShaderProgramCache

SHADERS = Path(__file__).parent / "shaders"
FLAGS = (
    pyrender.RenderFlags.OFFSCREEN
    | pyrender.RenderFlags.FLAT
    | pyrender.RenderFlags.SKIP_CULL_FACES
)


class IdRenderer(pyrender.Renderer):
    """Draws a pyrender scene whose positions are in clip space.

    ``render`` returns (H, W) int32 rows of triangles, or -1.
    """

    _main_fb_dims: tuple[int, int] | tuple[None, None]

    def __init__(self, width: int, height: int) -> None:
        super().__init__(width, height)
        self._program_cache = ShaderProgramCache(shader_dir=str(SHADERS))

    def _get_primitive_program(
        self, primitive: Any, flags: int, program_flags: int
    ) -> ShaderProgram:
        program = self._program_cache.get_program("ids.vert.glsl", "ids.frag.glsl")
        if not program._in_context():
            program._add_to_context()
        return program

    def _configure_main_framebuffer(self) -> None:
        """One sample for each pixel, so that a pixel shows what its centre shows."""
        size = (self.viewport_width, self.viewport_height)
        if self._main_fb_dims == size:
            return
        self._delete_main_framebuffer()
        self._main_cb, self._main_db = gl.glGenRenderbuffers(2)
        gl.glBindRenderbuffer(gl.GL_RENDERBUFFER, self._main_cb)
        gl.glRenderbufferStorage(gl.GL_RENDERBUFFER, gl.GL_RGBA8, *size)
        gl.glBindRenderbuffer(gl.GL_RENDERBUFFER, self._main_db)
        gl.glRenderbufferStorage(gl.GL_RENDERBUFFER, gl.GL_DEPTH_COMPONENT32F, *size)
        self._main_fb = gl.glGenFramebuffers(1)
        gl.glBindFramebuffer(gl.GL_FRAMEBUFFER, self._main_fb)
        for attachment, buffer in (
            (gl.GL_COLOR_ATTACHMENT0, self._main_cb),
            (gl.GL_DEPTH_ATTACHMENT, self._main_db),
        ):
            gl.glFramebufferRenderbuffer(gl.GL_FRAMEBUFFER, attachment, gl.GL_RENDERBUFFER, buffer)
        self._main_fb_ms = self._main_fb  # what the forward pass draws into
        self._main_fb_dims = size
        gl.glDisable(gl.GL_DITHER)

    def _delete_main_framebuffer(self) -> None:
        if self._main_fb is not None:
            gl.glDeleteFramebuffers(1, [self._main_fb])
            gl.glDeleteRenderbuffers(2, [self._main_cb, self._main_db])
        self._main_fb = self._main_fb_ms = self._main_cb = self._main_db = None
        self._main_fb_dims = (None, None)

    def _read_main_framebuffer(self, scene: pyrender.Scene, flags: int) -> NDArray[np.int32]:
        width, height = self.viewport_width, self.viewport_height
        pixels = np.empty((height, width, 4), dtype=np.uint8)
        gl.glBindFramebuffer(gl.GL_READ_FRAMEBUFFER, self._main_fb)
        gl.glReadPixels(0, 0, width, height, gl.GL_RGBA, gl.GL_UNSIGNED_BYTE, pixels)
        return pixels.view("<i4")[..., 0] - np.int32(1)

    def __del__(self) -> None:
        """Release nothing: at exit the context may be gone before the renderer."""


class OffscreenIds:
    """An EGL context with one ``IdRenderer`` and one mesh whose buffers are updated in place."""

    def __init__(self) -> None:
        device = egl.get_device_by_index(int(os.environ.get("EGL_DEVICE_ID", "0")))
        self._platform = egl.EGLPlatform(1, 1, device=device)
        self._platform.init_context()
        self._renderer = IdRenderer(1, 1)
        self._scene = pyrender.Scene(bg_color=np.zeros(4))
        self._scene.add(pyrender.OrthographicCamera(1.0, 1.0))  # pyrender insists on a camera
        self._node: pyrender.Node | None = None
        self.name: str = gl.glGetString(gl.GL_RENDERER).decode()

    def triangle_ids(
        self, clip: NDArray[np.float32], triangles: NDArray[np.uint32], size: tuple[int, int]
    ) -> NDArray[np.int32]:
        """(H, W) rows of (F, 3) ``triangles``, -1 elsewhere.

        Their (V, 3) corners are in clip space, y down the image.
        """
        self._show(clip, triangles)
        self._renderer.viewport_height, self._renderer.viewport_width = size
        ids: NDArray[np.int32] = self._renderer.render(self._scene, FLAGS)
        return ids

    def _show(self, clip: NDArray[np.float32], triangles: NDArray[np.uint32]) -> None:
        if self._node is not None:
            (primitive,) = self._node.mesh.primitives
            if len(primitive.positions) == len(clip) and len(primitive.indices) == len(triangles):
                vertex_buffer, _, index_buffer = primitive._buffers
                gl.glBindBuffer(gl.GL_ARRAY_BUFFER, vertex_buffer)
                gl.glBufferSubData(gl.GL_ARRAY_BUFFER, 0, clip.nbytes, clip)
                if not np.array_equal(primitive.indices, triangles):
                    gl.glBindBuffer(gl.GL_ELEMENT_ARRAY_BUFFER, index_buffer)
                    gl.glBufferSubData(gl.GL_ELEMENT_ARRAY_BUFFER, 0, triangles.nbytes, triangles)
                    primitive.indices = triangles
                return
            self._scene.remove_node(self._node)
        primitive = pyrender.Primitive(
            positions=clip, indices=triangles, mode=pyrender.GLTF.TRIANGLES
        )
        self._node = self._scene.add(pyrender.Mesh([primitive]))
