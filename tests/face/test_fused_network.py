"""The fused network computes what ``DescriptorNet`` does, in less time."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch

from dff.face import fused_network, int16
from dff.face.arrays import Floats
from dff.face.descriptor import DescriptorNet, DeviceNetwork, NetConfig, image_batch
from dff.face.fused_network import (
    FusedNetwork,
    Workspace,
    describe_images,
    describe_in_batches,
    describe_sparsely,
)

T = TypeVar("T")
SMALL = NetConfig(dims=8, widths=(8, 16, 24), depths=(1, 2, 1), groups=4)
LARGE = NetConfig(widths=(32, 64, 128), depths=(1, 1, 1))


def random_net(config: NetConfig) -> DescriptorNet:
    """A network whose norms have gains and offsets too."""
    torch.manual_seed(3)
    net = DescriptorNet(config)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "norm" in name or "stem.1" in name or "bias" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return net


def finish(steps: Generator[None, None, T], between: Callable[[], None] = lambda: None) -> T:
    """What ``steps`` return; ``between`` is called between them."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: T = end.value
            return found
        between()


@pytest.mark.parametrize("config", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("shape", [(1, 32, 32), (2, 64, 40), (1, 8, 24), (1, 136, 104)], ids=str)
def test_output_is_that_of_the_network(config: NetConfig, shape: tuple[int, int, int]) -> None:
    net = random_net(config)
    batch, height, width = shape
    image = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        want = net(image)
    got = FusedNetwork(net)(image)
    assert got.descriptor.shape == want.descriptor.shape
    assert got.face_logit.shape == want.face_logit.shape
    torch.testing.assert_close(got.descriptor, want.descriptor, atol=2e-5, rtol=0)
    torch.testing.assert_close(got.face_logit, want.face_logit, atol=1e-4, rtol=1e-5)


@pytest.mark.skipif(not int16.is_available(), reason="no instructions for 16-bit integers")
@pytest.mark.parametrize("shape", [(2, 64, 40), (1, 8, 24), (1, 136, 104)], ids=str)
def test_products_in_integers_hardly_change_the_output(shape: tuple[int, int, int]) -> None:
    net = random_net(LARGE)
    batch, height, width = shape
    image = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        want = net(image)
    got = FusedNetwork(net, reduced=True)(image)
    assert not torch.equal(got.descriptor, FusedNetwork(net)(image).descriptor)
    cosine = (got.descriptor * want.descriptor).sum(1)
    assert 1.0 - cosine.mean() < 2e-6
    assert (got.face_logit - want.face_logit).abs().mean() < 1e-3 * want.face_logit.std()


@pytest.mark.skipif(not int16.is_available(), reason="no instructions for 16-bit integers")
def test_all_blocks_in_one_call_give_what_a_call_for_each_gives() -> None:
    """Also where a level is not as wide as whole registers."""
    config = NetConfig(widths=(16, 40, 64), depths=(1, 2, 3), groups=8)
    image = np.random.default_rng(1).integers(0, 256, (1, 64, 40, 3)).astype(np.uint8)
    fused = FusedNetwork(random_net(config), reduced=True)
    assert fused.trunk.program is not None
    at_once = fused.describe(image)
    fused.trunk.program = None
    for one, other in zip(at_once, fused.describe(image), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("config", [SMALL, LARGE], ids=["small", "large"])
def test_levels_are_described_as_their_numbers(config: NetConfig, *, reduced: bool) -> None:
    net = random_net(config)
    levels = np.random.default_rng(1).integers(0, 256, (2, 64, 40, 3)).astype(np.uint8)
    fused = FusedNetwork(net, reduced=reduced)
    want = fused(image_batch(torch.from_numpy(levels)))
    descriptor, logit = describe_images(fused, levels, batch=1)
    np.testing.assert_array_equal(descriptor, want.descriptor.permute(0, 2, 3, 1).numpy())
    np.testing.assert_array_equal(logit, want.face_logit.numpy())
    with torch.inference_mode():
        slow = describe_images(net, levels, batch=1)
    cosine = (slow[0] * descriptor).sum(3)
    assert 1.0 - cosine.mean() < (2e-6 if reduced else 1e-6)


@pytest.mark.parametrize("kind", ["fused", "torch"])
def test_batches_are_described_in_steps_as_all_images_at_once(kind: str) -> None:
    net = random_net(SMALL)
    tried = net if kind == "torch" else FusedNetwork(net)
    levels = np.random.default_rng(1).integers(0, 256, (5, 32, 24, 3)).astype(np.uint8)
    steps, yielded = describe_in_batches(tried, levels, 2), 0
    want = describe_images(tried, levels, batch=2)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            found = done.value
            break
        yielded += 1
    assert yielded == 2
    for one, other in zip(found, want, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", ["fused", "reduced", "torch"])
def test_chosen_pixels_are_described_as_among_all(kind: str) -> None:
    net = random_net(LARGE)
    tried = net if kind == "torch" else FusedNetwork(net, reduced=kind == "reduced")
    image = np.random.default_rng(1).integers(0, 256, (64, 40, 3)).astype(np.uint8)

    with torch.inference_mode():
        ((descriptors,), (logit,)) = describe_images(tried, image[None], batch=1)
        features = describe_sparsely(tried, image)
        np.testing.assert_allclose(features.face_logit, logit, atol=1e-5)
        chosen = np.argsort(-logit, axis=None)[:50:3]
        descriptor = features.describe(chosen)
    among_all = descriptors.reshape(-1, LARGE.dims)[chosen]
    # integers have one unit for the chosen pixels, and one for each row of all
    np.testing.assert_allclose(descriptor, among_all, atol=2e-4 if kind == "reduced" else 1e-5)


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_views_are_described_as_their_copies(kind: type, *, reduced: bool) -> None:
    image = np.random.default_rng(1).integers(0, 256, (64, 40, 3)).astype(kind)
    trunk = FusedNetwork(random_net(LARGE), reduced=reduced).trunk
    for view in (image[:, :, ::-1], image[:, ::-1], image[:32, 4:36]):
        want = trunk(np.ascontiguousarray(view)).copy()
        np.testing.assert_array_equal(trunk(view), want)


@pytest.mark.parametrize("reduced", [False, True])
def test_an_image_without_kept_memory_is_described_block_by_block(
    reduced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another image of its shape is described between them."""
    fused = FusedNetwork(random_net(LARGE), reduced=reduced)
    image, other = np.random.default_rng(1).integers(0, 256, (2, 64, 96, 3)).astype(np.uint8)
    want = fused.describe(image[None])
    assert len([*fused.describe_in_steps(image)]) == 0
    monkeypatch.setattr(fused_network, "KEPT_BYTES", 0)
    workspace = Workspace()
    monkeypatch.setattr(fused_network, "_get_workspace", lambda: workspace)
    pauses = 0

    def describe_another() -> None:
        nonlocal pauses
        pauses += 1
        fused.describe(other[None])

    found = finish(fused.describe_in_steps(image), describe_another)
    blocks = sum(len(stage) for stage in fused.trunk.stages) + len(fused.trunk.decoder)
    assert pauses >= blocks
    for one, (known,) in zip(found, want, strict=True):
        np.testing.assert_array_equal(one, known)


def test_large_images_take_the_memory_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it holds; until it is dropped, as no image has needed it since the last time."""
    fused = FusedNetwork(random_net(LARGE))
    image = np.random.default_rng(1).integers(0, 256, (64, 96, 3)).astype(np.uint8)
    want = fused.describe(image[None])
    monkeypatch.setattr(fused_network, "KEPT_BYTES", 0)
    workspace = Workspace()
    monkeypatch.setattr(fused_network, "_get_workspace", lambda: workspace)
    allocated: list[Floats] = []

    def allocate(count: int) -> Floats:
        allocated.append(np.full(count, np.float32(7.0)))
        return allocated[-1]

    monkeypatch.setattr(fused_network, "_allocate", allocate)

    def describe() -> None:
        found = finish(fused.describe_in_steps(image))
        for one, (known,) in zip(found, want, strict=True):
            np.testing.assert_array_equal(one, known)

    describe()
    allocated[0][:] = 7.0
    describe()
    assert len(allocated) == 1
    fused_network.drop_spare_memory(if_unused=True)
    describe()
    assert len(allocated) == 1
    fused_network.drop_spare_memory(if_unused=True)
    fused_network.drop_spare_memory(if_unused=True)
    describe()
    assert len(allocated) == 2
    fused_network.drop_spare_memory()
    describe()
    assert len(allocated) == 3
    abandoned = fused.describe_in_steps(image)
    next(abandoned)
    beside = fused.describe_in_steps(image)
    next(beside)
    assert len(allocated) == 4, "two images at a time have memory of their own"
    abandoned.close()
    describe()
    assert len(allocated) == 4


def test_maps_of_the_last_image_leave_no_trace() -> None:
    fused = FusedNetwork(random_net(SMALL))
    images = torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(2))
    first = fused(images[:1])
    fused(images[1:, :, :, :32])
    again = fused(images[:1])
    assert torch.equal(first.descriptor, again.descriptor)
    assert torch.equal(fused(images).descriptor[:1], first.descriptor)


def test_images_of_many_shapes_take_as_much_memory_as_the_largest() -> None:
    fused = FusedNetwork(random_net(SMALL))
    image = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(2))
    fused(image)  # what is made once for all threads

    def keep(*sides: int) -> int:
        tracemalloc.start()
        for side in sides:
            fused(image[..., :side])
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return kept

    with ThreadPoolExecutor(1) as thread:
        largest = thread.submit(keep, 256).result()
    with ThreadPoolExecutor(1) as thread:
        many = thread.submit(keep, 192, 256, 224, 160, 128).result()
    assert largest > 1 << 20
    assert many < 1.1 * largest


def test_threads_may_share_a_network() -> None:
    fused = FusedNetwork(random_net(SMALL))
    images = torch.rand(8, 1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    alone = [fused(image).descriptor for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = [found.descriptor for found in pool.map(fused, images)]
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("shape", [(1, 3, 32, 30), (1, 4, 32, 32), (3, 32, 32)], ids=str)
def test_images_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        FusedNetwork(random_net(SMALL))(torch.zeros(shape))


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ),
    ],
)
def test_a_device_gives_the_output_of_the_network(device: str) -> None:
    net = random_net(SMALL)
    image = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    want = FusedNetwork(net)(image)
    got = DeviceNetwork(net, device)(image)
    assert got.descriptor.device.type == "cpu"
    np.testing.assert_allclose(got.descriptor, want.descriptor, atol=1e-3)
    np.testing.assert_allclose(got.face_logit, want.face_logit, atol=1e-2)


DESCRIBE = """
import sys
import numpy as np
from dff.face.fused_network import FusedNetwork
from tests.face.test_fused_network import LARGE, random_net
levels = np.random.default_rng(1).integers(0, 256, (1, 64, 40, 3)).astype(np.uint8)
descriptor, logit = FusedNetwork(random_net(LARGE), reduced=True).describe(levels)
sys.stdout.write(descriptor.tobytes().hex() + logit.tobytes().hex())
"""


def test_cached_code_answers_what_freshly_compiled_code_does(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", DESCRIBE]
    fresh, cached = (
        subprocess.run(command, env=environment, check=True, capture_output=True).stdout
        for _ in range(2)
    )
    assert len(fresh) > 1000
    assert fresh == cached
