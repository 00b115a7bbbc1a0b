"""The demonstration: one photograph through the whole chain, shown in one HTML report.

It needs the extra ``all``, so its modules import what they need at their top.
"""

from __future__ import annotations

from dff.face.extras import require_extra

with require_extra("all"):
    import httpx  # noqa: F401
    import skimage  # noqa: F401
