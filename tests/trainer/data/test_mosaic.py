"""Mosaics: the target of a pixel is the surface point that it shows, under any layers."""

from __future__ import annotations

from dataclasses import astuple, replace

import numpy as np
import pytest

from dff.face.arrays import Floats
from dff.face.descriptor import STRIDE
from dff.trainer.data.crops import TrainingSurface
from dff.trainer.data.mosaic import compose_layers, make_background, make_mosaic
from dff.trainer.data.views import StoredView, ViewStore
from tests.trainer.conftest import barycentrics

SIZE = 256


def colour_by_coordinates(
    view: StoredView, surface: TrainingSurface, low: Floats, reach: Floats
) -> StoredView:
    """The view with its surface coordinates as colours of 40 or more; the background is black."""
    triangle = np.minimum(view.triangle, len(surface.faces) - 1)
    coordinate = np.einsum(
        "hwk,hwkc->hwc",
        barycentrics(view, surface.faces),
        surface.coordinates[surface.faces[triangle], :3],
    )
    colour = np.where(
        (view.triangle < len(surface.faces))[..., None],
        40.0 + 215.0 * (coordinate - low) / reach,
        0.0,
    )
    return replace(view, image=np.rint(colour).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def box(surface: TrainingSurface) -> tuple[Floats, Floats]:
    coordinates = surface.coordinates[:, :3]
    return coordinates.min(0), np.ptp(coordinates, axis=0)


def test_targets_of_a_mosaic_are_the_points_that_its_pixels_show(
    store: ViewStore, surface: TrainingSurface, box: tuple[Floats, Floats]
) -> None:
    errors, faces = [], 0
    for seed in range(12):
        views = [
            colour_by_coordinates(store.view(n), surface, *box)
            for n in (seed, seed + 12, seed + 24)
        ]
        image, triangle, coordinates = compose_layers(
            views, surface, SIZE, rng=np.random.default_rng(seed)
        )
        chosen = np.flatnonzero(surface.anchored[triangle])
        faces += len(chosen) > 0
        coordinate, known = coordinates(chosen)
        half = SIZE // STRIDE
        seen = image.reshape(half, STRIDE, half, STRIDE, 3).mean((1, 3)).reshape(-1, 3)[chosen]
        shown = box[0] + (seen - 40.0) / 215.0 * box[1]
        error = np.abs(shown - coordinate[:, :3])
        # A mirrored view shows the colours of the mirrored points.
        error[:, 0] = np.minimum(error[:, 0], np.abs(shown[:, 0] + coordinate[:, 0]))
        errors.append(error[known])
    assert faces >= 8
    together = np.concatenate(errors).max(1)
    assert len(together) > 5000
    # An output pixel is 2 to 6 mm wide here; a level of the colours is 1.4 mm.
    assert np.median(together) < 0.001
    assert np.percentile(together, 90) < 0.005


def test_a_background_shows_no_head(store: ViewStore, surface: TrainingSurface) -> None:
    for number in range(12):
        view = store.view(number)
        head = (view.triangle < len(surface.faces))[..., None]
        marked = replace(view, image=np.where(head, np.uint8(255), view.image // 2))
        shown = make_background(marked, surface, 64, rng=np.random.default_rng(number))
        assert shown.shape == (64, 64, 3)
        widest = max(
            int(np.flatnonzero(head.any((0, 2)))[0]), int(np.flatnonzero(head.any((1, 2)))[0])
        )
        if widest >= 12:
            assert shown.max() <= 128


def test_mosaics_show_several_small_faces_or_none(
    store: ViewStore, surface: TrainingSurface
) -> None:
    shares = []
    for seed in range(60):
        views = [store.view(n) for n in (seed % 40, (seed + 7) % 40)]
        sample = make_mosaic(views, surface, size=128, pixels=300, rng=np.random.default_rng(seed))
        assert sample.image.shape == (128, 128, 3)
        assert sample.face.shape == (64, 64)
        known = sample.known > 0
        assert len(set(sample.pixel[known].tolist())) == known.sum()
        shares.append(sample.face.mean())
    empty = float(np.mean(np.array(shares) == 0))
    assert 0.05 < empty < 0.4
    assert 0.03 < np.median(shares) < 0.3, "faces cover 0.2 to 0.5 of a crop"


def test_a_mosaic_depends_on_its_generator_alone(
    store: ViewStore, surface: TrainingSurface
) -> None:
    def sample(seed: int) -> bytes:
        views = [store.view(1), store.view(2)]
        made = make_mosaic(views, surface, size=64, pixels=50, rng=np.random.default_rng(seed))
        return b"".join(part.tobytes() for part in astuple(made))

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
