"""The shading pass equals the reference implementation; outlines are anti-aliased by area."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dff.face.arrays import Floats
from dff.face.geometry.camera import Camera, Pinhole, WeakPerspective
from dff.face.geometry.lighting import ambient
from dff.face.model.morphable import MorphableModel
from dff.face.render import frame as fr, zbuffer
from dff.face.render.shading import (
    NO_VERTEX_COLOURS,
    ShadedImage,
    Texture,
    VertexColours,
    antialias,
    find_outlines,
    shading_pass,
)
from tests.face.render.test_backends import random_view

SIZE = (90, 300)  # wider than a tile


def scene(model: MorphableModel, n: int) -> tuple[fr.Mesh, fr.Frame, Texture, Floats, Floats]:
    """A random view, its texture (also as numbers), and a light that leaves some of it dark."""
    rng = np.random.default_rng(n)
    vertices, camera = random_view(model, SIZE, rng, perspective=n % 2 == 0)
    mesh = fr.Mesh.of(vertices, model.faces, camera)
    image = rng.integers(0, 256, (61, 83, 4)) / 255.0
    texture = Texture.of(image, model.uv, model.uv_faces)
    return (
        mesh,
        fr.render(vertices, model.faces, camera, SIZE),
        texture,
        image.astype(np.float32),
        rng.normal(size=(9, 3)),
    )


@pytest.mark.parametrize("n", range(6))
def test_the_reference_implementation_has_the_same_colours(
    open_head: MorphableModel, n: int
) -> None:
    """Depth to the bit; colours, albedo times light, within a hundredth of a level."""
    mesh, frame, texture, image, light = scene(open_head, n)
    ids = mesh.seen(SIZE)
    assert np.array_equal(ids, frame.triangle)
    wall = np.random.default_rng(n).random((*SIZE, 3)).astype(np.float32)
    fast = shading_pass(mesh, ids, texture, light, wall.copy())
    assert np.array_equal(fast.depth, frame.depth)
    surface = fr.sample_texture(frame, image, open_head.uv, open_head.uv_faces)
    slow = fr.shaded(frame, surface[..., :3], light)
    brightest = max(float(slow.max()), 1.0)
    over = np.where(frame.mask[..., None], slow + surface[..., 3:] * (wall - slow), wall)
    assert np.abs(fast.image - over).max() < 0.02 / 255.0 * brightest
    assert (slow[frame.mask] == 0.0).any()


def test_triangles_after_the_textured_ones_take_vertex_colours(open_head: MorphableModel) -> None:
    """Triangles after the textured ones take vertex colours, and the pattern at its strength."""
    mesh, frame, texture, _, light = scene(open_head, 1)
    rng = np.random.default_rng(5)
    own = mesh.vertices[: len(mesh.vertices) // 2] - np.array([0.0, 0.0, 0.02])
    inner = open_head.faces[(open_head.faces < len(own)).all(1)]
    faces = np.concatenate([open_head.faces, inner + np.int32(len(mesh.vertices))])
    both = fr.Mesh.of(np.concatenate([mesh.vertices, own]), faces, mesh.camera)
    attributes = rng.random((len(own), 6)).astype(np.float32)
    attributes[:, 5] = 0.0
    colours = VertexColours(len(mesh.vertices), attributes, np.ones((4, 4), np.float32))
    ids = both.seen(SIZE)
    fast = shading_pass(both, ids, texture, light, black(), colours)
    whole = fr.resolve(ids, both.vertices, faces, mesh.camera)
    trimmed = ids >= len(open_head.faces)
    assert trimmed.sum() > 500
    assert (frame.mask & ~trimmed).sum() > 100
    values = np.concatenate([np.zeros((len(mesh.vertices), 3)), attributes[:, :3]])
    slow = fr.shaded(whole, fr.interpolate(whole, values, faces), light)
    assert np.abs(fast.image[trimmed] - slow[trimmed]).max() < 0.02 / 255.0
    assert np.array_equal(fast.depth, whole.depth)
    # A pattern of ones doubles what its strength of one touches, up to white.
    strong = attributes.copy()
    strong[:, 5] = 1.0
    flat = np.zeros((9, 3))
    flat[0] = ambient()[0]
    plain, patterned = (
        shading_pass(both, ids, texture, flat, black(), replace(colours, attributes=each)).image
        for each in (attributes, strong)
    )
    expected = np.minimum(2.0 * plain[trimmed], 1.0)
    assert np.abs(patterned[trimmed] - expected).max() < 0.01 / 255.0
    assert np.array_equal(plain[~trimmed], patterned[~trimmed])


def black() -> Floats:
    return np.zeros((*SIZE, 3), dtype=np.float32)


def flat_picture(
    mesh: fr.Mesh, size: tuple[int, int], colour: float, background: float
) -> ShadedImage:
    """An image of two colours, with anti-aliased outlines."""
    ids = mesh.seen(size)
    depth = fr.resolve(ids, mesh.vertices, mesh.faces, mesh.camera).depth
    image = np.full((*size, 3), background, dtype=np.float32)
    image[ids >= 0] = colour
    out = ShadedImage(
        ids, depth, (ids >= 0).astype(np.uint8), np.ones(len(mesh.faces), np.uint8), image
    )
    antialias(out, mesh)
    return out


@pytest.mark.parametrize(
    "camera",
    [Pinhole(200.0, np.array([40.0, 40.0])), WeakPerspective(200.0, np.array([40.0, 40.0]))],
)
def test_an_outline_has_the_colour_of_the_areas_it_parts(camera: Camera) -> None:
    """White over black adds up to a square's area at any angle.

    Colours lie between both, and each pixel is off by less than two of eight samples.
    """
    for degrees in (0.0, 3.0, 11.0, 30.0, 45.0):
        turn = np.deg2rad(degrees)
        square = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]) * 0.1 + 0.0031
        square = square @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        faces = np.array([[0, 2, 1], [0, 3, 2]])
        mesh = fr.Mesh.of(np.column_stack([square, np.ones(4)]), faces, camera)
        out = flat_picture(mesh, (80, 80), 1.0, 0.0).image[..., 0]
        assert out.sum() == pytest.approx(1600.0, abs=4.0)
        assert out.min() == 0.0
        assert out.max() == 1.0
        fine = zbuffer.visibility(mesh.px * 16, mesh.screen_depth, mesh.faces, (1280, 1280)) >= 0
        exact = fine.reshape(80, 16, 80, 16).mean(axis=(1, 3))
        assert np.abs(out - exact).max() < 0.26
        assert np.abs(out - exact)[(exact > 0) & (exact < 1)].mean() < 0.09


def test_outlines_have_no_fringes(open_head: MorphableModel) -> None:
    """A face of the background's colour leaves no trace.

    Over another colour all pixels lie between both, and those away from outlines keep their own.
    """
    mesh, *_ = scene(open_head, 2)
    assert np.abs(flat_picture(mesh, SIZE, 0.4, 0.4).image - 0.4).max() < 1e-6
    seen = flat_picture(mesh, SIZE, 0.9, 0.1)
    out, mask = seen.image, seen.triangle >= 0
    hard = np.where(mask[..., None], np.float32(0.9), np.float32(0.1)) + np.zeros(
        (1, 1, 3), np.float32
    )
    edge = find_outlines(replace(seen, image=hard))
    assert out.min() >= np.float32(0.1) - 1e-6
    assert out.max() <= np.float32(0.9) + 1e-6
    assert (out[mask & ~edge] == np.float32(0.9)).all()
    assert (out[~mask & ~edge] == np.float32(0.1)).all()
    assert ((out[..., 0] > 0.11) & (out[..., 0] < 0.89) & edge).sum() > 100


def test_the_background_of_an_outline_is_its_own() -> None:
    """Where an outline cuts a covered pixel, the background beside it is blended."""
    square = np.array(
        [[-0.2, -0.2, 1.0], [0.0137, -0.2, 1.0], [0.0137, 0.2, 1.0], [-0.2, 0.2, 1.0]]
    )
    faces = np.array([[0, 2, 1], [0, 3, 2]])
    mesh = fr.Mesh.of(square, faces, WeakPerspective(100.0, np.array([20.0, 20.0])))
    ids = mesh.seen((40, 40))
    image = np.zeros((40, 40, 3), np.float32)
    image[..., 2] = np.arange(40)[:, None] / 40.0  # a background that changes from row to row
    image[ids >= 0] = (1.0, 0.0, 0.0)
    seen = ShadedImage(
        ids, (ids >= 0) * np.float32(1.0), (ids >= 0).astype(np.uint8), np.ones(2, np.uint8), image
    )
    antialias(seen, mesh)
    line = image[5:35, 21]  # the outline is at x = 21.37
    assert np.abs(line[:, 0] - 0.375).max() < 1e-6
    assert np.abs(line[:, 2] - 0.625 * np.arange(5, 35) / 40.0).max() < 0.025 * 0.625 + 1e-6


@pytest.mark.parametrize("n", [0, 1])
def test_outlines_are_those_of_dense_supersampling(open_head: MorphableModel, n: int) -> None:
    """Outlines are close to those of fifteen by fifteen samples, each coloured by itself.

    The error is less than a third of that of hard outlines, and the mean colour is the same.
    """
    mesh, frame, _, _, _ = scene(open_head, n)
    row, column = np.mgrid[:64, :64] / 64.0
    image = np.stack([row, column, 1.0 - row, np.zeros_like(row)], axis=2)
    texture, light = Texture.of(image, open_head.uv, open_head.uv_faces), ambient()
    light[3] = 0.2

    def colour(part: fr.Frame) -> fr.Image:
        stored = texture.texels[..., :3].astype(np.float32) / 255.0
        return fr.shaded(
            part, fr.sample_texture(part, stored, open_head.uv, open_head.uv_faces), light
        )

    shown, coverage = fr.supersampled(
        frame, mesh.vertices, open_head.faces, mesh.camera, colour, factor=15
    )
    exact = shown + (1.0 - coverage[..., None]) * np.float32(0.3)
    hard = shading_pass(mesh, frame.triangle, texture, light, black() + np.float32(0.3))
    soft = replace(hard, image=hard.image.copy())
    antialias(soft, mesh)
    edge = (coverage > 0) & (coverage < 1)
    wrong, left = (np.abs(each.image - exact)[edge].mean() for each in (hard, soft))
    assert left < 0.3 * wrong
    assert np.abs((soft.image - exact)[edge].mean(0)).max() < 0.004


def test_outlines_are_where_depth_jumps_or_something_else_begins(open_head: MorphableModel) -> None:
    """Within the mesh only where colours differ; at the border of the background always."""
    mesh, frame, texture, _, light = scene(open_head, 3)
    parts = (
        np.isin(open_head.region, [open_head.region_names.index(n) for n in ("eyes", "ears")]) + 1
    )
    seen = shading_pass(
        mesh, mesh.seen(SIZE), replace(texture, parts=parts.astype(np.uint8)), light, black()
    )
    assert np.array_equal(seen.part, np.where(frame.mask, np.append(parts, 0)[frame.triangle], 0))
    part, depth = seen.part.astype(int), frame.depth.astype(np.float64)
    colour = seen.image
    for tinted, alike in ((seen, 8.0 / 255.0), (replace(seen, image=black()), np.inf)):
        expected = np.zeros(SIZE, dtype=bool)
        for axis in (0, 1):
            apart = (np.diff(part, axis=axis) != 0) | (np.abs(np.diff(depth, axis=axis)) > 0.006)
            begins = np.diff((part > 0).astype(int), axis=axis) != 0
            parted = begins | (apart & (np.abs(np.diff(colour, axis=axis)).max(2) > alike))
            for side in (slice(None, -1), slice(1, None)):
                expected[(side, slice(None)) if axis == 0 else (slice(None), side)] |= parted
        assert np.array_equal(find_outlines(tinted), expected)
        assert 300 < expected.sum() < 6000


def test_a_sample_is_coloured_by_its_own_surface() -> None:
    """Of two overlapping sheets, samples of the near one take no colour of the far one."""
    near = np.array([[-0.2, -0.2, 1.0], [0.013, -0.2, 1.0], [0.013, 0.2, 1.0], [-0.2, 0.2, 1.0]])
    far = np.array([[-0.3, -0.3, 1.1], [0.3, -0.3, 1.1], [0.3, 0.3, 1.1], [-0.3, 0.3, 1.1]])
    faces = np.array([[0, 2, 1], [0, 3, 2], [4, 6, 5], [4, 7, 6]])
    mesh = fr.Mesh.of(
        np.concatenate([near, far]), faces, WeakPerspective(100.0, np.array([20.0, 20.0]))
    )
    seen = flat_picture(mesh, (40, 40), 0.0, 0.0)
    out = seen.image
    out[..., 0] = np.isin(seen.triangle, (0, 1))
    out[..., 1] = np.isin(seen.triangle, (2, 3))
    antialias(seen, mesh)
    line = out[20]
    assert np.abs(line[:, 0] + line[:, 1] - 1.0)[1:-1].max() < 1e-6
    assert line[20, 0] == 1.0
    assert line[21, 0] == pytest.approx(0.3, abs=0.08)  # the outline is at x = 21.3
    assert line[22, 0] == 0.0


def test_invalid_arguments_are_named(open_head: MorphableModel) -> None:
    mesh, _, texture, _, light = scene(open_head, 4)
    ids = mesh.seen(SIZE)
    with pytest.raises(ValueError, match="2 x 2"):
        Texture.of(np.zeros((1, 4, 4)), open_head.uv, open_head.uv_faces)
    with pytest.raises(ValueError, match="3, 2"):
        Texture(texture.texels, texture.corners[0], texture.parts)
    with pytest.raises(ValueError, match="parts"):
        replace(texture, parts=texture.parts * 0)
    with pytest.raises(ValueError, match="power of two"):
        VertexColours(0, np.zeros((4, 6), np.float32), np.zeros((3, 3), np.float32))
    with pytest.raises(ValueError, match="name triangles"):
        shading_pass(mesh, ids + np.int32(len(open_head.faces)), texture, light, black())
    less = replace(texture, corners=texture.corners[:-5], parts=texture.parts[:-5])
    with pytest.raises(ValueError, match="textured"):
        shading_pass(mesh, ids, less, light, black(), NO_VERTEX_COLOURS)
    with pytest.raises(ValueError, match="writable"):
        shading_pass(mesh, ids, texture, light, np.zeros((*SIZE, 4), np.float32))
    with pytest.raises(ValueError, match="float64"):
        shading_pass(mesh, ids, texture, light, np.zeros((*SIZE, 3)))
