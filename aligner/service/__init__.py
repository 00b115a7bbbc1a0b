"""The aligner as an HTTP service.

It needs the extra ``serve``, so its modules import FastAPI, Starlette and Ray Serve at their top.
"""

from __future__ import annotations

from dff.face.extras import require_extra

with require_extra("serve"):
    import fastapi  # noqa: F401
    import python_multipart  # noqa: F401  (FastAPI needs it for forms, with a less clear error)
