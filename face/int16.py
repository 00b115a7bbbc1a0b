"""Matrix products in 16-bit integers on CPUs with AVX-512, twice as fast with AVX-512 VNNI.

The left factor has one unit, an 8,192th of its largest number, and each column of the right factor
another, so that no sum of products leaves 32 bits. Such a product takes 0.4 to 0.5 of the time of
one in single precision; the descriptors of a network change by less than 0.1 % of their length.

The instructions add the products of two pairs of neighbours to a lane of the sums, so the right
factor is packed with the rows of a pair side by side (``pack_pairs``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import Parameter, Signature
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
    numbers = unset(count, kind)
    numbers[:] = 0
    return numbers


@numba.njit(cache=CACHE, nogil=True)
def unset(count, kind):  # type: ignore[no-untyped-def]
    """``aligned`` memory that holds anything."""
    numbers = np.empty(count + LINE, kind)
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
    start, step, c = y.ctypes.data, y.strides[0], 0
    to, more = first.ctypes.data, second.ctypes.data
    while c + 4 * LANES <= channels:
        _add_four(start + 4 * c, step, rows, to + 4 * c, more + 4 * c)
        c += 4 * LANES
    while c + 2 * LANES <= channels:
        _add_two(start + 4 * c, step, rows, to + 4 * c, more + 4 * c)
        c += 2 * LANES
    while c + LANES <= channels:
        _add_one(start + 4 * c, step, rows, to + 4 * c, more + 4 * c)
        c += LANES
    if c < channels:
        _add_rest(start + 4 * c, step, rows, to + 4 * c, more + 4 * c, channels - c)


@numba.njit(cache=CACHE, nogil=True)
def rectify_row(y, slope, shift, adds, out, at):  # type: ignore[no-untyped-def]
    """Write max(y slope + shift, 0) from number ``at`` of a flat float32 map on, or add it there.

    (N, C) float32 ``y``, (C,) float32 ``slope`` and ``shift``.
    """
    pixels, channels = y.shape
    step, start, end = 4 * channels, y.ctypes.data, out.ctypes.data + 4 * at
    by, more = slope.ctypes.data, shift.ctypes.data
    whole = channels // LANES * LANES
    for c in range(0, 4 * whole, 4 * LANES):
        if adds:
            _add_rectified(start + c, step, pixels, by + c, more + c, end + c)
        else:
            _rectify(start + c, step, pixels, by + c, more + c, end + c)
    if whole < channels:
        c, rest = 4 * whole, channels - whole
        if adds:
            _add_rectified_rest(start + c, step, pixels, by + c, more + c, end + c, rest)
        else:
            _rectify_rest(start + c, step, pixels, by + c, more + c, end + c, rest)


@numba.njit(cache=CACHE, nogil=True)
def add_twice(y, bias, out, at):  # type: ignore[no-untyped-def]
    """Add each of (N, C) float32 ``y``, with its (C,) ``bias``, to two pixels of a flat map.

    These begin at number ``at`` of the float32 map.
    """
    pixels, channels = y.shape
    step, start, end = 4 * channels, y.ctypes.data, out.ctypes.data + 4 * at
    more, whole = bias.ctypes.data, channels // LANES * LANES
    for c in range(0, 4 * whole, 4 * LANES):
        _add_twice(start + c, step, pixels, more + c, end + c)
    if whole < channels:
        c = 4 * whole
        _add_twice_rest(start + c, step, pixels, more + c, end + c, channels - whole)


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
    # Factors of the sums, one after the other. Few rows were always rounded otherwise: comparisons
    # of what is computed from them may turn on the last bit.
    first, then = (np.float32(1.0), unit) if m >= ROWS else (unit, np.float32(1.0))
    for j in range(0, n, COLUMNS):
        b_at, out_at, columns, u = right + 4 * j, to + 4 * j, n - j, worth + 4 * j
        i = 0
        while i < m:
            rest = m - i
            if rest > ROWS // 2 and m >= ROWS:
                i = min(i, m - ROWS)  # some rows twice
            a_at, to_at = left + i * row, out_at + i * line
            tile = a_at, row, b_at, step, to_at, line, columns, pairs, segment, jump, first, then, u
            if rest > ROWS // 2 and m >= ROWS:
                i += ROWS
                if columns > LANES + LANES // 2:
                    _multiply_eight(*tile)
                elif columns > LANES:
                    _multiply_eight_by_24(*tile)
                else:
                    _multiply_eight_by_16(*tile)
            elif rest >= 4:
                i += 4
                _multiply_four(*tile)
            elif rest >= 2:
                i += 2
                _multiply_two(*tile)
            else:
                i += 1
                _multiply_one(*tile)


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


def _take_integers(count: int, generate: Callable[..., Any]) -> Any:
    """A function for compiled code of ``count`` integers, whose code ``generate`` writes."""

    def describe(typingctx: Any, *integers: Any) -> Any:
        return types.void(*[types.intp] * count), generate

    # numba would hand several to ``*integers`` as one tuple
    names = ["typingctx", *(f"integer_{i}" for i in range(count))]
    parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    describe.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return intrinsic(describe)


def _declare(builder: Any, name: str, kind: Any) -> Any:
    """The declaration of an LLVM intrinsic in the builder's module."""
    return builder.module.globals.get(name) or ir.Function(builder.module, kind, name)


def _loop(
    builder: Any, count: Any, step: int, first: Sequence[Any], body: Callable[..., Sequence[Any]]
) -> list[Any]:
    """A loop of compiled code over every ``step``-th number below ``count``.

    ``body`` of the number and of what it answered last, at first ``first``; the last answer.
    """
    long = ir.IntType(64)
    entry = builder.block
    loop, done = builder.append_basic_block("loop"), builder.append_basic_block("done")
    builder.cbranch(builder.icmp_signed("<", long(0), count), loop, done)
    builder.position_at_end(loop)
    i, values = builder.phi(long), [builder.phi(one.type) for one in first]
    answers = body(i, *values)
    following = builder.add(i, long(step))
    builder.cbranch(builder.icmp_signed("<", following, count), loop, done)
    for phi, before, after in zip(
        [i, *values], [long(0), *first], [following, *answers], strict=True
    ):
        phi.add_incoming(before, entry)
        phi.add_incoming(after, loop)
    builder.position_at_end(done)
    last = [builder.phi(one.type) for one in first]
    for phi, before, after in zip(last, first, answers, strict=True):
        phi.add_incoming(before, entry)
        phi.add_incoming(after, loop)
    return last


FLOATS = ir.VectorType(ir.FloatType(), LANES)


def _repeat(builder: Any, number: Any, of: Any) -> Any:
    """A register ``of`` one number."""
    first = builder.insert_element(of(ir.Undefined), number, ir.IntType(32)(0))
    same = ir.VectorType(ir.IntType(32), of.count)([0] * of.count)
    return builder.shuffle_vector(first, of(ir.Undefined), same)


def _below(builder: Any, count: Any, lanes: int = LANES) -> Any:
    """The lanes whose number is below ``count``."""
    longs = ir.VectorType(ir.IntType(64), lanes)
    return builder.icmp_signed("<", longs([*range(lanes)]), _repeat(builder, count, longs))


def _load(builder: Any, place: Any, lanes: Any = None) -> Any:
    """Float32 at an address; ``lanes``: those that are read, the others are zeros."""
    pointer = builder.inttoptr(place, FLOATS.as_pointer())
    if lanes is None:
        return builder.load(pointer, align=4)
    kind = ir.FunctionType(FLOATS, [pointer.type, ir.IntType(32), lanes.type, FLOATS])
    load = _declare(builder, "llvm.masked.load.v16f32.p0", kind)
    return builder.call(load, [pointer, ir.IntType(32)(4), lanes, FLOATS([0.0] * LANES)])


def _store(builder: Any, numbers: Any, place: Any, lanes: Any = None) -> None:
    """Write float32 to an address; ``lanes``: those that are written."""
    pointer = builder.inttoptr(place, numbers.type.as_pointer())
    if lanes is None:
        builder.store(numbers, pointer, align=4)
        return
    parts = [numbers.type, pointer.type, ir.IntType(32), lanes.type]
    name = f"llvm.masked.store.v{numbers.type.count}f32.p0"
    store = _declare(builder, name, ir.FunctionType(ir.VoidType(), parts))
    builder.call(store, [numbers, pointer, ir.IntType(32)(4), lanes])


def _add_product(builder: Any, one: Any, other: Any, to: Any) -> Any:
    """The product of two registers added to a third, rounded once."""
    kind = ir.FunctionType(FLOATS, [FLOATS] * 3)
    return builder.call(_declare(builder, "llvm.fma.v16f32", kind), [one, other, to])


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

        def update(i: Any, largest: Any) -> Any:
            place = builder.add(x, builder.shl(i, ir.IntType(64)(2)))
            return [_larger(builder, _size(builder, _load(builder, place)), largest)]

        (largest,) = _loop(builder, count, LANES, [_load(builder, sizes)], update)
        _store(builder, largest, sizes)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


def _sums(registers: int, *, part: bool = False) -> Any:
    """A function for compiled code: sums of columns of float32, and of their squares.

    Its arguments are the address of the columns, ``registers`` of them, and the bytes of one row;
    the number of rows; and the addresses of the sums and of those of squares, which are added to.
    ``part``: the last one is the number of columns, of one register.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        y, step, rows, first, second, *count = args
        long = ir.IntType(64)
        lanes = _below(builder, count[0]) if part else None
        places = [long(4 * LANES * i) for i in range(registers)]
        before = [
            _load(builder, builder.add(base, place), lanes)
            for base in (first, second)
            for place in places
        ]

        def update(i: Any, row: Any, *sums: Any) -> Any:
            numbers = [_load(builder, builder.add(row, place), lanes) for place in places]
            squares = sums[registers:]
            if part:
                more = [
                    builder.fadd(to, builder.fmul(one, one))
                    for one, to in zip(numbers, squares, strict=True)
                ]
            else:
                more = [
                    _add_product(builder, one, one, to)
                    for one, to in zip(numbers, squares, strict=True)
                ]
            total = [builder.fadd(to, one) for one, to in zip(numbers, sums, strict=False)]
            return [builder.add(row, step), *total, *more]

        _, *sums = _loop(builder, rows, 1, [y, *before], update)
        for base, some in (first, sums[:registers]), (second, sums[registers:]):
            for place, one in zip(places, some, strict=True):
                _store(builder, one, builder.add(base, place), lanes)
        return context.get_dummy_value()

    return _take_integers(6 if part else 5, generate)


@intrinsic
def _round_lanes(typingctx, x, count, inverse, out):  # type: ignore[no-untyped-def]
    """Write ``count`` float32 at an address times ``inverse`` to int16 at another, rounded."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, count, inverse, out = args
        long = ir.IntType(64)
        words = ir.VectorType(ir.IntType(32), LANES)
        halves = ir.VectorType(ir.IntType(16), LANES)
        word, mask = ir.IntType(32), ir.IntType(LANES)
        name = "llvm.x86.avx512.mask.cvtps2dq.512"
        nearest = _declare(builder, name, ir.FunctionType(words, [FLOATS, words, mask, word]))
        factor = _repeat(builder, inverse, FLOATS)

        kind = ir.FunctionType(ir.VectorType(ir.IntType(16), 2 * LANES), [words] * 2)
        pack = _declare(builder, "llvm.x86.avx512.packssdw.512", kind)
        pairs = ir.VectorType(long, LANES // 2)  # of four numbers, which are packed in turns
        ordered = ir.VectorType(word, LANES // 2)([0, 2, 4, 6, 1, 3, 5, 7])

        def round_register(place: Any) -> Any:
            scaled = builder.fmul(_load(builder, place), factor)
            return builder.call(nearest, [scaled, words(ir.Undefined), mask(-1), word(4)])

        def write_two(i: Any) -> Any:
            place = builder.add(x, builder.shl(i, long(2)))
            both = [round_register(place), round_register(builder.add(place, long(4 * LANES)))]
            turns = builder.bitcast(builder.call(pack, both), pairs)
            numbers = builder.shuffle_vector(turns, pairs(ir.Undefined), ordered)
            target = builder.add(out, builder.shl(i, long(1)))
            builder.store(numbers, builder.inttoptr(target, pairs.as_pointer()), align=2)
            return []

        def write(i: Any) -> Any:
            whole = round_register(builder.add(x, builder.shl(i, long(2))))
            numbers = builder.trunc(whole, halves)
            target = builder.add(out, builder.shl(i, long(1)))
            builder.store(numbers, builder.inttoptr(target, halves.as_pointer()), align=2)
            return []

        even = builder.and_(count, long(-2 * LANES))
        _loop(builder, even, 2 * LANES, [], write_two)
        x, out = (
            builder.add(x, builder.shl(even, long(2))),
            builder.add(out, builder.shl(even, long(1))),
        )
        _loop(builder, builder.sub(count, even), LANES, [], write)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.float32, types.intp), generate


def _affine(*, adds: bool, part: bool = False) -> Any:
    """A function for compiled code: ``LANES`` channels of ``rectify_row``.

    Its arguments are the address of the pixels, the bytes and the number of them, and the addresses
    of slopes, shifts and the map. ``part``: the last one is the number of channels.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        y, step, pixels, slope, shift, out, *count = args
        lanes = _below(builder, count[0]) if part else None
        by, more = _load(builder, slope, lanes), _load(builder, shift, lanes)
        zero = FLOATS([0.0] * LANES)

        def write(i: Any, source: Any, target: Any) -> Any:
            moved = _add_product(builder, _load(builder, source, lanes), by, more)
            found = _larger(builder, moved, zero)
            if adds:
                found = builder.fadd(_load(builder, target, lanes), found)
            _store(builder, found, target, lanes)
            return [builder.add(source, step), builder.add(target, step)]

        _loop(builder, pixels, 1, [y, out], write)
        return context.get_dummy_value()

    return _take_integers(7 if part else 6, generate)


def _double(*, part: bool = False) -> Any:
    """A function for compiled code: ``LANES`` channels of ``add_twice``.

    Its arguments are the address of the pixels, the bytes and the number of them, and the addresses
    of biases and the map. ``part``: the last one is the number of channels.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        y, step, pixels, bias, out, *count = args
        lanes = _below(builder, count[0]) if part else None
        more = _load(builder, bias, lanes)

        def write(i: Any, source: Any, target: Any) -> Any:
            one = builder.fadd(_load(builder, source, lanes), more)
            for _ in range(2):
                _store(builder, builder.fadd(_load(builder, target, lanes), one), target, lanes)
                target = builder.add(target, step)
            return [builder.add(source, step), target]

        _loop(builder, pixels, 1, [y, out], write)
        return context.get_dummy_value()

    return _take_integers(6 if part else 5, generate)


def _tile(rows: int, lanes: tuple[int, ...] = (LANES, LANES)) -> Any:
    """A function for compiled code: some columns of ``rows`` rows of a product.

    ``lanes`` of the registers that hold a row, ``LANES`` or half of it.

    Its arguments are the addresses of the left factor, the right one and the result, each followed
    by the bytes of one of its rows, the number of columns that the result has from there on, and
    the number of pairs. After each ``segment`` of pairs the left factor continues ``jump`` bytes
    further. Then a ``first`` factor of the sums, one that multiplies the units of the columns, and
    the address of these.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, row, b, step, out, line, columns, pairs, segment, jump, first, then, units = args
        word, long = ir.IntType(32), ir.IntType(64)
        words = [ir.VectorType(word, some) for some in lanes]
        halves = [ir.VectorType(ir.IntType(16), 2 * some) for some in lanes]
        names = {LANES: "avx512.pmaddw.d.512", LANES // 2: "avx2.pmadd.wd"}
        multiply = [
            _declare(builder, f"llvm.x86.{names[some]}", ir.FunctionType(one, [two, two]))
            for some, one, two in zip(lanes, words, halves, strict=True)
        ]
        registers = range(len(lanes))
        places = [sum(lanes[:i]) for i in registers]  # columns before each register

        def address(base: Any, step: Any, count: Any, offset: int = 0) -> Any:
            return builder.add(builder.add(base, builder.mul(step, count)), long(offset))

        def add_products(sums: Any, left: Any, right: Any, i: int) -> Any:
            # LLVM makes one instruction of both where the CPU has it
            return builder.add(sums, builder.call(multiply[i], [left, right]))

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
        sums = [[builder.phi(one) for one in words] for _ in range(rows)]
        right = [
            builder.bitcast(load(address(b, pair, step, 4 * places[i]), words[i]), halves[i])
            for i in registers
        ]
        more = []
        for r in range(rows):
            one = load(address(place, row, long(r)), word)
            left = [builder.bitcast(_repeat(builder, one, words[i]), halves[i]) for i in registers]
            more.append([add_products(sums[r][i], left[i], right[i], i) for i in registers])
        following = builder.add(pair, long(1))
        pair.add_incoming(following, loop)
        ends = builder.icmp_signed("==", rest, long(1))
        further = builder.select(ends, builder.add(jump, long(4)), long(4))
        place.add_incoming(builder.add(place, further), loop)
        rest.add_incoming(builder.select(ends, segment, builder.sub(rest, long(1))), loop)
        for r in range(rows):
            for i in registers:
                sums[r][i].add_incoming(words[i]([0] * lanes[i]), entry)
                sums[r][i].add_incoming(more[r][i], loop)
        builder.cbranch(builder.icmp_signed("<", following, pairs), loop, done)
        builder.position_at_end(done)
        for i, some in enumerate(lanes):
            floats = ir.VectorType(ir.FloatType(), some)
            unit = load(builder.add(units, long(4 * places[i])), floats)
            worth = builder.fmul(_repeat(builder, then, floats), unit)
            written = _below(builder, builder.sub(columns, long(places[i])), some)
            for r in range(rows):
                total = builder.sitofp(more[r][i], floats)
                found = builder.fmul(builder.fmul(total, _repeat(builder, first, floats)), worth)
                _store(builder, found, address(out, line, long(r), 4 * places[i]), written)
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
        first: Any,
        then: Any,
        units: Any,
    ) -> Any:
        kinds = [*[types.intp] * 10, types.float32, types.float32, types.intp]
        return types.void(*kinds), generate

    return intrinsic(tile)


def _depthwise(side: int, stride: int) -> Any:
    """A function for compiled code: a depthwise convolution of ``LANES`` channels along a row.

    Its arguments are the address of the map, the bytes of one of its rows and of one of its pixels,
    the addresses of the taps and of the result, and the number of pixels of the result, which has
    as many channels as the map and the taps; and that of the largest sizes so far, one a lane.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, line, step, taps, out, columns, sizes = args
        long = ir.IntType(64)
        # columns of the window that the next one reads, too; for 4 x 4 registers are too few
        kept = side - stride if side < 4 else 0
        weights = [
            _load(builder, builder.add(taps, builder.mul(step, long(k)))) for k in range(side**2)
        ]
        places = [
            [
                builder.add(builder.mul(line, long(i)), builder.mul(step, long(j)))
                for j in range(side)
            ]
            for i in range(side)
        ]
        forward = builder.mul(step, long(stride))
        known = [_load(builder, builder.add(x, place)) for row in places for place in row[:kept]]

        def write(column: Any, source: Any, target: Any, largest: Any, *known: Any) -> Any:
            sums, following = [], []
            for i, row in enumerate(places):
                more = [_load(builder, builder.add(source, place)) for place in row[kept:]]
                window = [*known[kept * i : kept * (i + 1)], *more]
                following += window[side - kept :]
                part = FLOATS([0.0] * LANES)
                for one, weight in zip(window, weights[side * i :], strict=False):
                    part = _add_product(builder, one, weight, part)
                sums.append(part)
            while len(sums) > 1:
                sums = [builder.fadd(sums[0], sums[1]), *sums[2:]]
            _store(builder, sums[0], target)
            larger = _larger(builder, _size(builder, sums[0]), largest)
            further = builder.add(source, forward), builder.add(target, step)
            return [*further, larger, *following]

        first = [x, out, _load(builder, sizes), *known]
        _, _, largest, *_ = _loop(builder, columns, 1, first, write)
        _store(builder, largest, sizes)
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


_add_four, _add_two, _add_one = _sums(4), _sums(2), _sums(1)
_add_rest = _sums(1, part=True)
_rectify, _rectify_rest = _affine(adds=False), _affine(adds=False, part=True)
_add_rectified, _add_rectified_rest = _affine(adds=True), _affine(adds=True, part=True)
_add_twice, _add_twice_rest = _double(), _double(part=True)
_multiply_eight, _multiply_four, _multiply_two, _multiply_one = (_tile(n) for n in (ROWS, 4, 2, 1))
_multiply_eight_by_16 = _tile(ROWS, (LANES,))
_multiply_eight_by_24 = _tile(ROWS, (LANES, LANES // 2))
_filter, _filter_halving = _depthwise(3, 1), _depthwise(4, 2)
