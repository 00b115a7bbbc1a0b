"""Products in bfloat16 are those of the rounded factors."""

import numpy as np
import pytest
import torch
from numba.core import config

from dff.face import bfloat16
from dff.face.arrays import Floats

needs_instructions = pytest.mark.skipif(
    not bfloat16.is_available(), reason="this CPU has no instructions for bfloat16"
)


def rounded(numbers: Floats) -> Floats:
    """The same by torch, as float32."""
    return torch.from_numpy(numbers).bfloat16().float().numpy()


def test_numbers_are_rounded_as_torch_does() -> None:
    numbers = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    numbers[:3] = 0.0, 1.00390625, -1.01171875  # the last two are equally near to two others
    found = np.empty(1000, np.uint16)
    bfloat16.round_numbers(numbers, found)
    np.testing.assert_array_equal(
        (found.astype(np.uint32) << 16).view(np.float32), rounded(numbers)
    )


@needs_instructions
@pytest.mark.parametrize("rows", [1, 5, 8, 9, 25, 64])
@pytest.mark.parametrize(("inner", "columns"), [(2, 32), (48, 24), (192, 64), (64, 33), (6, 7)])
def test_a_product_is_that_of_the_rounded_factors(rows: int, inner: int, columns: int) -> None:
    rng = np.random.default_rng(rows)
    a = rng.normal(size=(rows, inner)).astype(np.float32)
    b = rng.normal(size=(inner, columns)).astype(np.float32)
    assert bfloat16.can_pack(b)
    left = np.empty(a.size, np.uint16)
    bfloat16.round_numbers(a.reshape(-1), left)
    found = np.full((rows + 1, columns), 7.0, np.float32)
    bfloat16.multiply(left.reshape(a.shape), bfloat16.pack_pairs(b), found[:rows])
    expected = rounded(a).astype(np.float64) @ rounded(b).astype(np.float64)
    np.testing.assert_allclose(found[:rows], expected, atol=1e-5 * np.sqrt(inner))
    assert (found[rows] == 7.0).all()


@needs_instructions
@pytest.mark.parametrize(("side", "stride", "outputs"), [(4, 2, 32), (6, 4, 24)])
def test_a_row_of_a_convolution_is_that_of_the_rounded_image(
    side: int, stride: int, outputs: int
) -> None:
    rng = np.random.default_rng(side)
    image = rng.normal(size=(12, 26, 3)).astype(np.float32)
    kernel = rng.normal(size=(side, side, 3, outputs)).astype(np.float32)
    numbers = np.empty(image.size, np.uint16)
    bfloat16.round_numbers(image.reshape(-1), numbers)
    columns = (26 - side) // stride + 1
    found = np.full((columns + 1, outputs), 7.0, np.float32)
    packed = bfloat16.pack_pairs(kernel.reshape(-1, outputs))
    bfloat16.convolve_row(numbers.reshape(12, -1), 3, side, stride, packed, found[:columns])
    windows = [rounded(image)[3 : 3 + side, x : x + side] for x in range(0, 26 - side + 1, stride)]
    expected = np.einsum("nijc,ijco->no", np.stack(windows), rounded(kernel))
    np.testing.assert_allclose(found[:columns], expected, atol=1e-4)
    assert (found[columns] == 7.0).all()


@needs_instructions
@pytest.mark.parametrize("channels", [16, 24, 64])
@pytest.mark.parametrize(("side", "stride"), [(3, 1), (4, 2)])
def test_a_row_of_a_depthwise_convolution_is_rounded(channels: int, side: int, stride: int) -> None:
    rng = np.random.default_rng(channels)
    x = rng.normal(size=(side + 1, 20, channels)).astype(np.float32)
    taps = rng.normal(size=(side * side, channels)).astype(np.float32)
    columns = (20 - side) // stride + 1
    found = np.zeros((2 + columns, channels), np.uint16)
    bfloat16.filter_row(x.reshape(-1), 20 * channels, 20 * channels, taps, stride == 2, found, 2)
    windows = [x[1:, at : at + side] for at in range(0, 20 - side + 1, stride)]
    expected = np.einsum("nijc,ijc->nc", np.stack(windows), taps.reshape(side, side, -1))
    numbers = (found.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(numbers[2:], expected, rtol=2.0**-8, atol=1e-5)
    assert (found[:2] == 0).all()


def test_rows_without_a_neighbour_are_not_packed() -> None:
    assert not bfloat16.can_pack(np.zeros((3, 32)))


def test_code_for_other_cpus_has_no_such_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "CPU_NAME", "generic")
    assert not bfloat16.is_available()
