"""Products in integers are those of the rounded factors, and hardly differ from exact ones."""

import numpy as np
import pytest
from numba.core import config

from dff.face import int16
from dff.face.arrays import Floats

needs_instructions = pytest.mark.skipif(
    not int16.is_available(), reason="this CPU has no instructions for 16-bit integers"
)


def test_columns_have_units_of_their_own() -> None:
    matrix = np.array([[1.0, 0.0, 300.0], [-0.5, 0.0, 1e-3]], np.float32)
    packed, units = int16.pack_pairs(matrix)
    numbers = packed.transpose(0, 2, 1).reshape(2, 3)
    np.testing.assert_allclose(numbers * units, matrix, atol=0.5 * units.max())
    np.testing.assert_array_equal(numbers[0], [int16.LARGEST_RIGHT, 0, int16.LARGEST_RIGHT])


@pytest.mark.parametrize("inner", [2, 64, 512])
def test_no_sum_of_products_leaves_32_bits(inner: int) -> None:
    for matrix in np.full((inner, 1), 0.4), np.random.default_rng(0).normal(size=(inner, 40)):
        packed, _ = int16.pack_pairs(matrix.astype(np.float32))
        assert np.abs(packed.astype(np.int64)).sum((0, 2)).max() * int16.LARGEST < 2**31


@needs_instructions
@pytest.mark.parametrize("count", [1, 16, 37])
def test_numbers_are_rounded_in_the_unit_of_the_largest(count: int) -> None:
    numbers = np.random.default_rng(count).normal(size=count).astype(np.float32)
    found = np.zeros(count + 1, np.int16)
    unit = int16.quantise(numbers, found[:count])
    assert np.abs(found).max() == int16.LARGEST
    np.testing.assert_array_equal(found[:count], np.rint(numbers * (np.float32(1.0) / unit)))
    assert found[count] == 0


@needs_instructions
def test_zeros_are_zeros_in_any_unit() -> None:
    found = np.full(20, 7, np.int16)
    assert np.isfinite(int16.quantise(np.zeros(20, np.float32), found))
    assert (found == 0).all()


@needs_instructions
@pytest.mark.parametrize("rows", [1, 5, 7, 8, 9, 14, 25, 64])
@pytest.mark.parametrize(
    ("inner", "columns"), [(2, 32), (48, 24), (192, 64), (64, 33), (6, 7), (96, 48), (24, 53)]
)
def test_a_product_is_that_of_the_rounded_factors(rows: int, inner: int, columns: int) -> None:
    rng = np.random.default_rng(rows)
    a = rng.normal(size=(rows, inner)).astype(np.float32)
    b = rng.normal(size=(inner, columns)).astype(np.float32)
    assert int16.can_pack(b)
    left = np.empty(a.shape, np.int16)
    unit = int16.quantise(a.reshape(-1), left.reshape(-1))
    packed, units = int16.pack_pairs(b)
    found = np.full((rows + 1, columns), 7.0, np.float32)
    int16.multiply(left, unit, packed, units, found[:rows])
    right = packed.transpose(0, 2, 1).reshape(inner, columns).astype(np.int64)
    expected = (left.astype(np.int64) @ right) * (np.float64(unit) * units)
    np.testing.assert_allclose(found[:rows], expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found[:rows], a @ b, atol=1e-3 * np.sqrt(inner))
    assert (found[rows] == 7.0).all()


@needs_instructions
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_factors_do_not_overflow(sign: float) -> None:
    a, b = np.full((8, 256), sign, np.float32), np.ones((256, 32), np.float32)
    left, found = np.empty(a.shape, np.int16), np.empty((8, 32), np.float32)
    unit = int16.quantise(a.reshape(-1), left.reshape(-1))
    int16.multiply(left, unit, *int16.pack_pairs(b), found)
    np.testing.assert_allclose(found, 256.0 * sign, rtol=1e-3)


def windows(image: Floats, side: int, stride: int) -> Floats:
    """(N, side, side, C) the squares of the first rows, ``stride`` pixels apart."""
    starts = range(0, image.shape[1] - side + 1, stride)
    return np.stack([image[:side, x : x + side] for x in starts])


@needs_instructions
@pytest.mark.parametrize(("side", "stride", "outputs"), [(4, 2, 32), (6, 4, 24)])
def test_a_row_of_a_convolution_is_that_of_the_image(side: int, stride: int, outputs: int) -> None:
    rng = np.random.default_rng(side)
    image = rng.integers(-8000, 8000, (12, 26, 3)).astype(np.int16)
    kernel = rng.normal(size=(side, side, 3, outputs)).astype(np.float32)
    columns = (26 - side) // stride + 1
    found = np.full((columns + 1, outputs), 7.0, np.float32)
    packed, units = int16.pack_pairs(kernel.reshape(-1, outputs))
    unit = np.float32(0.001)
    numbers = image.reshape(12, -1)
    int16.convolve_row(numbers, 3, side, stride, unit, packed, units, found[:columns])
    seen = windows(image[3:] * 0.001, side, stride)
    expected = np.einsum("nijc,ijco->no", seen, kernel)
    np.testing.assert_allclose(found[:columns], expected, atol=0.02)
    assert (found[columns] == 7.0).all()


@needs_instructions
@pytest.mark.parametrize("channels", [16, 24, 64])
@pytest.mark.parametrize(("side", "stride"), [(3, 1), (4, 2)])
def test_a_row_of_a_depthwise_convolution_knows_its_largest_number(
    channels: int, side: int, stride: int
) -> None:
    rng = np.random.default_rng(channels)
    x = rng.normal(size=(side + 1, 20, channels)).astype(np.float32)
    taps = rng.normal(size=(side * side, channels)).astype(np.float32)
    columns = (20 - side) // stride + 1
    found, sizes = np.zeros((columns, channels), np.float32), np.zeros(int16.LANES, np.float32)
    line = 20 * channels
    int16.filter_row(x.reshape(-1), line, line, taps, stride == 2, found, sizes)
    seen = windows(x[1:], side, stride)
    expected = np.einsum("nijc,ijc->nc", seen, taps.reshape(side, side, -1))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert sizes.max() == np.abs(found).max()


@needs_instructions
@pytest.mark.parametrize("channels", [7, 24, 64])
def test_sums_of_channels_are_added(channels: int) -> None:
    y = np.random.default_rng(channels).normal(size=(30, channels)).astype(np.float32)
    first, second = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    int16.add_sums(y, first, second)
    np.testing.assert_allclose(first, 1.0 + y.sum(0), atol=1e-5)
    np.testing.assert_allclose(second, (y**2).sum(0), rtol=1e-5)


@needs_instructions
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("channels", [7, 24, 64])
def test_a_row_is_rectified_in_a_map(channels: int, *, adds: bool) -> None:
    rng = np.random.default_rng(channels)
    y = rng.normal(size=(5, channels)).astype(np.float32)
    slope, shift = rng.normal(size=(2, channels)).astype(np.float32)
    out = rng.normal(size=8 * channels).astype(np.float32)
    expected = out.copy()
    inner = expected[2 * channels : 7 * channels].reshape(5, channels)
    inner[:] = np.maximum(y * slope + shift, 0.0) + (inner if adds else 0.0)
    int16.rectify_row(y, slope, shift, adds, out, 2 * channels)
    np.testing.assert_allclose(out, expected, atol=1e-6)


@needs_instructions
@pytest.mark.parametrize("channels", [7, 24, 64])
def test_each_pixel_is_added_to_two(channels: int) -> None:
    rng = np.random.default_rng(channels)
    y, bias = rng.normal(size=(3, channels)).astype(np.float32), np.ones(channels, np.float32)
    out = np.zeros(8 * channels, np.float32)
    int16.add_twice(y, bias, out, channels)
    pixels = out.reshape(8, channels)
    np.testing.assert_array_equal(pixels[1:7], (y + 1.0).repeat(2, axis=0))
    assert not pixels[[0, 7]].any()


@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_aligned_memory_begins_where_registers_do(kind: type) -> None:
    for count in 1, 100, 5000:
        numbers = int16.aligned(count, kind)
        assert numbers.shape == (count,)
        assert numbers.ctypes.data % int16.LINE == 0
        assert not numbers.any()


def test_rows_without_a_neighbour_are_not_packed() -> None:
    assert not int16.can_pack(np.zeros((3, 32)))


def test_code_for_other_cpus_has_no_such_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "CPU_NAME", "generic")
    assert not int16.is_available()
