"""Labels in pictures of matches."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from dff.aligner.labels import Rectangle, measure_text
from dff.aligner.matching.draw import (
    COLOURS,
    LABEL_GAP,
    LABEL_REACH,
    LABEL_SIZES,
    MARK,
    Label,
    place_labels,
    write_labels,
)

SIZE, SHAPE = (90, 16), (400, 500)


@pytest.mark.parametrize(("count", "around", "left_out"), [(9, 50, 0), (39, 120, 0), (90, 90, 40)])
def test_labels_of_near_points_are_apart_and_inside(count: int, around: int, left_out: int) -> None:
    """The last points are more than there is room for: their labels are thinned out."""
    low, high = [250 - around, 200 - around], [250 + around, 200 + around]
    points = list(np.random.default_rng(0).uniform(low, high, (count, 2)))
    points += [np.array([499.0, 2.0]), np.array([1.0, 399.0])]
    places = place_labels(points, [SIZE] * len(points), SHAPE)
    placed = [place for place in places if place is not None]
    assert left_out <= len(points) - len(placed) <= 1.5 * left_out
    marks = [Rectangle.around(point, MARK) for point in points]
    assert not any(one.grown(LABEL_GAP).overlap([two]) for one, two in combinations(placed, 2))
    for point, place in zip(points, places, strict=True):
        if place is not None:
            assert (place.x1 - place.x0, place.y1 - place.y0) == SIZE
            assert place.is_free(marks, SHAPE)
            nearest = np.clip(point, (place.x0, place.y0), (place.x1, place.y1))
            assert np.abs(nearest - point).max() <= LABEL_REACH + MARK + 1


def test_a_label_is_to_the_right_of_its_point_where_there_is_room() -> None:
    (place,) = place_labels([np.array([200.0, 150.0])], [SIZE], SHAPE)
    assert place == Rectangle.at(200 + MARK, 150 - SIZE[1] // 2, SIZE)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_label_is_readable_on_any_photo(colour: tuple[int, int, int]) -> None:
    """Its ground hides the photo, and the letters have the contrast that WCAG asks for (AA)."""
    noise = np.random.default_rng(1).integers(0, 256, (*SHAPE, 3)).astype(np.uint8)
    text = "12: 88%"
    picture = noise.copy()
    write_labels(picture, [Label(np.array([250.0, 200.0]), text, colour)])
    rows, columns = np.nonzero((picture != noise).any(2))
    assert np.ptp(columns) > measure_text(text, LABEL_SIZES[0], 2)[0]
    label = picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    linear = np.where(
        label / 255 <= 0.04045, label / 255 / 12.92, ((label / 255 + 0.055) / 1.055) ** 2.4
    )
    light = linear @ [0.2126, 0.7152, 0.0722]
    ground = linear.reshape(-1, 3)[(label == colour).all(2).ravel()][0] @ [0.2126, 0.7152, 0.0722]
    assert (np.abs(light - ground) < 1e-9).mean() > 0.4
    ink = light.min()
    assert (ground + 0.05) / (ink + 0.05) >= 4.5
    between = (light >= ink) & (light <= ground + 1e-9)
    assert between.all(), "nothing of the photo shows through"
