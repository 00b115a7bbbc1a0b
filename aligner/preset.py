"""Names of the aligner's presets; light to import, so that the command line may show them."""

from __future__ import annotations

from enum import StrEnum


class AlignPreset(StrEnum):
    """Settings for more speed or more accuracy, which ``AlignConfig.of`` knows."""

    fast = "fast"
    balanced = "balanced"
    best = "best"
