"""Validation figures and pictures of matches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dff.face.descriptor import STRIDE, Anchors, DescriptorNet, Features, NetConfig
from dff.trainer.data.crops import (
    CropPlacement,
    TrainingSurface,
    grid_in_source,
    input_from_source,
    interpolate_coordinates,
    warp,
)
from dff.trainer.data.views import ViewStore
from dff.trainer.evaluation.config import EVALUATION, FIGURES, EvaluationConfig
from dff.trainer.evaluation.figures import draw_dev_pair, draw_match_maps
from dff.trainer.evaluation.matching import measure_matches
from dff.trainer.evaluation.pairs import sample_dev_pairs

SIZE = 64


class Oracle(nn.Module):
    """Describes the pairs by their true surface coordinates, as unit vectors."""

    def __init__(self, maps: dict[bytes, Tensor]) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, images: Tensor) -> Features:
        keys = [
            (image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy().tobytes()
            for image in images
        ]
        return Features(
            torch.stack([self.maps[k] for k in keys]), torch.zeros(len(keys), SIZE // 2, SIZE // 2)
        )


def lift(coordinate: Tensor) -> Tensor:
    """(..., 7) unit vectors of (..., 6) metres, whose cosine decreases with distance."""
    radius = 0.5
    flat = coordinate / radius
    return torch.cat([flat, (1.0 - (flat**2).sum(-1, keepdim=True)).clamp(min=0).sqrt()], dim=-1)


def test_pairs_show_the_same_points(store: ViewStore, surface: TrainingSurface) -> None:
    pairs = sample_dev_pairs(store, surface, count=5, size=SIZE)
    assert len(pairs) == 5
    for pair, again in zip(
        pairs, sample_dev_pairs(store, surface, count=5, size=SIZE), strict=True
    ):
        np.testing.assert_array_equal(pair.first, again.first)
        assert pair.images.shape == (2, SIZE, SIZE, 3)
        assert len(pair.first) >= 8
        assert (pair.second >= 0.5).all()
        assert (pair.second <= SIZE / STRIDE - 0.5).all()


def test_an_oracle_matches_within_a_pixel(store: ViewStore, surface: TrainingSurface) -> None:
    maps: dict[bytes, Tensor] = {}
    nothing = torch.zeros(7)
    nothing[6] = -1.0
    for number in np.flatnonzero(store.is_dev):
        view = store.view(int(number))
        matrix = input_from_source(view.box, SIZE, CropPlacement())
        coordinate, known = interpolate_coordinates(view, grid_in_source(matrix, SIZE), surface)
        vectors = torch.where(
            torch.from_numpy(known)[:, None], lift(torch.from_numpy(coordinate).float()), nothing
        )
        key = warp(view.image, matrix, SIZE, (0, 0, 0)).tobytes()
        maps[key] = vectors.T.reshape(7, SIZE // STRIDE, SIZE // STRIDE)
    pairs = sample_dev_pairs(store, surface, count=6, size=SIZE)
    oracle: DescriptorNet = Oracle(maps)  # type: ignore[assignment]
    anchors = torch.from_numpy(surface.coordinates[::3].astype(np.float32))
    figures = measure_matches(oracle, lift(anchors), anchors, 20000.0, pairs)
    pixel = EVALUATION.crop_side / (SIZE / STRIDE)
    assert figures["match_px_median"] < 0.3 * pixel
    assert figures["vote_mm_median"] < 6.0
    shuffled = {key: value.roll(5, 2) for key, value in maps.items()}
    oracle.maps = shuffled  # type: ignore[assignment]
    wrong = measure_matches(oracle, lift(anchors), anchors, 20000.0, pairs)
    assert wrong["match_pck_8"] < figures["match_pck_8"] / 2 or wrong["vote_mm_median"] > 10.0


def test_the_protocol_decides_the_validation_pairs(
    store: ViewStore, surface: TrainingSurface
) -> None:
    config = EvaluationConfig(points=10, min_points=10, pck_px=500)
    pairs = sample_dev_pairs(store, surface, count=3, size=SIZE, config=config)
    assert [len(pair.first) for pair in pairs] == [10, 10, 10]
    net = DescriptorNet(NetConfig())
    figures = measure_matches(net, torch.zeros(1, 32), torch.zeros(1, 6), 16.0, pairs, config)
    assert figures["match_pck_500"] == 1.0


def test_without_pairs_there_are_no_figures(store: ViewStore, surface: TrainingSurface) -> None:
    assert (
        measure_matches(DescriptorNet(NetConfig()), torch.zeros(1, 32), torch.zeros(1, 6), 16.0, [])
        == {}
    )


def test_the_match_picture_of_an_image_with_itself_marks_its_points(
    store: ViewStore, surface: TrainingSurface
) -> None:
    """Each tile's mark is on the point."""
    torch.manual_seed(0)
    net = DescriptorNet(NetConfig(dims=8, widths=(8, 16), depths=(1, 1)))
    anchors = Anchors(np.array([0]), np.zeros((1, 3)), np.eye(1, 8, dtype=np.float32), 64.0)
    pair = sample_dev_pairs(store, surface, count=1, size=SIZE)[0]
    image = pair.images[0]
    points = np.array([[21.0, 33.0], [41.0, 25.0]])
    picture = draw_match_maps(net, anchors, image, image, points)
    side = SIZE * FIGURES.zoom
    assert picture.shape == (side, 3 * side + 2 * 4, 3)
    for i, point in enumerate(points):
        tile = picture[:, (i + 1) * (side + 4) :][:, :side].astype(int)
        first = picture[:, :side].astype(int)
        x, y = (point * FIGURES.zoom).astype(int)
        window = (slice(y - 7, y + 8), slice(x - 7, x + 8))
        colour = first[y, x + 4]
        assert np.abs(tile[window] - colour).sum(2).min() < 120, (
            "the same colour rings the same point"
        )
    assert draw_dev_pair(net, anchors, pair, points=3).shape == (side, 4 * side + 3 * 4, 3)
    with pytest.raises(ValueError, match="within 0"):
        draw_match_maps(net, anchors, image, image, np.array([[70.0, 3.0]]))
