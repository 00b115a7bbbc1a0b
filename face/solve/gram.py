"""Products of a matrix with its own transpose, as normal equations take them.

Such a product is symmetric, so half of it is enough. BLAS libraries have a function for that, which
compiled code does not reach, and which is no faster for matrices as small as these.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from dff.face.numba_cache import CACHE

# numbers of a vector register, of which processors with shorter ones take several, and rows of the
# product that stay in registers
LANES = 16


@numba.njit(cache=CACHE, nogil=True)
def multiply_by_own(rows, out):  # type: ignore[no-untyped-def]
    """Write ``rows.T @ rows`` of (N, Q) float32 to (Q, Q) ``out``: its upper triangle.

    Both are contiguous, and Q is a multiple of ``LANES``. What is below the diagonal is
    undefined.
    """
    columns = rows.shape[1]
    step = 4 * columns
    start, to = rows.ctypes.data, out.ctypes.data
    for i in range(0, columns, LANES):
        for j in range(i, columns, LANES):
            at = to + i * step + 4 * j
            _multiply_tile(start + 4 * i, start + 4 * j, step, len(rows), at)


@intrinsic
def _multiply_tile(typingctx, left, right, step, count, out):  # type: ignore[no-untyped-def]
    """``LANES`` rows and columns of the product.

    Addresses of the first ones of ``LANES`` columns of the matrix and of ``LANES`` others, whose
    ``count`` rows are ``step`` bytes apart, and of the place in the product, whose rows are as
    long.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        left, right, step, count, out = args
        long, word = ir.IntType(64), ir.IntType(32)
        floats = ir.VectorType(ir.FloatType(), LANES)

        def address(base: Any, number: int) -> Any:
            return builder.add(base, builder.mul(step, long(number)))

        entry = builder.block
        loop, done = builder.append_basic_block("row"), builder.append_basic_block("done")
        zero = floats([0.0] * LANES)
        builder.cbranch(builder.icmp_signed(">", count, long(0)), loop, done)
        builder.position_at_end(loop)
        row, a, b = (builder.phi(long) for _ in range(3))
        sums = [builder.phi(floats) for _ in range(LANES)]
        columns = builder.load(builder.inttoptr(b, floats.as_pointer()), align=4)
        more = []
        for t in range(LANES):
            place = builder.inttoptr(builder.add(a, long(4 * t)), ir.FloatType().as_pointer())
            number = builder.load(place, align=4)
            first = builder.insert_element(floats(ir.Undefined), number, word(0))
            lanes = ir.VectorType(word, LANES)([0] * LANES)
            same = builder.shuffle_vector(first, floats(ir.Undefined), lanes)
            product = builder.fmul(same, columns, flags=("contract",))
            more.append(builder.fadd(sums[t], product, flags=("contract",)))
        following = builder.add(row, long(1))
        for phi, first, later in (
            (row, long(0), following),
            (a, left, builder.add(a, step)),
            (b, right, builder.add(b, step)),
            *((phi, zero, sum_) for phi, sum_ in zip(sums, more, strict=True)),
        ):
            phi.add_incoming(first, entry)
            phi.add_incoming(later, loop)
        builder.cbranch(builder.icmp_signed("<", following, count), loop, done)
        builder.position_at_end(done)
        for t in range(LANES):
            found = builder.phi(floats)
            found.add_incoming(zero, entry)
            found.add_incoming(more[t], loop)
            more[t] = found
        for t in range(LANES):
            place = builder.inttoptr(address(out, t), floats.as_pointer())
            builder.store(more[t], place, align=4)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), generate
