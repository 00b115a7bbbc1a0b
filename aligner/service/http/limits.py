"""How much a request may ask for, how slowly it may arrive, and how many are held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

LARGE = 64 << 20  # bytes of a request with several photos
LARGE_BODIES = {
    "/v1/align/batch": LARGE,
    "/v1/align/person": LARGE,
    "/v1/align/person.glb": LARGE,
    "/v1/match": LARGE,
    "/v1/match/dense": LARGE,
}


@dataclass(frozen=True)
class Limits:
    """Limits of the aligner's routes. Raises ValueError for one that would refuse every request."""

    body: int = 16 << 20  # bytes of one photo, and of a request with one photo
    photos: int = 32  # of one request
    pixels: int = 40_000_000  # of one decoded photo
    person_pixels: int = 60_000_000  # of all photos of one person, held decoded at the same time
    boxes: int = 64  # of one request
    batch: int = 8  # photos of one request that are held decoded and aligned at a time
    step: int = 2  # faces of one photo that are aligned in one step
    shared_step: int = 4  # faces of several photos that are, where these are their last ones
    # bytes of all photos that are decoded or held decoded; 40 megapixels take 400 MB while decoded
    decoded: int = 480 << 20
    small_decoded: int = 80 << 20  # of these, bytes for photos of at most two megapixels
    requests: int = 64  # that have arrived and wait or are aligned; further ones are refused
    deadline: float = 10.0  # seconds within which a request is answered that names no deadline
    # A photo of more possible faces than ``step`` whose request names no deadline is refused, once
    # they are counted, if it would take longer than ``brief`` seconds and ``slowdown`` times as
    # long as it takes alone. Photos that come later delay it further; the aim is three times at
    # most. A photo of one face may have four possible ones, and three clients that send such photos
    # without a pause exceed it in a fraction of a second.
    brief: float = 0.75
    slowdown: float = 2.6
    sessions: int = 8  # of tracking, at a time
    silence: float = 60.0  # seconds without a frame after which a session ends
    longest_deadline: float = 60.0  # seconds that a request may name

    def __post_init__(self) -> None:
        if min(vars(self).values()) <= 0:
            raise ValueError(f"limits must be positive: {self}")


@dataclass(frozen=True)
class UploadLimits:
    """Limits of the uploads that the front accepts. Raises ValueError if one is not positive."""

    body: int = Limits.body  # bytes of a request
    # the same by path, where it differs
    bodies: Mapping[str, int] = field(default_factory=lambda: dict(LARGE_BODIES))
    header_seconds: float = 10.0  # until the headers of a request are there
    chunk_seconds: float = 10.0  # until the next bytes of a body arrive
    # After ``chunk_seconds`` a body must have arrived at this rate on average.
    rate: int = 16 << 10  # bytes a second
    # Connections that wait for a request. When there are more, the one that has waited longest is
    # ended: more than files that a process may open would leave none for health checks.
    idle: int = 512
    # Uploads at a time. When there are more, the one that has been silent longest is ended.
    uploads: int = 512
    memory: int = 128 << 10  # bytes of one upload that are kept in memory; the rest lies on disk
    stored: int = 2 << 30  # bytes of all uploads together

    def __post_init__(self) -> None:
        numbers = (
            self.body,
            self.header_seconds,
            self.chunk_seconds,
            self.rate,
            self.idle,
            self.uploads,
            self.memory,
            self.stored,
            *self.bodies.values(),
        )
        if not min(numbers) > 0:
            raise ValueError(f"limits must be positive: {self}")


LIMITS = Limits()
