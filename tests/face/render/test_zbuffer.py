"""The z-buffer against a reference rasteriser: every triangle, every pixel, exact integers."""

from __future__ import annotations

import numpy as np
import pytest

from dff.face.arrays import Floats, Ints
from dff.face.model.morphable import MorphableModel
from dff.face.render import zbuffer
from dff.face.render.simd import LANES, SAMPLE_PATTERN
from dff.face.render.visibility import OUT_OF_REACH, SUBPIXELS, snapped
from tests.face.render.test_backends import random_view


def slow(px: Floats, depth: Floats, faces: Ints, size: tuple[int, int]) -> Ints:
    """(H, W) triangles by the definition, one triangle after the other over the whole image."""
    y, x = np.mgrid[: size[0], : size[1]] * SUBPIXELS + SUBPIXELS // 2
    ids, nearest = np.full(size, -1), np.full(size, np.inf)
    grid = snapped(px)
    for f, corners in enumerate(faces):
        g, d = grid[corners], depth[corners]
        if (g == OUT_OF_REACH).any() or not np.isfinite(d).all():
            continue
        area = (g[1, 0] - g[0, 0]) * (g[2, 1] - g[0, 1]) - (g[2, 0] - g[0, 0]) * (g[1, 1] - g[0, 1])
        if area == 0:
            continue
        inside, level = np.ones(size, dtype=bool), np.zeros(size)
        for corner in range(3):
            p, q = g[(corner + 1) % 3], g[(corner + 2) % 3]
            step = np.array([p[1] - q[1], q[0] - p[0]]) * np.sign(area)
            edge = step[0] * (x - p[0]) + step[1] * (y - p[1])
            inside &= (edge > 0) | (
                (edge == 0) & ((step[0] > 0) | ((step[0] == 0) & (step[1] > 0)))
            )
            level += edge * (d[corner] / abs(area))
        nearer = inside & (level < nearest)
        ids[nearer], nearest[nearer] = f, level[nearer]
    return ids


def test_the_reference_rasteriser_gives_the_same_triangles(
    toy_model: MorphableModel, open_head: MorphableModel
) -> None:
    rng = np.random.default_rng(0)
    for n in range(60):
        model, size = (
            (open_head, (23, 30)) if n == 0 else (toy_model, ((64, 64), (33, 7), (40, 90))[n % 3])
        )
        vertices, camera = random_view(model, size, rng, perspective=n % 2 == 0)
        px, depth = camera.px_from_cam(vertices), camera.screen_depth(vertices)
        assert np.array_equal(
            zbuffer.visibility(px, depth, model.faces, size), slow(px, depth, model.faces, size)
        )


def test_the_order_of_triangles_matters_only_for_ties(open_head: MorphableModel) -> None:
    """Shuffled triangles give the same image; of two equal triangles the first shows."""
    rng = np.random.default_rng(1)
    for n in range(6):
        vertices, camera = random_view(open_head, (96, 96), rng, perspective=n % 2 == 0)
        px, depth = camera.px_from_cam(vertices), camera.screen_depth(vertices)
        ids = zbuffer.visibility(px, depth, open_head.faces, (96, 96))
        order = rng.permutation(len(open_head.faces))
        shuffled = zbuffer.visibility(px, depth, open_head.faces[order], (96, 96))
        assert np.array_equal(np.where(shuffled < 0, -1, order[shuffled]), ids)
        twice = np.concatenate([open_head.faces, open_head.faces])
        assert np.array_equal(zbuffer.visibility(px, depth, twice, (96, 96)), ids)


def test_wide_triangles_and_narrow_images() -> None:
    """Triangles many lanes wide, and images narrower than the lanes, stay within their pixels."""
    rng = np.random.default_rng(2)
    for width in (1, 2, LANES - 1, LANES, LANES + 1, 5 * LANES + 3):
        for _ in range(20):
            px, depth = rng.uniform(-width, 2 * width, (9, 2)), rng.uniform(0.5, 2.0, 9)
            faces = np.arange(9).reshape(3, 3)
            size = (11, width)
            assert np.array_equal(
                zbuffer.visibility(px, depth, faces, size), slow(px, depth, faces, size)
            )


def test_depth_resolution_is_a_millionth_of_a_millimetre() -> None:
    """Of two sheets a nanometre apart, beside something a kilometre away, the nearer shows."""
    px = np.array(
        [[0.0, 0.0], [60.0, 0.0], [0.0, 60.0]] * 2 + [[50.0, 50.0], [64.0, 50.0], [50.0, 64.0]]
    )
    depth = np.array([1.0] * 3 + [1.0 - 1e-9] * 3 + [1000.0] * 3)
    faces = np.array([[0, 1, 2], [3, 4, 5], [6, 7, 8]])
    ids = zbuffer.visibility(px, depth, faces, (64, 64))
    assert set(ids[:20, :20].ravel().tolist()) == {1}
    assert (ids == 2).any()


def _cross(a: Floats, b: Floats) -> Floats:
    return np.asarray(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])


@pytest.mark.parametrize("perspective", [False, True])
def test_samples_are_those_of_a_finer_image(open_head: MorphableModel, perspective: bool) -> None:
    """An eightfold image has the samples at its pixel centres, with the depth of the surface."""
    rng = np.random.default_rng(3)
    size = (80, 70)
    vertices, camera = random_view(open_head, size, rng, perspective)
    px, depth = camera.px_from_cam(vertices), camera.screen_depth(vertices)
    pixels = rng.random(size) < 0.1
    whole = snapped(px) / SUBPIXELS  # the finer image must not snap the corners elsewhere
    fine = zbuffer.visibility(whole * 8, depth, open_head.faces, (size[0] * 8, size[1] * 8))
    blocks = fine.reshape(size[0], 8, size[1], 8).transpose(0, 2, 1, 3)[pixels]
    x, y = np.array(SAMPLE_PATTERN).T
    expected = blocks[:, (y - 1) // 2, (x - 1) // 2]
    everything = np.arange(len(open_head.faces)).reshape(-1, 1)
    found = zbuffer.samples(px, depth, open_head.faces, everything, pixels)
    assert np.array_equal(found.pixel, np.flatnonzero(pixels))
    assert np.array_equal(found.triangle, expected)
    row, column = np.nonzero(pixels)
    seen = found.triangle >= 0
    assert seen.any()
    assert not found.screen_depth[~seen].any()
    pixel, sample = np.nonzero(seen)
    at = np.stack([column[pixel] + x[sample] / 16, row[pixel] + y[sample] / 16], axis=1)
    corners = open_head.faces[found.triangle[seen]]
    a, b, c = (whole[corners[:, n]] for n in range(3))
    area = _cross(b - a, c - a)
    u, v = _cross(at - a, c - a) / area, _cross(b - a, at - a) / area
    there = (1 - u - v) * depth[corners[:, 0]] + u * depth[corners[:, 1]] + v * depth[corners[:, 2]]
    assert np.abs(there - found.screen_depth[seen]).max() < 1e-9
    nothing = zbuffer.samples(px, depth, open_head.faces, fine, np.zeros(size, dtype=bool))
    assert nothing.triangle.shape == (0, len(SAMPLE_PATTERN))


def test_back_facing_triangles_have_samples_where_they_are_visible(
    open_head: MorphableModel,
) -> None:
    """A back-facing triangle has samples if the image shows it."""
    rng = np.random.default_rng(4)
    px = np.array([[1.0, 1.0], [9.0, 1.0], [1.0, 9.0]])
    pixels = np.ones((10, 10), dtype=bool)
    for faces in (np.array([[0, 1, 2]]), np.array([[0, 2, 1]])):
        ids = zbuffer.visibility(px, np.ones(3), faces, (10, 10))
        shown = zbuffer.samples(px, np.ones(3), faces, ids, pixels).triangle
        assert (shown == 0).mean() == pytest.approx(0.32, abs=0.02)
    unseen = zbuffer.samples(px, np.ones(3), np.array([[0, 1, 2]]), np.full((10, 10), -1), pixels)
    assert (unseen.triangle == -1).all()
    for n in range(4):
        vertices, camera = random_view(open_head, (96, 96), rng, perspective=n % 2 == 0)
        px, depth = camera.px_from_cam(vertices), camera.screen_depth(vertices)
        ids = zbuffer.visibility(px, depth, open_head.faces, (96, 96))
        pixels = rng.random(ids.shape) < 0.3
        everything = np.arange(len(open_head.faces)).reshape(-1, 1)
        some, all_of = (
            zbuffer.samples(px, depth, open_head.faces, i, pixels).triangle
            for i in (ids, everything)
        )
        assert (some != all_of).mean() < 0.001
