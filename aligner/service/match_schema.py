"""The answers of matching and of features over HTTP."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dff.aligner.service.schema import Answer, ImageSize, ModelInfo, Timing


class MatchedPoint(Answer):
    """A point of the first photo, found in the second."""

    name: str = Field(description="its pixels, the landmark or the vertex", examples=["nose_tip"])
    source: tuple[float, float] = Field(description="x, y in pixels of the first photo")
    x: float | None = Field(description="pixels of the second photo; null: not on a face")
    y: float | None = Field(description="pixels of the second photo; null: not on a face")
    probability: float = Field(
        description="that the second photo shows the point, at most 5 % of the face's size from "
        "the match",
        examples=[0.91],
    )
    visible: bool = Field(description="the second photo more likely shows the point than not")
    visibility: float = Field(description="probability that the second photo shows the point")
    status: Literal["visible", "not visible", "not on a face"] = Field(
        description="the same in words", examples=["visible"]
    )


class MatchAnswer(Answer):
    """Answer of `/v1/match`."""

    points: list[MatchedPoint] = Field(
        description="points, landmarks and vertices, in the order of the request"
    )
    image_a: ImageSize
    image_b: ImageSize
    model: ModelInfo
    timing: Timing
    request_id: str = Field(description="as in the header X-Request-ID")
    heat_map: str | None = Field(
        None,
        description="with heat_map=1: PNG in base64, the shape of the second photo, at most 1024 "
        "pixels wide and high: where it is similar to the points, transparent elsewhere",
    )


class DenseMatchAnswer(Answer):
    """Answer of `/v1/match/dense`: pictures to lay over the photos."""

    colours_a: str = Field(
        description="PNG in base64, the shape of the first photo, at most 1024 pixels wide and "
        "high: its face, in which each pixel has the colour of its match; transparent elsewhere"
    )
    colours_b: str = Field(description="the same of the second photo")
    visible_share: float = Field(
        description="of the pixels of the first photo's face, how many the second more likely "
        "shows than not"
    )
    image_a: ImageSize
    image_b: ImageSize
    model: ModelInfo
    timing: Timing
    request_id: str = Field(description="as in the header X-Request-ID")


class FeaturesAnswer(Answer):
    """Answer of `/v1/features`: the descriptors of a face."""

    descriptor: str = Field(
        description="base64 of float16, little-endian, row by row: `shape` numbers; the mean of "
        "the unit descriptors of five forward passes"
    )
    shape: tuple[int, int, int] = Field(
        description="rows, columns, dimensions", examples=[(80, 80, 32)]
    )
    face_probability: str = Field(
        description="base64 of float16: rows x columns, that a pixel shows the face"
    )
    grid_from_photo: tuple[tuple[float, float, float], tuple[float, float, float]] = Field(
        description="2 x 3: from pixels of the photo to columns and rows of the map; centres of "
        "first pixels at 0.5 in both"
    )
    box: tuple[float, float, float, float] = Field(
        description="of the face: x0, y0, x1, y1, pixels"
    )
    image: ImageSize
    model: ModelInfo
    timing: Timing
    request_id: str = Field(description="as in the header X-Request-ID")
