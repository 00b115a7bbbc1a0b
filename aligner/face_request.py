"""Calls of the aligner that run in steps, and the faces that they ask to have aligned."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from dff.aligner.alignment import Alignment
from dff.aligner.detection import Detection
from dff.face.arrays import Bytes

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class FaceRequest:
    """Detected faces that a call in steps asks to have aligned."""

    images: list[Bytes]  # of each face
    detections: list[Detection]
    left: int  # faces that the call will ask for after these, as far as is known
    # of each face: whether a face of its image is sure that the call has asked for before
    beside_sure: list[bool]


Steps: TypeAlias = Generator[FaceRequest | None, list[Alignment] | None, T]
"""A call in steps: its requests are answered with an alignment for each face."""
