"""Labels in pictures of matches."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from dff.aligner.matching.draw import MARK, place_labels

SIZE, SHAPE = (90, 16), (400, 500)

Rectangle = tuple[int, int, int, int]  # x0, y0, x1, y1


def overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def test_labels_of_near_points_are_apart_and_inside() -> None:
    points = list(np.random.default_rng(0).uniform([200, 150], [300, 250], (9, 2)))
    points += [np.array([499.0, 2.0]), np.array([1.0, 399.0])]
    placed = [
        (x, y, x + SIZE[0], y + SIZE[1])
        for x, y in place_labels(points, [SIZE] * len(points), SHAPE)
    ]
    marks = [
        (round(x) - MARK, round(y) - MARK, round(x) + MARK, round(y) + MARK) for x, y in points
    ]
    assert not any(overlap(one, other) for one, other in combinations(placed, 2))
    assert not any(overlap(one, mark) for one in placed for mark in marks)
    for x0, y0, x1, y1 in placed:
        assert 0 <= x0 < x1 <= SHAPE[1]
        assert 0 <= y0 < y1 <= SHAPE[0]


def test_a_label_is_to_the_right_of_its_point_where_there_is_room() -> None:
    (place,) = place_labels([np.array([200.0, 150.0])], [SIZE], SHAPE)
    assert place == (200 + MARK, 150 - SIZE[1])
