"""Matrix products in 16-bit integers on CPUs with AVX-512, twice as fast with AVX-512 VNNI.

The left factor has one unit, an 8,192th of its largest number, and each column of the right factor
another, so that no sum of products leaves 32 bits. Such a product takes 0.4 to 0.5 of the time of
one in single precision; the descriptors of a network change by less than 0.1 % of their length.

The instructions add the products of two pairs of neighbours to a lane of the sums, so the right
factor is packed with the rows of a pair side by side (``pack_pairs``).
"""

from __future__ import annotations

from collections.abc import Callable
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
LINE = 64  # bytes of a register, and of a line of the cache
ROWS = 8  # with it: 16 sums stay in registers
LARGEST = 8192  # units of a left factor
LARGEST_SUM = (2**31 - 1) // LARGEST  # of the sizes of a right factor's column
LARGEST_RIGHT = 2**15 - 1


def is_available() -> bool:
    """Whether this CPU has the instructions, and numba compiles for it by an LLVM with them.

    numba compiles for other CPUs on demand (``NUMBA_CPU_NAME``, ``NUMBA_CPU_FEATURES``).
    """
    if config.CPU_NAME is not None or config.CPU_FEATURES is not None or not config.ENABLE_AVX:
        return False
    features = llvmlite.binding.get_host_cpu_features()
    return bool(features.get("avx512bw")) and llvmlite.binding.llvm_version_info >= (16, 0, 0)


def can_pack(matrix: Floats) -> bool:
    """Whether ``multiply`` takes a right factor of this shape."""
    return bool(matrix.shape[0] % 2 == 0)


def pack_pairs(matrix: Floats) -> tuple[Any, Any]:
    """(K / 2, N, 2) int16: the rows of a (K, N) right factor, two side by side; (N,) their units.

    In memory whole registers of zeros follow each row, and the units. So the matrix is contiguous
    for no N: factors of every shape have one type in compiled code.
    """
    sizes = np.abs(matrix.astype(np.float64))
    # half a unit for each number that is rounded up
    unit = np.maximum(
        sizes.sum(0) / (LARGEST_SUM - len(matrix) / 2), sizes.max(0, initial=0.0) / LARGEST_RIGHT
    )
    unit = np.where(unit > 0.0, unit, 1.0)
    k, n = matrix.shape
    whole = (n // COLUMNS + 1) * COLUMNS
    units = aligned(whole, np.float32)
    padded = aligned(k * whole, np.int16).reshape(k // 2, whole, 2)
    units[:n] = unit
    padded[:, :n] = np.rint(matrix / unit).reshape(k // 2, 2, n).transpose(0, 2, 1)
    return padded[:, :n], units[:n]


@numba.njit(cache=CACHE, nogil=True)
def aligned(count, kind):  # type: ignore[no-untyped-def]
    """``count`` zeros of a type, in memory that begins where registers do.

    Reads and writes of whole registers are slower where they cross lines of the cache.
    """
    numbers = np.zeros(count + LINE, kind)
    skipped = (-numbers.ctypes.data % LINE) // numbers.itemsize
    return numbers[skipped : skipped + count]


@numba.njit(cache=CACHE, nogil=True)
def quantise(numbers, out):  # type: ignore[no-untyped-def]
    """Write (N,) float32 to int16 ``out`` in the unit that is returned."""
    whole = len(numbers) // LANES * LANES
    sizes = np.zeros(LANES, np.float32)
    _find_largest(numbers.ctypes.data, whole, sizes.ctypes.data)
    for i in range(whole, len(numbers)):
        sizes[0] = max(sizes[0], abs(numbers[i]))
    return quantise_up_to(sizes, numbers, out)


@numba.njit(cache=CACHE, nogil=True, error_model="numpy")
def quantise_up_to(sizes, numbers, out):  # type: ignore[no-untyped-def]
    """``quantise``, where none of the numbers is larger than the largest of the ``sizes``."""
    # smaller numbers count as zeros, or the inverse would be infinite
    unit = max(sizes.max(), np.float32(1e-30)) / np.float32(LARGEST)
    round_to(numbers, np.float32(1.0) / unit, out)
    return unit


@numba.njit(cache=CACHE, nogil=True)
def add_sums(y, first, second):  # type: ignore[no-untyped-def]
    """Add the sums of (N, C) float32 over N, and those of the squares, to (C,) float32 arrays."""
    rows, channels = y.shape
    whole = channels // LANES * LANES
    for c in range(0, whole, LANES):
        to, more = first.ctypes.data + 4 * c, second.ctypes.data + 4 * c
        _add_lanes(y.ctypes.data + 4 * c, y.strides[0], rows, to, more)
    for i in range(rows):
        for c in range(whole, channels):
            first[c] += y[i, c]
            second[c] += y[i, c] * y[i, c]


@numba.njit(cache=CACHE, nogil=True)
def round_to(numbers, inverse, out):  # type: ignore[no-untyped-def]
    """Write (N,) float32 times ``inverse`` to int16 ``out``, rounded."""
    whole = len(numbers) // LANES * LANES
    _round_lanes(numbers.ctypes.data, whole, inverse, out.ctypes.data)
    for i in range(whole, len(numbers)):
        out[i] = np.int16(np.rint(numbers[i] * inverse))


@numba.njit(cache=CACHE, nogil=True)
def multiply(a, unit, b, units, out):  # type: ignore[no-untyped-def]
    """Write the product of (M, K) int16 ``a`` and packed ``b`` to (M, N) float32 ``out``.

    ``unit`` of ``a``, (N,) ``units`` of the columns of ``b``.
    """
    _multiply_windows(a.ctypes.data, 2 * a.shape[1], b.shape[0], 0, b, unit, units, out)


@numba.njit(cache=CACHE, nogil=True)
def convolve_row(image, row, side, stride, unit, kernel, units, out):  # type: ignore[no-untyped-def]
    """Write a row of a convolution to (N, outputs) float32 ``out``.

    (H, 3 W) int16 RGB ``image``, read from its ``row`` on; a square ``kernel`` of ``side`` pixels,
    an even number, packed from (side * side * 3, outputs), which moves by ``stride`` pixels.
    """
    line = image.strides[0]
    segment = 3 * side // 2
    first = image.ctypes.data + row * line
    _multiply_windows(first, 6 * stride, segment, line - 4 * segment, kernel, unit, units, out)


@numba.njit(cache=CACHE, nogil=True)
def _multiply_windows(left, row, segment, jump, b, unit, units, out):  # type: ignore[no-untyped-def]
    """``multiply`` by a left factor at an address, ``row`` bytes between its rows.

    A row continues ``jump`` bytes further after each ``segment`` of pairs.
    """
    m, n = out.shape
    step, line, pairs = b.strides[0], 4 * n, b.shape[0]
    right, to, worth = b.ctypes.data, out.ctypes.data, units.ctypes.data
    for j in range(0, n, COLUMNS):
        b_at, out_at, columns, u = right + 4 * j, to + 4 * j, n - j, worth + 4 * j
        for i in range(0, m - ROWS + 1, ROWS):
            a_at, to_at = left + i * row, out_at + i * line
            _multiply_rows(
                a_at, row, b_at, step, to_at, line, columns, pairs, segment, jump, unit, u
            )
        if m % ROWS and m > ROWS:  # some rows twice
            i = m - ROWS
            a_at, to_at = left + i * row, out_at + i * line
            _multiply_rows(
                a_at, row, b_at, step, to_at, line, columns, pairs, segment, jump, unit, u
            )
        elif m < ROWS:
            for i in range(m):
                a_at, to_at = left + i * row, out_at + i * line
                _multiply_row(
                    a_at, row, b_at, step, to_at, line, columns, pairs, segment, jump, unit, u
                )


@numba.njit(cache=CACHE, nogil=True)
def filter_row(x, at, line, taps, halves, out, sizes):  # type: ignore[no-untyped-def]
    """Write a row of a depthwise convolution to (N, channels) float32 ``out``.

    The largest size of a number is kept in one of (LANES,) float32 ``sizes``.

    From number ``at`` on of a float32 map whose rows have ``line`` numbers. ``taps`` (k * k,
    channels) float32: 3 x 3, or 4 x 4 at every second pixel where it ``halves`` the map. At least
    ``LANES`` channels.
    """
    columns, channels = out.shape
    step, wide = 4 * channels, 4 * line
    for block in range(0, channels, LANES):
        first = min(block, channels - LANES)  # some channels twice
        x_at, taps_at = x.ctypes.data + 4 * (at + first), taps.ctypes.data + 4 * first
        out_at = out.ctypes.data + 4 * first
        if halves:
            _filter_halving(x_at, wide, step, taps_at, out_at, columns, sizes.ctypes.data)
        else:
            _filter(x_at, wide, step, taps_at, out_at, columns, sizes.ctypes.data)


def _declare(builder: Any, name: str, kind: Any) -> Any:
    """The declaration of an LLVM intrinsic in the builder's module."""
    return builder.module.globals.get(name) or ir.Function(builder.module, kind, name)


def _for_registers(builder: Any, count: Any, body: Callable[[Any, Any], Any], first: Any) -> Any:
    """A loop of compiled code over every number of ``count`` that begins a register.

    ``body`` of the number and of what it answered last, at first ``first``; the last answer.
    """
    long = ir.IntType(64)
    entry = builder.block
    loop, done = builder.append_basic_block("register"), builder.append_basic_block("done")
    builder.cbranch(builder.icmp_signed("<", long(0), count), loop, done)
    builder.position_at_end(loop)
    i, value = builder.phi(long), builder.phi(first.type)
    i.add_incoming(long(0), entry)
    value.add_incoming(first, entry)
    answer = body(i, value)
    following = builder.add(i, long(LANES))
    i.add_incoming(following, loop)
    value.add_incoming(answer, loop)
    builder.cbranch(builder.icmp_signed("<", following, count), loop, done)
    builder.position_at_end(done)
    last = builder.phi(first.type)
    last.add_incoming(first, entry)
    last.add_incoming(answer, loop)
    return last


def _size(builder: Any, numbers: Any) -> Any:
    kind = numbers.type
    return builder.call(
        _declare(builder, "llvm.fabs.v16f32", ir.FunctionType(kind, [kind])), [numbers]
    )


def _larger(builder: Any, one: Any, other: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", one, other), one, other)


@intrinsic
def _find_largest(typingctx, x, count, sizes):  # type: ignore[no-untyped-def]
    """For each lane, the largest of the sizes of ``count`` float32 at an address and of its own."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, count, sizes = args
        floats = ir.VectorType(ir.FloatType(), LANES)
        pointer = builder.inttoptr(sizes, floats.as_pointer())

        def update(i: Any, largest: Any) -> Any:
            place = builder.add(x, builder.shl(i, ir.IntType(64)(2)))
            one = builder.load(builder.inttoptr(place, floats.as_pointer()), align=4)
            return _larger(builder, _size(builder, one), largest)

        before = builder.load(pointer, align=4)
        builder.store(_for_registers(builder, count, update, before), pointer, align=4)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


@intrinsic
def _add_lanes(typingctx, y, step, rows, first, second):  # type: ignore[no-untyped-def]
    """Add ``LANES`` columns of float32 at an address and their squares; ``step`` bytes a row."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        y, step, rows, *sums = args
        long, floats = ir.IntType(64), ir.VectorType(ir.FloatType(), LANES)
        kind = ir.FunctionType(floats, [floats, floats, floats])
        add_product = _declare(builder, "llvm.fma.v16f32", kind)
        pointers = [builder.inttoptr(place, floats.as_pointer()) for place in sums]
        before = [builder.load(pointer, align=4) for pointer in pointers]
        entry = builder.block
        loop, done = builder.append_basic_block("row"), builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        row, place = builder.phi(long), builder.phi(long)
        total, squares = builder.phi(floats), builder.phi(floats)
        one = builder.load(builder.inttoptr(place, floats.as_pointer()), align=4)
        following = builder.add(row, long(1)), builder.add(place, step)
        more = builder.fadd(total, one), builder.call(add_product, [one, one, squares])
        for phi, first, then in zip(
            (row, place, total, squares), (long(0), y, *before), (*following, *more), strict=True
        ):
            phi.add_incoming(first, entry)
            phi.add_incoming(then, loop)
        builder.cbranch(builder.icmp_signed("<", following[0], rows), loop, done)
        builder.position_at_end(done)
        for numbers, pointer in zip(more, pointers, strict=True):
            builder.store(numbers, pointer, align=4)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), generate


@intrinsic
def _round_lanes(typingctx, x, count, inverse, out):  # type: ignore[no-untyped-def]
    """Write ``count`` float32 at an address times ``inverse`` to int16 at another, rounded."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, count, inverse, out = args
        long, floats = ir.IntType(64), ir.VectorType(ir.FloatType(), LANES)
        words = ir.VectorType(ir.IntType(32), LANES)
        halves = ir.VectorType(ir.IntType(16), LANES)
        word, mask = ir.IntType(32), ir.IntType(LANES)
        name = "llvm.x86.avx512.mask.cvtps2dq.512"
        nearest = _declare(builder, name, ir.FunctionType(words, [floats, words, mask, word]))
        first = builder.insert_element(floats(ir.Undefined), inverse, ir.IntType(32)(0))
        factor = builder.shuffle_vector(first, floats(ir.Undefined), words([0] * LANES))

        def write(i: Any, numbers: Any) -> Any:
            place = builder.add(x, builder.shl(i, long(2)))
            one = builder.load(builder.inttoptr(place, floats.as_pointer()), align=4)
            scaled = builder.fmul(one, factor)
            whole = builder.call(nearest, [scaled, words(ir.Undefined), mask(-1), word(4)])
            numbers = builder.trunc(whole, halves)
            target = builder.add(out, builder.shl(i, long(1)))
            builder.store(numbers, builder.inttoptr(target, halves.as_pointer()), align=2)
            return numbers

        _for_registers(builder, count, write, halves([0] * LANES))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.float32, types.intp), generate


def _tile(rows: int) -> Any:
    """A function for compiled code: ``rows`` x ``COLUMNS`` of a product.

    Its arguments are the addresses of the left factor, the right one and the result, each followed
    by the bytes of one of its rows, the number of columns that the result has from there on, and
    the number of pairs. After each ``segment`` of pairs the left factor continues ``jump`` bytes
    further. Then the ``unit`` of the left factor, and the address of those of the columns.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, row, b, step, out, line, columns, pairs, segment, jump, unit, units = args
        word, long = ir.IntType(32), ir.IntType(64)
        floats, words = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(word, LANES)
        halves = ir.VectorType(ir.IntType(16), 2 * LANES)
        kind = ir.FunctionType(words, [halves, halves])
        multiply = _declare(builder, "llvm.x86.avx512.pmaddw.d.512", kind)
        bits = ir.VectorType(ir.IntType(1), LANES)
        kind = ir.FunctionType(ir.VoidType(), [floats, floats.as_pointer(), word, bits])
        store = _declare(builder, "llvm.masked.store.v16f32.p0", kind)

        def address(base: Any, step: Any, count: Any, offset: int = 0) -> Any:
            return builder.add(builder.add(base, builder.mul(step, count)), long(offset))

        def repeat(number: Any, of: Any) -> Any:
            """A register ``of`` one number."""
            first = builder.insert_element(of(ir.Undefined), number, word(0))
            return builder.shuffle_vector(first, of(ir.Undefined), words([0] * LANES))

        def below(count: Any) -> Any:
            """The lanes whose number is below ``count``."""
            longs = ir.VectorType(long, LANES)
            return builder.icmp_signed("<", longs([*range(LANES)]), repeat(count, longs))

        def add_products(sums: Any, left: Any, right: Any) -> Any:
            # LLVM makes one instruction of both where the CPU has it
            return builder.add(sums, builder.call(multiply, [left, right]))

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
        sums = [[builder.phi(words) for _ in range(2)] for _ in range(rows)]
        right = [
            builder.bitcast(load(address(b, pair, step, 4 * LANES * half), words), halves)
            for half in range(2)
        ]
        more = []
        for r in range(rows):
            one = load(address(place, row, long(r)), word)
            left = builder.bitcast(repeat(one, words), halves)
            more.append([add_products(sums[r][half], left, right[half]) for half in (0, 1)])
        following = builder.add(pair, long(1))
        pair.add_incoming(following, loop)
        ends = builder.icmp_signed("==", rest, long(1))
        further = builder.select(ends, builder.add(jump, long(4)), long(4))
        place.add_incoming(builder.add(place, further), loop)
        rest.add_incoming(builder.select(ends, segment, builder.sub(rest, long(1))), loop)
        zero = words([0] * LANES)
        for r in range(rows):
            for half in range(2):
                sums[r][half].add_incoming(zero, entry)
                sums[r][half].add_incoming(more[r][half], loop)
        builder.cbranch(builder.icmp_signed("<", following, pairs), loop, done)
        builder.position_at_end(done)
        one = repeat(unit, floats)
        for half in range(2):
            column = load(builder.add(units, long(4 * LANES * half)), floats)
            worth = builder.fmul(one, column)
            for r in range(rows):
                more[r][half] = builder.fmul(builder.sitofp(more[r][half], floats), worth)
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
        unit: Any,
        units: Any,
    ) -> Any:
        return types.void(*[types.intp] * 10, types.float32, types.intp), generate

    return intrinsic(tile)


def _depthwise(side: int, stride: int) -> Any:
    """A function for compiled code: a depthwise convolution of ``LANES`` channels along a row.

    Its arguments are the address of the map, the bytes of one of its rows and of one of its pixels,
    the addresses of the taps and of the result, and the number of pixels of the result, which has
    as many channels as the map and the taps; and that of the largest sizes so far, one a lane.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, line, step, taps, out, columns, sizes = args
        long, floats = ir.IntType(64), ir.VectorType(ir.FloatType(), LANES)
        kind = ir.FunctionType(floats, [floats, floats, floats])
        add_product = _declare(builder, "llvm.fma.v16f32", kind)

        def load(place: Any) -> Any:
            return builder.load(builder.inttoptr(place, floats.as_pointer()), align=4)

        weights = [load(builder.add(taps, builder.mul(step, long(k)))) for k in range(side * side)]
        rows = [builder.mul(line, long(i)) for i in range(side)]
        pixels = [builder.mul(step, long(j)) for j in range(side)]
        forward = builder.mul(step, long(stride))
        before = load(sizes)
        entry = builder.block
        loop, done = builder.append_basic_block("column"), builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        column, source, target = (builder.phi(long) for _ in range(3))
        largest = builder.phi(floats)
        largest.add_incoming(before, entry)
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
        builder.store(sums[0], builder.inttoptr(target, floats.as_pointer()), align=4)
        larger = _larger(builder, _size(builder, sums[0]), largest)
        largest.add_incoming(larger, loop)
        following = builder.add(column, long(1))
        column.add_incoming(following, loop)
        source.add_incoming(builder.add(source, forward), loop)
        target.add_incoming(builder.add(target, step), loop)
        builder.cbranch(builder.icmp_signed("<", following, columns), loop, done)
        builder.position_at_end(done)
        builder.store(larger, builder.inttoptr(sizes, floats.as_pointer()), align=4)
        return context.get_dummy_value()

    def filter_lanes(
        typingctx: Any,
        x: Any,
        line: Any,
        step: Any,
        taps: Any,
        out: Any,
        columns: Any,
        sizes: Any,
    ) -> Any:
        return types.void(*[types.intp] * 7), generate

    return intrinsic(filter_lanes)


_multiply_rows, _multiply_row = _tile(ROWS), _tile(1)
_filter, _filter_halving = _depthwise(3, 1), _depthwise(4, 2)
