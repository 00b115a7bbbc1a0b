"""Errors of the demo."""

from __future__ import annotations

from dff.face.errors import DffError


class DemoError(DffError):
    """A step of the demo failed, or its folder holds other files."""
