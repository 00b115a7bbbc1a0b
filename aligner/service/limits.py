"""How much a request may ask for, and how many are held at the same time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of the HTTP service. Raises ValueError for a limit that would refuse every request."""

    body: int = 16 << 20  # bytes of one photo, and of a request with one photo
    batch_body: int = 64 << 20  # bytes of a request with several photos
    photos: int = 32  # of one request
    # of one decoded photo; /v1/align/batch decodes until it holds about this many, then aligns
    pixels: int = 40_000_000
    person_pixels: int = 200_000_000  # of all photos of one person, held decoded at the same time
    boxes: int = 64  # of one request
    batch: int = 8  # photos of one request that are aligned in one call
    alignments: int = 1  # that run at the same time; one already uses every core
    # requests whose photos are held decoded: three bytes a pixel, in a batch at most 2 x ``pixels``
    decoded: int = 4
    requests: int = 64  # that have arrived and wait or are aligned; further ones are refused

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 1:
            raise ValueError(f"limits must be positive: {self}")


LIMITS = Limits()
