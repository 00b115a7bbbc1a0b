import numpy as np
import pytest

from dff.aligner.fitting.crop import Crops, trim_to_blocks


def ramp(height: int, width: int) -> np.ndarray:
    """Red is x, green is y, of each pixel's centre, in pixels."""
    y, x = np.mgrid[:height, :width] + 0.5
    return np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.float32)


@pytest.mark.parametrize("side", [20.0, 64.0, 96.0, 150.0, 200.0])
@pytest.mark.parametrize("angle", [0.0, 0.5, -2.0])
def test_a_crop_shows_at_each_pixel_what_the_photo_shows_there(side: float, angle: float) -> None:
    crops = Crops(np.array([[120.3, 117.6]]), np.array([side]), np.array([angle]), 64)
    cut = crops.cut(ramp(240, 240), 0)
    y, x = np.mgrid[4:60, 4:60] + 0.5
    places = crops.photo_from_crop(np.stack([x, y], axis=-1).reshape(1, -1, 2))[0]
    inside = ((places > 6) & (places < 234)).all(1)
    assert inside.sum() > 500
    found = cut[4:60, 4:60, :2].reshape(-1, 2)
    assert np.abs(found - places)[inside].max() < 0.05


def test_the_identity_crop_is_the_photo() -> None:
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    crops = Crops(np.array([[32.0, 32.0]]), np.array([64.0]), np.array([0.0]), 64)
    assert np.array_equal(crops.cut(image, 0), image)


def test_shrinking_averages_instead_of_picking() -> None:
    board = (np.indices((400, 400)).sum(0) % 2 * 255).astype(np.uint8)
    crops = Crops(np.array([[200.0, 200.0]]), np.array([380.0]), np.array([0.0]), 64)
    cut = crops.cut(np.repeat(board[..., None], 3, 2), 0)
    assert np.abs(cut.astype(float) - 127.5).max() < 20


def test_a_crop_beside_the_photo_is_black() -> None:
    crops = Crops(np.array([[-500.0, 30.0]]), np.array([40.0]), np.array([0.0]), 32)
    assert not crops.cut(np.full((60, 60, 3), 200, np.uint8), 0).any()


@pytest.mark.parametrize("block", [2, 3, 7])
def test_parts_are_trimmed_to_whole_blocks_where_they_end_within_the_photo(block: int) -> None:
    for low, high, size in ((5, 90, 100), (0, 73, 100), (17, 99, 100), (9, 200, 200)):
        start, end = trim_to_blocks(low, high, size, block)
        assert (end - start) % block == 0
        assert low <= start
        assert end <= high
        assert end - start > high - low - block
    assert trim_to_blocks(0, 100, 100, block) == (0, 100)
