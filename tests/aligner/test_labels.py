"""Labels of heads in pictures."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from dff.aligner.labels import BadgeWriter, Rectangle
from dff.face.arrays import Bytes

COLOURS = ((60, 230, 90), (80, 170, 255), (215, 120, 255))


def badges(shape: tuple[int, int], heads: list[Rectangle]) -> tuple[Bytes, list[Rectangle]]:
    """A grey picture with the numbers of three heads, and what these cover."""
    image = np.full((*shape, 3), 127, np.uint8)
    BadgeWriter().write(
        image, ["7", "12", "104"][: len(heads)], COLOURS[: len(heads)], heads, heads
    )
    grounds = []
    for colour in COLOURS[: len(heads)]:
        rows, columns = np.nonzero((image == colour).all(-1))
        grounds.append(Rectangle(columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    return image, grounds


@pytest.mark.parametrize("shape", [(220, 390), (690, 390), (1080, 1920), (2160, 3840)])
@pytest.mark.parametrize("size", [0.08, 0.35])
def test_numbers_are_readable_and_cover_no_head(shape: tuple[int, int], size: float) -> None:
    side = round(size * min(shape))
    places = [(0, 0), (shape[1] - side, 0), ((shape[1] - side) // 2, shape[0] - side)]
    heads = [Rectangle.at(x, y, (side, side)) for x, y in places]
    image, grounds = badges(shape, heads)
    for ground in grounds:
        assert ground.is_free(heads, shape)
        height = ground.y1 - ground.y0
        assert max(15, min(shape) // 40) <= height <= max(18, 0.07 * min(shape))
        part = image[ground.y0 : ground.y1, ground.x0 : ground.x1]
        ink = np.nonzero((part < 60).all(-1).any(1))[0]
        assert 0.4 * height < np.ptp(ink) < 0.8 * height
    assert not any(one.overlap([other]) for one, other in combinations(grounds, 2))


def test_a_head_that_fills_the_picture_has_its_number_where_the_face_is_not() -> None:
    image = np.zeros((400, 400, 3), np.uint8)
    face = Rectangle(60, 120, 400, 400)
    BadgeWriter().write(image, ["3"], COLOURS[:1], [Rectangle(-50, -50, 450, 450)], [face])
    rows, columns = np.nonzero((image == COLOURS[0]).all(-1))
    assert len(rows)
    assert not Rectangle(columns.min(), rows.min(), columns.max(), rows.max()).overlap([face])


def test_a_number_of_a_film_keeps_its_place_while_that_is_free() -> None:
    """A head that trembles at the height where there is just room for its number above it."""
    writer, places = BadgeWriter(), []
    for shift in (0, -3, 0, -3, 0):
        image = np.full((300, 400, 3), 127, np.uint8)
        head = Rectangle.at(150, 19 + shift, (100, 120))
        writer.write(image, ["5"], COLOURS[:1], [head], [head])
        rows, columns = np.nonzero((image == COLOURS[0]).all(-1))
        places.append((int(columns.min()) - head.x0, int(rows.min()) - head.y0))
    assert len(set(places)) == 2  # above, and once it has left that place beside the head
    assert len(set(places[1:])) == 1
