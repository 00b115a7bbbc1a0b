"""Forward passes of the descriptor's and the detector's network on a CPU core, in few loops.

The same arithmetic as ``DescriptorNet`` and ``DetectorNet`` in single precision; only sums are
ordered differently. On demand matrices are multiplied in 16-bit integers where the CPU can
(``dff.face.int16``).

A block runs in strips of rows: the depthwise convolution, the pointwise convolution (a matrix
product of the BLAS) and the sums of the group norm, while the strip is in the cache. Then one loop
normalises, rectifies and adds the input. torch writes and reads the whole map for each operation.

Maps lie in memory as (rows, columns, channels), with a border of zeros one pixel wide.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakSet

import numba
import numpy as np
import torch
from numba.extending import overload
from torch import Tensor, nn

from dff.face import int16
from dff.face.arrays import Array, Bytes, Float, Floats, Int, Ints
from dff.face.descriptor import (
    STRIDE,
    DescriptorNet,
    Features,
    Network,
    Separable,
    image_batch,
)
from dff.face.detector_net import DetectorNet
from dff.face.numba_cache import CACHE

STRIP = 16384  # numbers of the depthwise result made at a time: with the product they fill the L2
QUANTISED_STRIP = 8192  # the same in integers: the result and its integers fill the L1
KEPT_BYTES = 32 << 20  # of a workspace, at most, that a thread keeps for its next images
LINE = 16  # float32 of a line of the cache, where maps begin
TILE = 256  # numbers that innermost loops run over at least, where the columns allow it


class FusedBlock:
    """The packed weights of a residual block: depthwise and pointwise convolution, group norm."""

    def __init__(
        self, taps: Floats, pointwise: Floats, norm: nn.GroupNorm, *, reduced: bool
    ) -> None:
        """(k * k, inputs) depthwise ``taps``, (inputs, outputs) ``pointwise``."""
        self.taps = taps
        self.pointwise, self.units = _factor(pointwise, reduced)
        # whether the depthwise result is made for integers
        self.quantises = self.pointwise.ndim == 3 and taps.shape[1] >= int16.LANES
        self.norm = _numbers(norm.weight), _numbers(norm.bias), int(norm.num_groups), norm.eps

    @staticmethod
    def of(block: nn.Module, *, reduced: bool) -> FusedBlock:
        """The fused form of a ``Separable`` block."""
        assert isinstance(block, Separable)
        depthwise = _numbers(block.depthwise.weight)
        taps = np.ascontiguousarray(depthwise.reshape(len(depthwise), -1).T)
        return FusedBlock(taps, _kernel(block.pointwise), block.norm, reduced=reduced)

    def apply(self, x: Floats, product: Floats, out: Floats) -> None:
        """Add the block of the bordered map ``x`` to the map itself, or write it to one of half.

        ``product``: memory for the convolutions.
        """
        halves, weights = out is not x, (self.taps, self.pointwise, self.units)
        if self.quantises:
            _apply_quantised(x, *weights, halves, product, *self.norm, out)
            return
        convolve = _convolve_halving if halves else _convolve
        sums = convolve(x, *weights, product)
        _rectify(product, sums, *self.norm, not halves, out)


class ImageMaps(NamedTuple):
    """The maps that are computed of one image of some shape."""

    # RGB in integers with a border of zeros one pixel wide, for the stem
    image: Ints
    product: Floats
    levels: list[Floats]  # the bordered map of each level, which its blocks change in place
    memory: Floats  # that holds all of these
    # where each level begins in it, with rows, columns and channels; last, where ``product`` does
    layout: Int[Array, "maps 4"]
    kept: bool  # whether the thread's next image takes the same memory


class Workspace:
    """Memory of a thread for the maps of one image at a time, as much as its largest image took.

    Maps of different shapes share it: a thread needs 25 MB for the quick search of 1,024 x 1,024
    pixels, and not the sum over all crops and photos of late.

    A larger image has memory of its own, while others are computed beside it, and the next such
    image has the same: the system gives a process 100 MB in 30 to 200 ms.
    """

    def __init__(self) -> None:
        self._memory: Floats = np.zeros(0, np.float32)
        self._maps: dict[Any, ImageMaps] = {}  # in that memory, by shape of the image and network
        self._last: Any = None  # the key of those that were computed last
        self._spare: Floats | None = None  # memory of the last larger image, when it is done
        self._used_spare = False  # since ``drop_spare``
        _WORKSPACES.add(self)

    def arrange(self, shape: tuple[int, int], widths: tuple[int, ...], stride: int) -> ImageMaps:
        """The maps of an image; those of another shape are no longer valid."""
        key = shape, widths, stride
        maps = self._maps.get(key) or self._cut(key)
        if self._last != key or not maps.kept:
            self._last = key
            _clear_border(maps.image.reshape(shape[0] + 2, shape[1] + 2, 3))
            for level in maps.levels:
                _clear_border(level)
        return maps

    def _cut(self, key: tuple[tuple[int, int], tuple[int, ...], int]) -> ImageMaps:
        (height, width), widths, stride = key
        rows, columns = height // stride, width // stride
        bordered = [
            ((rows >> level) + 2, (columns >> level) + 2, many) for level, many in enumerate(widths)
        ]
        counts = [math.prod(shape) for shape in bordered]
        counts.append(max((rows >> i) * (columns >> i) * many for i, many in enumerate(widths)))
        counts.append((height + 2) * 3 * (width + 2) // 2 + 1)  # two integers in a number
        ends = np.cumsum([-(-count // LINE) * LINE for count in counts])
        memory = self._memory
        if ends[-1] > len(memory):
            memory = self._take(int(ends[-1]))
        *levels, product, image = (
            memory[end - -(-count // LINE) * LINE :][:count]
            for end, count in zip(ends.tolist(), counts, strict=True)
        )
        begins = [end - -(-count // LINE) * LINE for end, count in zip(ends, counts, strict=True)]
        shapes = [*bordered, (0, 0, 0)]
        maps = ImageMaps(
            image.view(np.int16)[: (height + 2) * 3 * (width + 2)].reshape(height + 2, -1),
            product,
            [level.reshape(shape) for level, shape in zip(levels, bordered, strict=True)],
            memory,
            np.array([(begin, *shape) for begin, shape in zip(begins[:-1], shapes, strict=True)]),
            memory is self._memory,
        )
        if maps.kept:
            self._maps[key] = maps
        return maps

    def _take(self, count: int) -> Floats:
        """Memory for more numbers than the thread keeps memory for."""
        spare, self._spare = self._spare, None
        if 4 * count > KEPT_BYTES and spare is not None and len(spare) >= count:
            return spare
        memory = _allocate(count)
        if memory.nbytes <= KEPT_BYTES:
            self._memory = memory
            self._maps.clear()
        return memory

    def take_back(self, maps: ImageMaps) -> None:
        """Let the thread's next image have the memory of maps that are not kept."""
        self._spare, self._used_spare = maps.memory, True

    def drop_spare(self, *, if_unused: bool) -> None:
        """Let go of the memory for larger images; ``if_unused``: by any since the last call.

        Any thread may call this.
        """
        if not (if_unused and self._used_spare):
            self._spare = None
        self._used_spare = False


class FusedTrunk:
    """Stem, encoder and decoder of a U-Net of separable convolutions."""

    def __init__(
        self,
        stem: nn.Module,
        encoder: nn.ModuleList,
        lateral: nn.ModuleList,
        decoder: nn.ModuleList,
        widths: tuple[int, ...],
        *,
        reduced: bool,
    ) -> None:
        """The decoder has as many levels as ``lateral``: it may end below the first one.

        ``reduced``: whether matrices are multiplied in 16-bit integers where the CPU can.
        """
        conv, norm, _ = _modules(stem)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.GroupNorm)
        self.widths, self.stride = widths, int(conv.stride[0])
        # (k, k, 3, outputs), as the stem's kernel gathers the pixels
        kernel = _numbers(conv.weight).transpose(2, 3, 1, 0)
        self.side = kernel.shape[0]
        flat = kernel.reshape(-1, kernel.shape[-1])
        self.stem = FusedBlock(np.zeros((0, 0), np.float32), flat, norm, reduced=reduced)
        self.stages = [
            [FusedBlock.of(block, reduced=reduced) for block in _modules(stage)]
            for stage in encoder
        ]
        self.lateral = [(*_factor(_kernel(one), reduced), _bias(one)) for one in lateral]
        self.decoder = [FusedBlock.of(block, reduced=reduced) for block in decoder]
        self.first = len(widths) - 1 - len(self.lateral)  # level at which the decoder ends
        # what one call runs, where all of it is in integers
        self.program: Program | None = None
        blocks = [block for stage in self.stages for block in stage]
        if self.stem.pointwise.ndim == 3 and all(
            block.quantises for block in [*blocks, *self.decoder]
        ):
            self.program = _pack_program(self)

    def __call__(self, image: Bytes | Floats) -> Floats:
        """The bordered map at the decoder's end.

        (H, W, 3) ``image``, uint8 or float32 in 0..1.
        """
        return self._run(image).levels[self.first]

    def run_in_steps(self, image: Bytes | Floats) -> Generator[None, None, ImageMaps]:
        """The maps of an image, that at the decoder's end among them; valid until the next image.

        In a step for each block where the image is too large for the memory that the thread keeps.
        In one step where its maps are where the thread's next image would overwrite them.
        """
        found = self._arrange(image)
        if found.kept:
            return self._run(image)
        self._begin(image, found)
        try:
            for run in self._blocks(found):
                yield
                run()
        finally:
            _get_workspace().take_back(found)
        return found

    def _arrange(self, image: Bytes | Floats) -> ImageMaps:
        shape = image.shape[0], image.shape[1]
        return _get_workspace().arrange(shape, self.widths, self.stride)

    def _run(self, image: Bytes | Floats) -> ImageMaps:
        """The maps of an image, all in one step."""
        found = self._arrange(image)
        if self.program is None:
            self._begin(image, found)
            for run in self._blocks(found):
                run()
            return found
        _quantise_pixels(image, found.image)
        window = self.side, self.stride
        _run_program(found.image, *window, *self.program, found.memory, found.layout)
        return found

    def _begin(self, image: Bytes | Floats, found: ImageMaps) -> None:
        """Run the stem."""
        integers, product, maps = found.image, found.product, found.levels
        kernel, units, window = self.stem.pointwise, self.stem.units, (self.side, self.stride)
        if kernel.ndim == 3:
            _quantise_pixels(image, integers)
            sums = _convolve_quantised_image(integers, kernel, units, *window, product)
            _rectify_by_registers(product, sums, *self.stem.norm, False, maps[0])
        else:
            pixels: Any = np.ascontiguousarray(image)
            if image.dtype == np.uint8:
                pixels = np.divide(pixels, np.float32(255.0), dtype=np.float32)
            sums = _convolve_image(pixels, kernel, units, *window, product)
            _rectify(product, sums, *self.stem.norm, False, maps[0])

    def _blocks(self, found: ImageMaps) -> Iterator[Callable[[], None]]:
        """The layers after the stem, block by block."""
        product, maps = found.product, found.levels
        for level, blocks in enumerate(self.stages):
            for number, block in enumerate(blocks):
                before = maps[level - 1] if level > 0 and number == 0 else maps[level]
                yield partial(block.apply, before, product, maps[level])
        for i in reversed(range(len(self.lateral))):
            level = self.first + i
            join = _join_by_registers if self.lateral[i][0].ndim == 3 else _join
            yield partial(join, maps[level], maps[level + 1], *self.lateral[i])
            yield partial(self.decoder[i].apply, maps[level], product, maps[level])


class Program(NamedTuple):
    """The operations of a ``FusedTrunk`` in integers, in order, with their weights in few arrays.

    A call of compiled code takes time for each array that it is given, more than a small map does.
    """

    # for each operation: its kind (``STEM`` etc.), the level that it writes, channels that it reads
    # and writes, groups of the norm, and where in the arrays below its taps, matrix, units, and the
    # gain and offset of its norm begin, or its bias
    table: Int[Array, "operations 10"]
    floats: Float[Array, " numbers"]
    integers: Int[Array, " integers"]
    eps: Float[Array, " operations"]


STEM, BLOCK, HALVING, JOIN = range(4)


def _pack_program(trunk: FusedTrunk) -> Program:
    floats, integers = _Packed(np.float32), _Packed(np.int16)
    table, eps = list[tuple[int, ...]](), list[float]()

    def add(kind: int, level: int, matrix: Any, units: Any, taps: Floats, *norm: Any) -> None:
        gain, offset, groups, tolerance = norm
        row = kind, level, 2 * matrix.shape[0], matrix.shape[1], groups, floats.add(taps)
        # with the zeros that follow their rows
        places = integers.add(matrix.base), floats.add(units.base), floats.add(gain)
        table.append((*row, *places, floats.add(offset)))
        eps.append(tolerance)

    none = np.zeros(0, np.float32)
    stem = trunk.stem
    add(STEM, 0, stem.pointwise, stem.units, none, *stem.norm)
    for level, blocks in enumerate(trunk.stages):
        for number, block in enumerate(blocks):
            kind = HALVING if level > 0 and number == 0 else BLOCK
            add(kind, level, block.pointwise, block.units, block.taps, *block.norm)
    for i in reversed(range(len(trunk.lateral))):
        matrix, units, bias = trunk.lateral[i]
        level, block = trunk.first + i, trunk.decoder[i]
        add(JOIN, level, matrix, units, none, none, bias, 0, 0.0)
        add(BLOCK, level, block.pointwise, block.units, block.taps, *block.norm)
    return Program(np.array(table), floats.join(), integers.join(), np.array(eps))


class _Packed:
    """Arrays one after the other, each at the beginning of a line."""

    def __init__(self, kind: type) -> None:
        self.kind, self.parts, self.count = kind, list[Any](), 0

    def add(self, numbers: Any) -> int:
        """Where the array begins."""
        begin, line = self.count, int16.LINE // np.dtype(self.kind).itemsize
        self.count += -(-numbers.size // line) * line
        self.parts.append((begin, numbers.ravel()))
        return begin

    def join(self) -> Any:
        """All arrays that were added."""
        out = int16.aligned(self.count, self.kind)
        for begin, numbers in self.parts:
            out[begin : begin + len(numbers)] = numbers
        return out


@dataclass(frozen=True)
class SparseFeatures:
    """The log odds of the face in an image, and the descriptors of pixels that are asked for.

    Only until the same thread runs a network on another image: its maps are reused.
    """

    face_logit: Float[Array, "height width"]
    describe: Callable[[Ints], Floats]  # (N, D) of (N,) pixels, which are numbered row by row

    @staticmethod
    def of(descriptor: Floats, face_logit: Floats) -> SparseFeatures:
        """Those of (h, w, D) descriptors that are known."""
        rows = descriptor.reshape(-1, descriptor.shape[2])
        return SparseFeatures(face_logit, rows.__getitem__)


class FusedNetwork:
    """``DescriptorNet`` for inference on the CPU, by numpy arrays. Threads may share it."""

    def __init__(self, net: DescriptorNet, *, reduced: bool = False) -> None:
        """``reduced``: multiply in integers where the CPU can (``dff.face.int16``)."""
        self.config = net.config
        self.trunk = _fuse_trunk(net, reduced)
        self.to_descriptor = _factor(_kernel(net.to_descriptor), reduced)
        self.to_face = _kernel(net.to_face)[:, 0]
        self.bias = _bias(net.to_descriptor), float(_bias(net.to_face)[0])

    def __call__(self, image: Tensor) -> Features:
        """(B, 3, H, W) float RGB 0..1 to ``Features``; their memory is channels last.

        Raises ValueError for sides that are no multiples of ``config.multiple``.
        """
        multiple = self.config.multiple
        if image.ndim != 4 or image.shape[1] != 3 or any(s % multiple for s in image.shape[2:]):
            raise ValueError(
                f"want (B, 3, H, W) with sides in multiples of {multiple}: {image.shape}"
            )
        pixels = np.ascontiguousarray(image.permute(0, 2, 3, 1).float().numpy())
        descriptor, logit = self.describe(pixels)
        return Features(torch.from_numpy(descriptor).permute(0, 3, 1, 2), torch.from_numpy(logit))

    def describe(self, images: Bytes | Floats) -> tuple[Floats, Floats]:
        """(B, H / 2, W / 2, D) descriptors and (B, H / 2, W / 2) log odds of the face.

        ``images``: (B, H, W, 3) RGB, uint8 or float32 in 0..1, with sides as in ``__call__``.
        """
        steps = self.describe_in_batches(images, len(images))
        while True:
            try:
                next(steps)
            except StopIteration as done:
                found: tuple[Floats, Floats] = done.value
                return found

    def describe_in_batches(
        self, images: Bytes | Floats, batch: int
    ) -> Generator[None, None, tuple[Floats, Floats]]:
        """``describe``, ``batch`` images in each step."""
        shape = len(images), images.shape[1] // STRIDE, images.shape[2] // STRIDE
        descriptor = np.empty((*shape, self.config.dims), np.float32)
        logit = np.empty(shape, np.float32)
        for i, one in enumerate(images):
            if i > 0 and i % batch == 0:
                yield
            self._apply_heads(self.trunk(one), descriptor[i], logit[i])
        return descriptor, logit

    def describe_in_steps(self, image: Bytes) -> Generator[None, None, tuple[Floats, Floats]]:
        """``describe`` of one (H, W, 3) image, in the steps of its ``FusedTrunk.run_in_steps``.

        The descriptors are valid until the thread's next image.
        """
        found = yield from self.trunk.run_in_steps(image)
        shape = image.shape[0] // STRIDE, image.shape[1] // STRIDE
        # in memory that nothing needs any more, if that is enough: new memory takes its time
        count = math.prod(shape) * self.config.dims
        memory = found.product if len(found.product) >= count else np.empty(count, np.float32)
        descriptor = memory[:count].reshape(*shape, self.config.dims)
        logit = np.empty(shape, np.float32)
        self._apply_heads(found.levels[self.trunk.first], descriptor, logit)
        return descriptor, logit

    def _apply_heads(self, trunk: Floats, descriptor: Floats, logit: Floats) -> None:
        heads = *self.to_descriptor, self.to_face, *self.bias
        _apply_heads(trunk, *heads, descriptor, logit)

    def describe_sparsely(self, image: Bytes) -> SparseFeatures:
        """``describe_sparsely`` of this network."""
        trunk = self.trunk(image)
        logit = np.empty((trunk.shape[0] - 2, trunk.shape[1] - 2), np.float32)
        _apply_face_head(trunk, self.to_face, self.bias[1], logit)

        def describe(pixels: Ints) -> Floats:
            out = np.empty((len(pixels), self.config.dims), np.float32)
            _apply_descriptor_head(trunk, pixels, *self.to_descriptor, self.bias[0], out)
            return out

        return SparseFeatures(logit, describe)


def describe_images(net: Network, images: Bytes, *, batch: int) -> tuple[Floats, Floats]:
    """(B, h, w, D) descriptors and (B, h, w) log odds of the face of (B, H, W, 3) uint8 images.

    ``batch``: images in one call of a network of torch.
    """
    if isinstance(net, FusedNetwork):
        return net.describe(images)
    with torch.inference_mode():
        parts = [net(part) for part in torch.split(image_batch(torch.from_numpy(images)), batch)]
    descriptor = torch.cat([part.descriptor for part in parts]).float().permute(0, 2, 3, 1)
    return descriptor.numpy(), torch.cat([part.face_logit for part in parts]).float().numpy()


def describe_in_batches(
    net: Network, images: Bytes, batch: int
) -> Generator[None, None, tuple[Floats, Floats]]:
    """``describe_images``, ``batch`` of them in each step."""
    if isinstance(net, FusedNetwork):
        found = yield from net.describe_in_batches(images, batch)
        return found
    parts = []
    for begin in range(0, len(images), batch):
        if begin > 0:
            yield
        parts.append(describe_images(net, images[begin : begin + batch], batch=batch))
    descriptor, logit = (np.concatenate(some) for some in zip(*parts, strict=True))
    return descriptor, logit


def describe_in_steps(net: Network, image: Bytes) -> Generator[None, None, tuple[Floats, Floats]]:
    """``describe_images`` of one (H, W, 3) image: (h, w, D) descriptors and (h, w) log odds.

    Yields on the way where that takes long. The descriptors are valid until the thread's next
    image.
    """
    if isinstance(net, FusedNetwork):
        found = yield from net.describe_in_steps(image)
        return found
    (descriptor,), (logit,) = describe_images(net, image[None], batch=1)
    return descriptor, logit


def describe_sparsely(net: Network, image: Bytes) -> SparseFeatures:
    """What a network shows of an (H, W, 3) image, of which only some pixels are described."""
    if isinstance(net, FusedNetwork):
        return net.describe_sparsely(image)
    ((descriptor,), (logit,)) = describe_images(net, image[None], batch=1)
    return SparseFeatures.of(descriptor, logit)


class FusedDetectorNet:
    """``DetectorNet`` for inference on the CPU. Threads may share it."""

    def __init__(self, net: DetectorNet, *, reduced: bool = False) -> None:
        """``reduced``: multiply in integers where the CPU can (``dff.face.int16``)."""
        self.config = net.config
        self.trunk = _fuse_trunk(net, reduced)
        self.head, self.bias = _kernel(net.head), _bias(net.head)

    def __call__(self, image: Bytes) -> Floats:
        """(H, W, 3) uint8 RGB to (H / 8, W / 8, DETECTOR_CHANNELS) answers.

        Raises ValueError for sides that are no multiples of ``config.multiple``.
        """
        multiple = self.config.multiple
        if any(side % multiple for side in image.shape[:2]):
            raise ValueError(f"want (H, W, 3) in multiples of {multiple}: {image.shape}")
        trunk = self.trunk(image)
        return np.asarray(trunk[1:-1, 1:-1] @ self.head + self.bias)


def _fuse_trunk(net: DescriptorNet | DetectorNet, reduced: bool) -> FusedTrunk:
    parts = net.stem, net.encoder, net.lateral, net.decoder, net.config.widths
    return FusedTrunk(*parts, reduced=reduced)


# A level of a uint8 image, normalised, is a multiple of this unit. Those of float32 images are
# rounded to it.
LEVEL_UNIT = 2.0 / (32 * 255)
_KEPT = threading.local()  # the workspace of each thread
_WORKSPACES: WeakSet[Workspace] = WeakSet()  # those of all threads


def _allocate(count: int) -> Floats:
    """(``count``,) numbers of any value, in memory that begins where registers do.

    NumPy's memory is that of large pages where it is large, which are there several times sooner.
    """
    numbers = np.empty(count + LINE, np.float32)
    skipped = -numbers.ctypes.data // numbers.itemsize % LINE
    return numbers[skipped : skipped + count]


def drop_spare_memory(*, if_unused: bool = False) -> None:
    """``Workspace.drop_spare`` of all threads."""
    for workspace in [*_WORKSPACES]:
        workspace.drop_spare(if_unused=if_unused)


def _get_workspace() -> Workspace:
    found: Workspace | None = getattr(_KEPT, "workspace", None)
    if found is None:
        found = _KEPT.workspace = Workspace()
    return found


@numba.njit(cache=CACHE, nogil=True)
def _clear_border(values):  # type: ignore[no-untyped-def]
    """Set the outermost pixels of (rows, columns, channels) to zero."""
    values[0] = 0
    values[-1] = 0
    values[1:-1, 0] = 0
    values[1:-1, -1] = 0


def _numbers(weight: Tensor) -> Floats:
    return np.ascontiguousarray(weight.detach().cpu().float().numpy())


def _factor(matrix: Floats, reduced: bool) -> tuple[Any, Any]:
    """The right factor of products, packed in integers where it is ``reduced`` and can be.

    With the units of its columns; none without integers.
    """
    if reduced and int16.is_available() and int16.can_pack(matrix):
        return int16.pack_pairs(matrix)
    return np.ascontiguousarray(matrix), np.zeros(0, np.float32)


def _modules(parent: nn.Module) -> list[nn.Module]:
    return list(parent.children())


def _kernel(convolution: nn.Module) -> Floats:
    """(inputs, outputs) weights of a 1 x 1 convolution."""
    assert isinstance(convolution, nn.Conv2d)
    return np.ascontiguousarray(_numbers(convolution.weight)[:, :, 0, 0].T)


def _bias(convolution: nn.Module) -> Floats:
    assert isinstance(convolution, nn.Conv2d)
    assert convolution.bias is not None
    return _numbers(convolution.bias)


def _multiply(a: Any, b: Any, units: Any, out: Any) -> None:
    """Write the product with (K, N) float32 ``b``, or with a packed one; for compiled code."""
    raise TypeError("only compiled code calls this")


@overload(_multiply)
def _choose_product(a, b, units, out):  # type: ignore[no-untyped-def]
    """The product by the type of ``b``: code for integers may not run on this CPU."""
    if b.ndim == 2:
        return lambda a, b, units, out: np.dot(a, b, out)
    return _multiply_quantised


def _multiply_quantised(a, b, units, out):  # type: ignore[no-untyped-def]
    numbers = np.empty(a.shape, np.int16)
    unit = int16.quantise(a.reshape(-1), numbers.reshape(-1))
    int16.multiply(numbers, unit, b, units, out)


@numba.njit(cache=CACHE, nogil=True)
def _tile(columns, channels):  # type: ignore[no-untyped-def]
    """The smallest whole share of ``columns`` whose numbers fill ``TILE``, else all of them."""
    for share in range(1, columns):
        if columns % share == 0 and share * channels >= TILE:
            return share
    return columns


@numba.njit(cache=CACHE, nogil=True, fastmath=True, error_model="numpy")
def _add_sums(y, sums):  # type: ignore[no-untyped-def]
    """Add the channels' sums of (N, C) ``y`` and of its square to ``sums`` (2, C)."""
    pixels, channels = y.shape
    first, second = np.zeros(channels, np.float32), np.zeros(channels, np.float32)
    for i in range(pixels):
        for c in range(channels):
            v = y[i, c]
            first[c] += v
            second[c] += v * v
    for c in range(channels):
        sums[0, c] += first[c]
        sums[1, c] += second[c]


@numba.njit(cache=CACHE, nogil=True)
def _add_to(some, sums):  # type: ignore[no-untyped-def]
    """Add (2, C) float32 to float64 ``sums``."""
    for i in range(2):
        for c in range(some.shape[1]):
            sums[i, c] += some[i, c]


@numba.njit(cache=CACHE, nogil=True, fastmath=True, error_model="numpy")
def _convolve(x, taps, pointwise, units, product):  # type: ignore[no-untyped-def]
    """3 x 3 depthwise, then pointwise convolution of the bordered map ``x``; returns the sums."""
    rows, columns, channels = x.shape[0] - 2, x.shape[1] - 2, x.shape[2]
    outputs = pointwise.shape[1]
    y, sums = product[: rows * columns * outputs].reshape(-1, outputs), np.zeros((2, outputs))
    tile = _tile(columns, channels)
    width = tile * channels
    tiled = np.empty(9 * width, np.float32)
    for k in range(9):
        for t in range(tile):
            for c in range(channels):
                tiled[k * width + t * channels + c] = taps[k, c]
    strip = max(1, min(rows, STRIP // (columns * channels)))
    part = np.empty((strip * columns, channels), np.float32)
    flat, source = part.reshape(-1), x.reshape(-1)
    line = (columns + 2) * channels
    for begin in range(0, rows, strip):
        end = min(begin + strip, rows)
        at = 0
        for r in range(begin, end):
            for left in range(0, columns * channels, width):
                _filter(source, r * line + left, line, channels, tiled, width, flat, at)
                at += width
        some = y[begin * columns : end * columns]
        _multiply(part[: (end - begin) * columns], pointwise, units, some)
        _add_sums(some, sums)
    return sums


@numba.njit(cache=CACHE, nogil=True, fastmath=True, error_model="numpy")
def _filter(x, at, line, step, taps, width, out, to):  # type: ignore[no-untyped-def]
    """``width`` numbers of a 3 x 3 depthwise convolution of a flat map, ``line`` numbers a row."""
    n = np.uint64(width)
    a0, b0, c0 = np.uint64(at), np.uint64(at + line), np.uint64(at + 2 * line)
    a1, b1, c1 = np.uint64(at + step), np.uint64(at + line + step), np.uint64(at + 2 * line + step)
    a2, b2 = np.uint64(at + 2 * step), np.uint64(at + line + 2 * step)
    c2, end = np.uint64(at + 2 * line + 2 * step), np.uint64(to)
    n1, n2, n3, n4 = n, n + n, n + n + n, n + n + n + n
    for t in range(n):
        out[end + t] = (
            x[a0 + t] * taps[t]
            + x[a1 + t] * taps[n1 + t]
            + x[a2 + t] * taps[n2 + t]
            + x[b0 + t] * taps[n3 + t]
            + x[b1 + t] * taps[n4 + t]
            + x[b2 + t] * taps[n4 + n1 + t]
            + x[c0 + t] * taps[n4 + n2 + t]
            + x[c1 + t] * taps[n4 + n3 + t]
            + x[c2 + t] * taps[n4 + n4 + t]
        )


@numba.njit(cache=CACHE, nogil=True, fastmath=True, error_model="numpy")
def _convolve_halving(x, taps, pointwise, units, product):  # type: ignore[no-untyped-def]
    """4 x 4 depthwise convolution at every second pixel, then pointwise; returns the sums."""
    rows, columns, channels = (x.shape[0] - 2) // 2, (x.shape[1] - 2) // 2, x.shape[2]
    outputs = pointwise.shape[1]
    y, sums = product[: rows * columns * outputs].reshape(-1, outputs), np.zeros((2, outputs))
    strip = max(1, min(rows, STRIP // (columns * channels)))
    part = np.empty((strip * columns, channels), np.float32)
    flat, source, weights = part.reshape(-1), x.reshape(-1), taps.reshape(-1)
    line = x.shape[1] * channels
    for begin in range(0, rows, strip):
        end = min(begin + strip, rows)
        at = 0
        for r in range(begin, end):
            for column in range(columns):
                start = 2 * r * line + 2 * column * channels
                _filter_four(source, start, line, channels, weights, flat, at)
                at += channels
        some = y[begin * columns : end * columns]
        _multiply(part[: (end - begin) * columns], pointwise, units, some)
        _add_sums(some, sums)
    return sums


@numba.njit(cache=CACHE, nogil=True, fastmath=True, error_model="numpy")
def _filter_four(x, at, line, n, taps, out, to):  # type: ignore[no-untyped-def]
    """The ``n`` channels of one pixel of a 4 x 4 depthwise convolution of a flat map."""
    m, end = np.uint64(n), np.uint64(to)
    for i in range(4):
        w0, x0 = np.uint64(4 * i * n), np.uint64(at + i * line)
        w1, x1, w2, x2 = w0 + m, x0 + m, w0 + m + m, x0 + m + m
        w3, x3 = w2 + m, x2 + m
        for c in range(m):
            sum_of_row = (
                x[x0 + c] * taps[w0 + c]
                + x[x1 + c] * taps[w1 + c]
                + x[x2 + c] * taps[w2 + c]
                + x[x3 + c] * taps[w3 + c]
            )
            out[end + c] = sum_of_row if i == 0 else out[end + c] + sum_of_row


@numba.njit(cache=CACHE, nogil=True, fastmath=True, error_model="numpy")
def _convolve_image(image, kernel, units, side, stride, product):  # type: ignore[no-untyped-def]
    """The stem: convolution of an (H, W, 3) image at every ``stride``-th pixel; the sums.

    ``side`` of the square kernel: two more than the stride, so that one pixel of zeros borders the
    image.
    """
    rows, columns, outputs = image.shape[0] // stride, image.shape[1] // stride, kernel.shape[1]
    y, sums = product[: rows * columns * outputs].reshape(-1, outputs), np.zeros((2, outputs))
    line = 3 * side
    strip = max(1, min(rows, STRIP // (columns * side * line)))
    part = np.empty((strip * columns, side * line), np.float32)
    # rows of the image with the zeros beyond its edges
    bordered = np.zeros((stride * strip + 2, (stride * columns + 2) * 3), np.float32)
    pixels = image.reshape(stride * rows, -1)
    for begin in range(0, rows, strip):
        end = min(begin + strip, rows)
        for i in range(stride * (end - begin) + 2):
            row = stride * begin + i - 1
            if row < 0 or row >= stride * rows:
                bordered[i] = 0.0
            else:
                for t in range(3 * stride * columns):
                    bordered[i, t + 3] = (pixels[row, t] - np.float32(0.5)) * np.float32(4.0)
        at = 0
        for r in range(end - begin):
            for column in range(columns):
                for i in range(side):
                    for t in range(line):
                        part[at, line * i + t] = bordered[stride * r + i, 3 * stride * column + t]
                at += 1
        some = y[begin * columns : end * columns]
        _multiply(part[: (end - begin) * columns], kernel, units, some)
        _add_sums(some, sums)
    return sums


def _quantise_pixels(image: Bytes | Floats, out: Ints) -> None:
    """Write an image, normalised, in integers within the border of ``out``."""
    pixels = np.ascontiguousarray(image)  # colours may be in reverse order
    if image.dtype == np.uint8:
        _quantise_levels(pixels, out)
    else:
        _quantise_image(pixels, out)


@numba.njit(cache=CACHE, nogil=True)
def _quantise_levels(image, out):  # type: ignore[no-untyped-def]
    """Write an (H, W, 3) uint8 image, normalised, in integers within the border of ``out``."""
    rows, numbers = image.shape[0], 3 * image.shape[1]
    pixels = image.reshape(rows, numbers)
    for r in range(rows):
        for t in range(numbers):
            out[r + 1, t + 3] = 64 * np.int32(pixels[r, t]) - 32 * 255


@numba.njit(cache=CACHE, nogil=True)
def _quantise_image(image, out):  # type: ignore[no-untyped-def]
    """Write a normalised (H, W, 3) float32 image in integers within the border of ``out``."""
    rows, numbers = image.shape[0], 3 * image.shape[1]
    pixels = image.reshape(rows, numbers)
    inverse = np.float32(1.0 / LEVEL_UNIT)
    for r in range(rows):
        part = (pixels[r] - np.float32(0.5)) * np.float32(4.0)
        int16.round_to(part, inverse, out[r + 1, 3 : numbers + 3])


# What calls the loops of ``int16`` is compiled without fast arithmetic: it would apply to copies of
# them in the cached code alone, whose sums would differ from those of the process that compiled it.
@numba.njit(cache=CACHE, nogil=True)
def _convolve_quantised_image(image, kernel, units, side, stride, product):  # type: ignore[no-untyped-def]
    """``_convolve_image`` of a bordered image in integers, by a packed kernel."""
    rows = (image.shape[0] - 2) // stride
    columns, outputs = (image.shape[1] // 3 - 2) // stride, kernel.shape[1]
    y, sums = product[: rows * columns * outputs].reshape(-1, outputs), np.zeros((2, outputs))
    unit, of_row = np.float32(LEVEL_UNIT), np.empty((2, outputs), np.float32)
    for r in range(rows):
        some = y[r * columns : (r + 1) * columns]
        int16.convolve_row(image, r * stride, side, stride, unit, kernel, units, some)
        of_row[:] = 0.0
        int16.add_sums(some, of_row[0], of_row[1])
        _add_to(of_row, sums)
    return sums


@numba.njit(cache=CACHE, nogil=True)
def _convolve_quantised(x, taps, pointwise, units, halves, product):  # type: ignore[no-untyped-def]
    """``_convolve`` or ``_convolve_halving`` by a packed matrix of integers.

    Each strip of rows of the depthwise result has a unit of its own.
    """
    stride = 2 if halves else 1
    rows, columns = (x.shape[0] - 2) // stride, (x.shape[1] - 2) // stride
    channels, outputs = x.shape[2], pointwise.shape[1]
    y, sums = product[: rows * columns * outputs].reshape(-1, outputs), np.zeros((2, outputs))
    strip = max(1, min(rows, QUANTISED_STRIP // (columns * channels)))
    part = int16.unset(strip * columns * channels, np.float32).reshape(-1, channels)
    numbers = int16.unset(strip * columns * channels, np.int16).reshape(-1, channels)
    sizes, of_strip = int16.unset(int16.LANES, np.float32), np.empty((2, outputs), np.float32)
    line = x.shape[1] * channels
    for begin in range(0, rows, strip):
        end = min(begin + strip, rows)
        pixels = (end - begin) * columns
        sizes[:] = 0.0
        for r in range(begin, end):
            row = part[(r - begin) * columns : (r - begin + 1) * columns]
            int16.filter_row(x, stride * r * line, line, taps, halves, row, sizes)
        found = part[:pixels].reshape(-1), numbers[:pixels].reshape(-1)
        unit = int16.quantise_up_to(sizes, *found)
        some = y[begin * columns : end * columns]
        int16.multiply(numbers[:pixels], unit, pointwise, units, some)
        of_strip[:] = 0.0
        int16.add_sums(some, of_strip[0], of_strip[1])
        _add_to(of_strip, sums)
    return sums


@numba.njit(cache=CACHE, nogil=True, fastmath=True, error_model="numpy")
def _norm(sums, gain, offset, groups, pixels, eps, slope, shift):  # type: ignore[no-untyped-def]
    """Fill the slopes and shifts of the channels of a group norm from their ``sums``."""
    size = len(gain) // groups
    count = size * pixels
    for g in range(groups):
        first, second = 0.0, 0.0
        for c in range(g * size, (g + 1) * size):
            first += sums[0, c]
            second += sums[1, c]
        mean = first / count
        inverse = 1.0 / np.sqrt(max(second / count - mean * mean, 0.0) + eps)
        for c in range(g * size, (g + 1) * size):
            slope[c] = gain[c] * inverse
            shift[c] = offset[c] - mean * inverse * gain[c]


@numba.njit(cache=CACHE, nogil=True, fastmath=True, error_model="numpy")
def _rectify(product, sums, gain, offset, groups, eps, adds, out):  # type: ignore[no-untyped-def]
    """Write the rectified group norm of the product into a bordered map, or add it to the map."""
    rows, columns, channels = out.shape[0] - 2, out.shape[1] - 2, out.shape[2]
    tile = _tile(columns, channels)
    width = tile * channels
    affine = np.empty(2 * width, np.float32)  # slopes, then shifts
    _norm(sums, gain, offset, groups, rows * columns, eps, affine, affine[width:])
    for t in range(channels, width):
        affine[t], affine[width + t] = affine[t - channels], affine[width + t - channels]
    flat, line, at = out.reshape(-1), (columns + 2) * channels, 0
    for r in range(1, rows + 1):
        for left in range(channels, (columns + 1) * channels, width):
            _rectify_tile(product, at, affine, width, adds, flat, r * line + left)
            at += width


@numba.njit(cache=CACHE, nogil=True, fastmath=True, error_model="numpy")
def _rectify_tile(y, at, affine, width, adds, out, to):  # type: ignore[no-untyped-def]
    n, start, end = np.uint64(width), np.uint64(at), np.uint64(to)
    for t in range(n):
        v = max(y[start + t] * affine[t] + affine[n + t], np.float32(0.0))
        out[end + t] = out[end + t] + v if adds else v


@numba.njit(cache=CACHE, nogil=True, error_model="numpy")
def _rectify_by_registers(product, sums, gain, offset, groups, eps, adds, out):  # type: ignore[no-untyped-def]
    """``_rectify`` on CPUs that can multiply integers."""
    rows, columns, channels = out.shape[0] - 2, out.shape[1] - 2, out.shape[2]
    slope, shift = np.empty(channels, np.float32), np.empty(channels, np.float32)
    _norm(sums, gain, offset, groups, rows * columns, eps, slope, shift)
    y, flat = product[: rows * columns * channels].reshape(-1, channels), out.reshape(-1)
    line = (columns + 2) * channels
    for r in range(rows):
        row = y[r * columns : (r + 1) * columns]
        int16.rectify_row(row, slope, shift, adds, flat, (r + 1) * line + channels)


@numba.njit(cache=CACHE, nogil=True)
def _apply_quantised(  # type: ignore[no-untyped-def]
    x, taps, pointwise, units, halves, product, gain, offset, groups, eps, out
):
    """``FusedBlock.apply`` in integers, in one call: most of the time of small maps is calls."""
    sums = _convolve_quantised(x, taps, pointwise, units, halves, product)
    _rectify_by_registers(product, sums, gain, offset, groups, eps, not halves, out)


@numba.njit(cache=CACHE, nogil=True, fastmath=True, error_model="numpy")
def _join(out, x, weight, units, bias):  # type: ignore[no-untyped-def]
    """Add the 1 x 1 convolution of the bordered map ``x``, each pixel of it twice, to ``out``."""
    rows, columns, channels = x.shape[0] - 2, x.shape[1] - 2, out.shape[2]
    coarse = np.empty((columns, channels), np.float32)
    for r in range(rows):
        _multiply(x[r + 1, 1 : columns + 1], weight, units, coarse)
        for i in range(1, 3):
            target = out[2 * r + i]
            for column in range(columns):
                for c in range(channels):
                    more = coarse[column, c] + bias[c]
                    target[2 * column + 1, c] += more
                    target[2 * column + 2, c] += more


@numba.njit(cache=CACHE, nogil=True)
def _join_by_registers(out, x, weight, units, bias):  # type: ignore[no-untyped-def]
    """``_join`` on CPUs that can multiply integers."""
    rows, columns, channels = x.shape[0] - 2, x.shape[1] - 2, out.shape[2]
    coarse = int16.unset(columns * channels, np.float32).reshape(-1, channels)
    flat, line = out.reshape(-1), out.shape[1] * channels
    for r in range(rows):
        _multiply(x[r + 1, 1 : columns + 1], weight, units, coarse)
        for i in range(1, 3):
            int16.add_twice(coarse, bias, flat, (2 * r + i) * line + channels)


@numba.njit(cache=CACHE, nogil=True)
def _run_program(image, side, stride, table, floats, integers, eps, memory, layout):  # type: ignore[no-untyped-def]
    """Run a ``Program`` on a bordered image in integers, whose maps lie in ``memory``.

    Other threads have the interpreter meanwhile. A call for each block would ask for it after every
    0.1 ms, and wait as long for each turn of theirs.
    """
    product = memory[layout[-1, 0] :]
    for i in range(len(table)):
        kind, level, inputs, outputs, groups, to_taps, to_matrix, to_units = table[i, :8]
        whole = (outputs // int16.COLUMNS + 1) * int16.COLUMNS
        rows = integers[to_matrix : to_matrix + inputs * whole].reshape(inputs // 2, whole, 2)
        matrix, units = rows[:, :outputs], floats[to_units : to_units + outputs]
        gain = floats[table[i, 8] : table[i, 8] + outputs]
        offset = floats[table[i, 9] : table[i, 9] + outputs]
        out = _view_map(memory, layout, level)
        if kind == STEM:
            sums = _convolve_quantised_image(image, matrix, units, side, stride, product)
            _rectify_by_registers(product, sums, gain, offset, groups, eps[i], False, out)
        elif kind == JOIN:
            below = _view_map(memory, layout, level + 1)
            _join_by_registers(out, below, matrix, units, offset)
        else:
            halves = kind == HALVING
            size = 16 if halves else 9
            taps = floats[to_taps : to_taps + size * inputs].reshape(size, inputs)
            before = _view_map(memory, layout, level - 1 if halves else level)
            weights = taps, matrix, units
            _apply_quantised(before, *weights, halves, product, gain, offset, groups, eps[i], out)


@numba.njit(cache=CACHE, nogil=True)
def _view_map(memory, layout, level):  # type: ignore[no-untyped-def]
    """The bordered map of a level."""
    begin, rows, columns, channels = layout[level]
    return memory[begin : begin + rows * columns * channels].reshape(rows, columns, channels)


@numba.njit(cache=CACHE, nogil=True, fastmath=True, error_model="numpy")
def _apply_face_head(trunk, to_face, bias, logit):  # type: ignore[no-untyped-def]
    """Face logits of a bordered map."""
    rows, columns = logit.shape
    for r in range(rows):
        for column in range(columns):
            face = np.float32(bias)
            for c in range(len(to_face)):
                face += trunk[r + 1, column + 1, c] * to_face[c]
            logit[r, column] = face


@numba.njit(cache=CACHE, nogil=True, fastmath=True, error_model="numpy")
def _apply_descriptor_head(trunk, chosen, weight, units, bias, descriptor):  # type: ignore[no-untyped-def]
    """Unit descriptors of the ``chosen`` pixels of a bordered map."""
    columns, channels = trunk.shape[1] - 2, trunk.shape[2]
    some = np.empty((len(chosen), channels), np.float32)
    for i in range(len(chosen)):
        row, column = chosen[i] // columns, chosen[i] % columns
        for c in range(channels):
            some[i, c] = trunk[row + 1, column + 1, c]
    _multiply(some, weight, units, descriptor)
    _normalise(descriptor, bias)


@numba.njit(cache=CACHE, nogil=True, fastmath=True, error_model="numpy")
def _normalise(descriptor, bias):  # type: ignore[no-untyped-def]
    """Add the bias to (N, D) descriptors, and give them unit length."""
    pixels, dims = descriptor.shape
    for i in range(pixels):
        square = np.float32(0.0)
        for d in range(dims):
            v = descriptor[i, d] + bias[d]
            descriptor[i, d] = v
            square += v * v
        inverse = np.float32(1.0) / max(np.sqrt(square), np.float32(1e-12))
        for d in range(dims):
            descriptor[i, d] *= inverse


@numba.njit(cache=CACHE, nogil=True, fastmath=True, error_model="numpy")
def _apply_heads(trunk, to_descriptor, units, to_face, bias, face_bias, descriptor, logit):  # type: ignore[no-untyped-def]
    """Unit descriptors and face logits of a bordered map."""
    rows, columns, _ = descriptor.shape
    for r in range(rows):
        line, out = trunk[r + 1, 1 : columns + 1], descriptor[r]
        _multiply(line, to_descriptor, units, out)
        _normalise(out, bias)
        for column in range(columns):
            face = np.float32(face_bias)
            for c in range(len(to_face)):
                face += line[column, c] * to_face[c]
            logit[r, column] = face
