"""Labels in pictures of matches."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from dff.aligner.labels import Rectangle
from dff.aligner.matching.draw import LABEL_GAP, LABEL_REACH, MARK, place_labels

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
