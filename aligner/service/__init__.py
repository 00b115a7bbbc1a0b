"""The aligner as an HTTP service. Needs the extra ``serve``, which is why its modules import
FastAPI, Starlette and Ray Serve as they please.
"""

from __future__ import annotations

from dff.face.extras import require_extra

with require_extra("serve"):
    import fastapi  # noqa: F401
    import python_multipart  # noqa: F401  (FastAPI needs it for forms, and would say so less clearly)
