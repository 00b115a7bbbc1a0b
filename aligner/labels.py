"""Labels in pictures: where they cover nothing that matters, and how they are written."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from dff.face.arrays import Bytes, Floats

PixelColour = tuple[int, int, int]  # RGB, 0 to 255

FONT = cv2.FONT_HERSHEY_SIMPLEX
DIGIT = 21  # pixels: height of a digit of size 1
STEADY = 4 / 3
"""Ratio of a thing's size to the one that it is drawn at, from which the latter changes."""


@dataclass(frozen=True)
class Rectangle:
    """Pixels of an image."""

    x0: int
    y0: int
    x1: int
    y1: int

    @staticmethod
    def at(x: float, y: float, size: tuple[int, int]) -> Rectangle:
        """The rectangle of this width and height with its upper left corner at (x, y)."""
        return Rectangle(round(x), round(y), round(x) + size[0], round(y) + size[1])

    @staticmethod
    def around(point: Floats, reach: int) -> Rectangle:
        """The pixels within ``reach`` of a (2,) point, across and down."""
        x, y = (round(float(value)) for value in point)
        return Rectangle(x - reach, y - reach, x + reach, y + reach)

    @staticmethod
    def of_points(points: Floats) -> Rectangle:
        """The bounding rectangle of (N, 2) points."""
        low, high = np.floor(points.min(0)), np.ceil(points.max(0))
        return Rectangle(int(low[0]), int(low[1]), int(high[0]), int(high[1]))

    def grown(self, reach: int) -> Rectangle:
        """The rectangle with ``reach`` more pixels on each side."""
        return Rectangle(self.x0 - reach, self.y0 - reach, self.x1 + reach, self.y1 + reach)

    def moved_into(self, shape: tuple[int, ...]) -> Rectangle:
        """The same, moved as far as it takes to lie in an image of this ``shape``."""
        x = max(min(self.x0, shape[1] - (self.x1 - self.x0)), 0)
        y = max(min(self.y0, shape[0] - (self.y1 - self.y0)), 0)
        return Rectangle.at(x, y, (self.x1 - self.x0, self.y1 - self.y0))

    def is_inside(self, shape: tuple[int, ...]) -> bool:
        """Whether it lies in an image of this ``shape``."""
        return min(self.x0, self.y0) >= 0 and self.x1 <= shape[1] and self.y1 <= shape[0]

    def overlap(self, others: Iterable[Rectangle]) -> int:
        """Square pixels that it shares with each of the others, in sum."""
        return sum(
            max(min(self.x1, one.x1) - max(self.x0, one.x0), 0)
            * max(min(self.y1, one.y1) - max(self.y0, one.y0), 0)
            for one in others
        )

    def is_free(self, taken: Iterable[Rectangle], shape: tuple[int, ...]) -> bool:
        """Whether it lies in an image of this ``shape`` and over none of ``taken``."""
        return self.is_inside(shape) and not self.overlap(taken)


def measure_text(text: str, size: float, thick: int) -> tuple[int, int]:
    """Width and height in pixels of a text without descenders."""
    width, height = cv2.getTextSize(text, FONT, size, thick)[0]
    return int(width), int(height)


def write_on_ground(
    image: Bytes, text: str, place: Rectangle, colour: PixelColour, *, size: float, thick: int
) -> None:
    """Write a text in the middle of a rectangle of one colour, black or white by the contrast."""
    cv2.rectangle(image, (place.x0, place.y0), (place.x1 - 1, place.y1 - 1), colour, -1)
    bright = sum(share * value for share, value in zip((0.3, 0.6, 0.1), colour, strict=True))
    ink = (0, 0, 0) if bright > 110 else (255, 255, 255)
    width, height = measure_text(text, size, thick)
    x = place.x0 + (place.x1 - place.x0 - width) // 2
    y = place.y1 - (place.y1 - place.y0 - height) // 2
    cv2.putText(image, text, (x, y), FONT, size, ink, thick, cv2.LINE_AA)


@dataclass
class SteadySizes:
    """The sizes, px, at which the things of a film are drawn.

    Lines and letters have whole pixels, and the size of a face differs a little in each frame. So
    each thing keeps the size that it was first drawn at until its own differs by a third.
    """

    drawn: dict[Hashable, float] = field(default_factory=dict)  # by thing

    def keep(self, thing: Hashable, size: float) -> float:
        """The size at which a ``thing`` of this size is drawn in the next frame."""
        former = self.drawn.setdefault(thing, size)
        if not former / STEADY < size < former * STEADY:
            self.drawn[thing] = size
        return self.drawn[thing]


@dataclass
class BadgeWriter:
    """Writes a text near each head of a picture, or of the frames of a film.

    In a film a text keeps its place beside its head while that is free, so that it does not hop,
    and its height.
    """

    former: dict[str, int] = field(default_factory=dict)  # the place by text: index of _places_near
    heights: SteadySizes = field(default_factory=SteadySizes)  # by text

    def write(
        self,
        image: Bytes,
        texts: Sequence[str],
        colours: Sequence[PixelColour],
        heads: Sequence[Rectangle],
        faces: Sequence[Rectangle],
    ) -> None:
        """Write a text on a coloured ground near each head of an (H, W, 3) image.

        ``heads`` and ``faces``: the pixels of each head, and those in it that are to be seen. Above
        the head if there is room, else beside or below it; over heads only where the image has no
        other room, and then as little as possible over faces.
        """
        placed: list[Rectangle] = []
        for text, colour, head, face in zip(texts, colours, heads, faces, strict=True):
            height = round(self.heights.keep(text, badge_height(face, image.shape)))
            size, thick = height / DIGIT / 1.7, max(1, round(height / 11))
            width = measure_text(text, size, thick)[0]
            ground = round(width + 0.7 * height), height
            place = self._place(text, head, ground, (heads, faces, placed), image.shape)
            placed.append(place)
            write_on_ground(image, text, place, colour, size=size, thick=thick)

    def _place(
        self,
        text: str,
        head: Rectangle,
        size: tuple[int, int],
        taken: tuple[Sequence[Rectangle], Sequence[Rectangle], Sequence[Rectangle]],
        shape: tuple[int, ...],
    ) -> Rectangle:
        """Where a text of this ``size`` goes; ``taken``: by heads, by faces, by other texts."""
        heads, faces, placed = taken
        candidates = _places_near(head, size, shape)
        order = list(range(len(candidates)))
        if text in self.former:
            order.sort(key=lambda i: i != self.former[text])
        free = (i for i in order if candidates[i].is_free([*heads, *placed], shape))
        least = min(order, key=lambda i: candidates[i].overlap([*faces, *placed]))
        self.former[text] = next(free, least)
        return candidates[self.former[text]]


def badge_height(face: Rectangle, shape: tuple[int, ...]) -> int:
    """Pixels of a label beside a face: readable in the whole picture, smaller at small faces."""
    shorter = min(shape[:2])
    least, most = max(0.028 * shorter, 15.0), max(0.06 * shorter, 18.0)
    return round(float(np.clip(0.3 * (face.y1 - face.y0), least, most)))


def _places_near(head: Rectangle, size: tuple[int, int], shape: tuple[int, ...]) -> list[Rectangle]:
    """Places in an image of this ``shape`` for a label of this width and height, best first."""
    (width, height), gap = size, size[1] // 4
    left, right = max(head.x0, 0), min(head.x1, shape[1])
    top, bottom = max(head.y0, 0), min(head.y1, shape[0])
    middle = (left + right - width) / 2
    corners = [
        (middle, top - gap - height),
        (right - width, top - gap - height),
        (left, top - gap - height),
        (right + gap, top),
        (left - gap - width, top),
        (middle, bottom + gap),
        (0, 0),
        (shape[1], 0),
        (0, shape[0]),
        (shape[1], shape[0]),
    ]
    return [Rectangle.at(x, y, size).moved_into(shape) for x, y in corners]
