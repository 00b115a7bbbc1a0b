"""Rendering of meshes: visibility by a backend, then one shared resolver of pixels.

Begin with ``frame.render``. Backends (``zbuffer``: numba on the CPU; ``gl``: pyrender through EGL)
only decide which triangle each pixel shows; barycentrics, surface point, depth and normal always
come from ``frame.resolve``.
"""
