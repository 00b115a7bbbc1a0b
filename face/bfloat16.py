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
    m, n = out.shape
    row, step, line, pairs = 2 * a.shape[1], b.strides[0], 4 * n, b.shape[0]
    left, right, to = a.ctypes.data, b.ctypes.data, out.ctypes.data
    for j in range(0, n, COLUMNS):
        b_at, out_at, columns = right + 4 * j, to + 4 * j, n - j
        for i in range(0, m - ROWS + 1, ROWS):
            _multiply_rows(left + i * row, row, b_at, step, out_at + i * line, line, columns, pairs)
        if m % ROWS and m > ROWS:  # some rows twice
            i = m - ROWS
            _multiply_rows(left + i * row, row, b_at, step, out_at + i * line, line, columns, pairs)
        elif m < ROWS:
            for i in range(m):
                _multiply_row(
                    left + i * row, row, b_at, step, out_at + i * line, line, columns, pairs
                )


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
    the number of pairs.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, row, b, step, out, line, columns, pairs = args
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
        pair = builder.phi(long)
        pair.add_incoming(long(0), entry)
        sums = [[builder.phi(floats) for _ in range(2)] for _ in range(rows)]
        right = [
            builder.bitcast(load(address(b, pair, step, 4 * LANES * half), words), halves)
            for half in range(2)
        ]
        more = []
        for r in range(rows):
            one = load(address(address(a, row, long(r)), pair, long(4)), word)
            first = builder.insert_element(words(ir.Undefined), one, word(0))
            same = builder.shuffle_vector(first, words(ir.Undefined), words([0] * LANES))
            left = builder.bitcast(same, halves)
            more.append(
                [builder.call(add_products, [sums[r][half], left, right[half]]) for half in (0, 1)]
            )
        following = builder.add(pair, long(1))
        pair.add_incoming(following, loop)
        for r in range(rows):
            for half in range(2):
                sums[r][half].add_incoming(floats([0.0] * LANES), entry)
                sums[r][half].add_incoming(more[r][half], loop)
        builder.cbranch(builder.icmp_signed("<", following, pairs), loop, done)
        builder.position_at_end(done)
        masks = [below(builder.sub(columns, long(LANES * half))) for half in range(2)]
        for r in range(rows):
            for half in range(2):
                place = address(out, line, long(r), 4 * LANES * half)
                pointer = builder.inttoptr(place, floats.as_pointer())
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
    ) -> Any:
        return types.void(*[types.intp] * 8), generate

    return intrinsic(tile)


_multiply_rows, _multiply_row = _tile(ROWS), _tile(1)
