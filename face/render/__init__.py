"""From a mesh to pixels: visibility by a backend, then one shared resolver for everything that is
known of a pixel.

``frame.render`` is the door. Backends (``zbuffer``: numba on the CPU; ``gl``: pyrender through EGL)
only say which triangle each pixel shows; barycentrics, surface point, depth and normal always come
from ``frame.resolve``.
"""
