"""Matrix products in bfloat16 on CPUs that have instructions for them (AVX-512 BF16).

Factors are rounded to bfloat16, which has 8 bits of precision, and multiplied exactly; sums are in
single precision. Such a product takes 0.4 of the time of one in single precision, and each of its
numbers is off by about 0.2 % of the largest.

Numbers are kept as uint16, the upper half of a float32. The instruction adds the products of two
pairs of neighbours, so the right factor is kept with the rows of a pair side by side
(``pack_pairs``).
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba.core import config, types
from numba.extending import intrinsic

from dff.face.arrays import Floats
from dff.face.numba_cache import CACHE

LANES = 16  # numbers of a vector register
COLUMNS = 2 * LANES  # of the product that are computed at a time
ROWS = 8  # with it: 16 sums stay in registers


def is_available() -> bool:
    """Whether this CPU has the instructions, and numba compiles for it by an LLVM with them.

    numba compiles for other CPUs on demand (``NUMBA_CPU_NAME``, ``NUMBA_CPU_FEATURES``).
    """
    if config.CPU_NAME is not None or config.CPU_FEATURES is not None or not config.ENABLE_AVX:
        return False
    features = llvmlite.binding.get_host_cpu_features()
    return bool(features.get("avx512bf16")) and llvmlite.binding.llvm_version_info >= (16, 0, 0)


def can_pack(matrix: Floats) -> bool:
    """Whether ``multiply`` takes a right factor of this shape."""
    return matrix.shape[0] % 2 == 0


def pack_pairs(matrix: Floats) -> Any:
    """(K / 2, N, 2) uint16: the rows of a (K, N) float32 right factor, two side by side.

    In memory whole registers of zeros follow each row.
    """
    rounded = np.empty(matrix.size, np.uint16)
    round_numbers(np.ascontiguousarray(matrix, np.float32).reshape(-1), rounded)
    k, n = matrix.shape
    padded = np.zeros((k // 2, -(-n // COLUMNS) * COLUMNS, 2), np.uint16)
    padded[:, :n] = rounded.reshape(k // 2, 2, n).transpose(0, 2, 1)
    return padded[:, :n]


@numba.njit(cache=CACHE, nogil=True)
def round_numbers(numbers, out):  # type: ignore[no-untyped-def]
    """Round (N,) float32 to the nearest bfloat16; of two equally near ones to the even one."""
    bits = numbers.view(np.uint32)
    for i in range(len(bits)):
        out[i] = (bits[i] + np.uint32(0x7FFF) + ((bits[i] >> 16) & 1)) >> 16


@numba.njit(cache=CACHE, nogil=True)
def multiply(a, b, out):  # type: ignore[no-untyped-def]
    """Write the product of (M, K) uint16 ``a`` and packed ``b`` to (M, N) float32 ``out``."""
    _multiply_windows(a.ctypes.data, 2 * a.shape[1], b.shape[0], 0, b, out)


@numba.njit(cache=CACHE, nogil=True)
def convolve_row(image, row, side, stride, kernel, out):  # type: ignore[no-untyped-def]
    """Write a row of a convolution to (N, outputs) float32 ``out``.

    (H, 3 W) uint16 RGB ``image``, read from its ``row`` on; a square ``kernel`` of ``side`` pixels,
    an even number, packed from (side * side * 3, outputs), which moves by ``stride`` pixels.
    """
    line = image.strides[0]
    segment = 3 * side // 2
    first = image.ctypes.data + row * line
    _multiply_windows(first, 6 * stride, segment, line - 4 * segment, kernel, out)


@numba.njit(cache=CACHE, nogil=True)
def _multiply_windows(left, row, segment, jump, b, out):  # type: ignore[no-untyped-def]
    """``multiply`` by a left factor at an address, ``row`` bytes between its rows.

    A row continues ``jump`` bytes further after each ``segment`` of pairs.
    """
    m, n = out.shape
    step, line, pairs = b.strides[0], 4 * n, b.shape[0]
    right, to = b.ctypes.data, out.ctypes.data
    for j in range(0, n, COLUMNS):
        b_at, out_at, columns = right + 4 * j, to + 4 * j, n - j
        for i in range(0, m - ROWS + 1, ROWS):
            a_at, to_at = left + i * row, out_at + i * line
            _multiply_rows(a_at, row, b_at, step, to_at, line, columns, pairs, segment, jump)
        if m % ROWS and m > ROWS:  # some rows twice
            i = m - ROWS
            a_at, to_at = left + i * row, out_at + i * line
            _multiply_rows(a_at, row, b_at, step, to_at, line, columns, pairs, segment, jump)
        elif m < ROWS:
            for i in range(m):
                a_at, to_at = left + i * row, out_at + i * line
                _multiply_row(a_at, row, b_at, step, to_at, line, columns, pairs, segment, jump)


@numba.njit(cache=CACHE, nogil=True)
def filter_row(x, at, line, taps, halves, out, to):  # type: ignore[no-untyped-def]
    """Write a row of a depthwise convolution, rounded, to (N, channels) uint16 ``out`` from ``to``.

    From number ``at`` on of a float32 map whose rows have ``line`` numbers. ``taps`` (k * k,
    channels) float32: 3 x 3, or 4 x 4 at every second pixel where it ``halves`` the map. At least
    ``LANES`` channels.
    """
    channels, columns = out.shape[1], len(out) - to
    step, wide = 4 * channels, 4 * line
    for block in range(0, channels, LANES):
        first = min(block, channels - LANES)  # some channels twice
        x_at, taps_at = x.ctypes.data + 4 * (at + first), taps.ctypes.data + 4 * first
        out_at = out.ctypes.data + 2 * (to * channels + first)
        if halves:
            _filter_halving(x_at, wide, step, taps_at, out_at, columns)
        else:
            _filter(x_at, wide, step, taps_at, out_at, columns)


class _BFloat(ir.Type):
    """LLVM's type, which llvmlite lacks."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash("bfloat")


def declare(builder: Any, name: str, kind: Any) -> Any:
    """The declaration of an LLVM intrinsic in the builder's module."""
    return builder.module.globals.get(name) or ir.Function(builder.module, kind, name)


def _tile(rows: int) -> Any:
    """A function for compiled code: ``rows`` x ``COLUMNS`` of a product.

    Its arguments are the addresses of the left factor, the right one and the result, each followed
    by the bytes of one of its rows, the number of columns that the result has from there on, and
    the number of pairs. After each ``segment`` of pairs the left factor continues ``jump`` bytes
    further.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, row, b, step, out, line, columns, pairs, segment, jump = args
        word, long = ir.IntType(32), ir.IntType(64)
        floats, words = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(word, LANES)
        halves = ir.VectorType(_BFloat(), 2 * LANES)
        name = "llvm.x86.avx512bf16.dpbf16ps.512"
        kind = ir.FunctionType(floats, [floats, halves, halves])
        add_products = declare(builder, name, kind)
        bits = ir.VectorType(ir.IntType(1), LANES)
        kind = ir.FunctionType(ir.VoidType(), [floats, floats.as_pointer(), word, bits])
        store = declare(builder, "llvm.masked.store.v16f32.p0", kind)

        def address(base: Any, step: Any, count: Any, offset: int = 0) -> Any:
            return builder.add(builder.add(base, builder.mul(step, count)), long(offset))

        def below(count: Any) -> Any:
            """The lanes whose number is below ``count``."""
            longs = ir.VectorType(long, LANES)
            first = builder.insert_element(longs(ir.Undefined), count, word(0))
            same = builder.shuffle_vector(first, longs(ir.Undefined), words([0] * LANES))
            return builder.icmp_signed("<", longs([*range(LANES)]), same)

        def load(place: Any, of: Any) -> Any:
            return builder.load(builder.inttoptr(place, of.as_pointer()), align=4)

        entry = builder.block
        loop, done = builder.append_basic_block("pair"), builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        pair, place, rest = (builder.phi(long) for _ in range(3))  # rest of the segment, pairs
        pair.add_incoming(long(0), entry)
        place.add_incoming(a, entry)
        rest.add_incoming(segment, entry)
        sums = [[builder.phi(floats) for _ in range(2)] for _ in range(rows)]
        right = [
            builder.bitcast(load(address(b, pair, step, 4 * LANES * half), words), halves)
            for half in range(2)
        ]
        more = []
        for r in range(rows):
            one = load(address(place, row, long(r)), word)
            first = builder.insert_element(words(ir.Undefined), one, word(0))
            same = builder.shuffle_vector(first, words(ir.Undefined), words([0] * LANES))
            left = builder.bitcast(same, halves)
            more.append(
                [builder.call(add_products, [sums[r][half], left, right[half]]) for half in (0, 1)]
            )
        following = builder.add(pair, long(1))
        pair.add_incoming(following, loop)
        ends = builder.icmp_signed("==", rest, long(1))
        further = builder.select(ends, builder.add(jump, long(4)), long(4))
        place.add_incoming(builder.add(place, further), loop)
        rest.add_incoming(builder.select(ends, segment, builder.sub(rest, long(1))), loop)
        for r in range(rows):
            for half in range(2):
                sums[r][half].add_incoming(floats([0.0] * LANES), entry)
                sums[r][half].add_incoming(more[r][half], loop)
        builder.cbranch(builder.icmp_signed("<", following, pairs), loop, done)
        builder.position_at_end(done)
        masks = [below(builder.sub(columns, long(LANES * half))) for half in range(2)]
        for r in range(rows):
            for half in range(2):
                to = address(out, line, long(r), 4 * LANES * half)
                pointer = builder.inttoptr(to, floats.as_pointer())
                builder.call(store, [more[r][half], pointer, word(4), masks[half]])
        return context.get_dummy_value()

    def tile(
        typingctx: Any,
        a: Any,
        row: Any,
        b: Any,
        step: Any,
        out: Any,
        line: Any,
        columns: Any,
        pairs: Any,
        segment: Any,
        jump: Any,
    ) -> Any:
        return types.void(*[types.intp] * 10), generate

    return intrinsic(tile)


def _depthwise(side: int, stride: int) -> Any:
    """A function for compiled code: a depthwise convolution of ``LANES`` channels along a row.

    Its arguments are the address of the map, the bytes of one of its rows and of one of its pixels,
    the addresses of the taps and of the result, and the number of pixels of the result, which has
    as many channels as the map and the taps.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, line, step, taps, out, columns = args
        long, floats = ir.IntType(64), ir.VectorType(ir.FloatType(), LANES)
        rounded = ir.VectorType(_BFloat(), LANES)
        kind = ir.FunctionType(rounded, [floats])
        to_bfloat = declare(builder, "llvm.x86.avx512bf16.cvtneps2bf16.512", kind)
        kind = ir.FunctionType(floats, [floats, floats, floats])
        add_product = declare(builder, "llvm.fma.v16f32", kind)

        def load(place: Any) -> Any:
            return builder.load(builder.inttoptr(place, floats.as_pointer()), align=4)

        weights = [load(builder.add(taps, builder.mul(step, long(k)))) for k in range(side * side)]
        rows = [builder.mul(line, long(i)) for i in range(side)]
        pixels = [builder.mul(step, long(j)) for j in range(side)]
        forward = builder.mul(step, long(stride))
        half = builder.lshr(step, long(1))  # bytes of a pixel of the result
        entry = builder.block
        loop, done = builder.append_basic_block("column"), builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        column, source, target = (builder.phi(long) for _ in range(3))
        column.add_incoming(long(0), entry)
        source.add_incoming(x, entry)
        target.add_incoming(out, entry)
        sums = []
        for i in range(side):
            part = floats([0.0] * LANES)
            for j in range(side):
                one = load(builder.add(builder.add(source, rows[i]), pixels[j]))
                part = builder.call(add_product, [one, weights[i * side + j], part])
            sums.append(part)
        while len(sums) > 1:
            sums = [builder.fadd(sums[0], sums[1]), *sums[2:]]
        pointer = builder.inttoptr(target, rounded.as_pointer())
        builder.store(builder.call(to_bfloat, sums), pointer, align=2)
        following = builder.add(column, long(1))
        column.add_incoming(following, loop)
        source.add_incoming(builder.add(source, forward), loop)
        target.add_incoming(builder.add(target, half), loop)
        builder.cbranch(builder.icmp_signed("<", following, columns), loop, done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    def depthwise(
        typingctx: Any, x: Any, line: Any, step: Any, taps: Any, out: Any, columns: Any
    ) -> Any:
        return types.void(*[types.intp] * 6), generate

    return intrinsic(depthwise)


_multiply_rows, _multiply_row = _tile(ROWS), _tile(1)
_filter, _filter_halving = _depthwise(3, 1), _depthwise(4, 2)
