"""SIMD steps of rendering, eight pixels at a time, that numba would compile to scalar code.

Numba vectorises plain loops, but neither conditional stores nor table look-ups beside stores. These
steps are written in LLVM's own instructions, which it lowers to those of the processor (AVX-512,
AVX2, SSE or NEON): integers and correctly rounded float64 only, so that every processor gives the
same bits.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 8
BIAS = 2.0**52
"""Added to a float64 in [0, BIAS), it leaves the rounded integer in the low 52 bits.

Not every processor has a vector instruction for this conversion.
"""

_I64, _F64, _I32 = ir.IntType(64), ir.DoubleType(), ir.IntType(32)
_INTS, _FLOATS = ir.VectorType(_I64, LANES), ir.VectorType(_F64, LANES)

ROW = tuple((lane, 0) for lane in range(LANES))
SAMPLE_PATTERN = ((9, 5), (7, 11), (13, 9), (5, 3), (3, 13), (1, 7), (11, 15), (15, 1))
"""Sample positions within a pixel, in sixteenths from its upper left corner.

The standard pattern of Direct3D 11 for eight samples. No two share a row or a column of an 8 x 8
board.
"""


def _spread(builder: Any, value: Any, kind: Any) -> Any:
    """A vector with the same value in all lanes."""
    none = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(none, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, none, ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES))


def _ramp(builder: Any, values: Any, offsets: tuple[tuple[int, int], ...], real: bool) -> Any:
    """``start + right * column + down * row`` for the lanes' ``offsets`` (column, row).

    ``values`` are start, right and down.
    """
    start, right, down = values
    kind = _FLOATS if real else _INTS
    add, times = (builder.fadd, builder.fmul) if real else (builder.add, builder.mul)
    number = float if real else int
    out = _spread(builder, start, kind)
    for axis, step in ((0, right), (1, down)):
        if any(offset[axis] for offset in offsets):
            lanes = ir.Constant(kind, [number(offset[axis]) for offset in offsets])
            out = add(out, times(lanes, _spread(builder, step, kind)))
    return out


def _cover(offsets: tuple[tuple[int, int], ...]) -> Any:
    def typed(typingctx, keys, at, a, ax, ay, b, bx, by, c, cx, cy, z, zx, zy, most, shift, f):  # type: ignore[no-untyped-def]
        ints = [types.int64] * 9
        signature = types.void(
            keys, types.uint64, *ints, *[types.float64] * 4, types.int64, types.int64
        )

        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            array = context.make_array(signature.args[0])(context, builder, args[0])
            place = builder.bitcast(builder.gep(array.data, [args[1]]), _INTS.as_pointer())
            edges = [_ramp(builder, args[n : n + 3], offsets, False) for n in (2, 5, 8)]
            outside = builder.icmp_signed(
                "<", builder.or_(builder.or_(*edges[:2]), edges[2]), ir.Constant(_INTS, [0] * LANES)
            )
            depth = _ramp(builder, args[11:14], offsets, True)
            zero, top = ir.Constant(_FLOATS, [0.0] * LANES), _spread(builder, args[14], _FLOATS)
            depth = builder.select(builder.fcmp_ordered(">", depth, zero), depth, zero)
            depth = builder.select(builder.fcmp_ordered("<", depth, top), depth, top)
            whole = builder.bitcast(
                builder.fadd(depth, ir.Constant(_FLOATS, [BIAS] * LANES)), _INTS
            )
            key = builder.or_(
                builder.shl(whole, _spread(builder, args[15], _INTS)),
                _spread(builder, args[16], _INTS),
            )
            old = builder.load(place, align=8)
            nearer = builder.and_(builder.icmp_signed("<", key, old), builder.not_(outside))
            builder.store(builder.select(nearer, key, old), place, align=8)
            return context.get_dummy_value()

        return signature, code

    return intrinsic(typed)


cover_row = _cover(ROW)
"""``cover_row(keys, at, a, ax, ay, b, bx, by, c, cx, cy, z, zx, zy, most, shift, f)``.

Tests eight adjacent samples: lowers int64 ``keys[at : at + 8]`` to ``depth << shift | f`` where
that is less and the three edge functions (``a``, ``b``, ``c`` at the first sample, their steps to
the right and down) are not negative. Depth is ``z`` (with its steps), limited to 0 .. ``most``,
rounded; ``shift`` is at least 12 and ``most << shift`` fits 63 bits.
"""

cover_pixel = _cover(SAMPLE_PATTERN)
"""``cover_row`` for the samples of SAMPLE_PATTERN within a pixel.

Edge functions and depth are those at its corner, steps those for a sixteenth of it.
"""


@intrinsic
def look_up(typingctx, table, places, at, plus, out, to):  # type: ignore[no-untyped-def]
    """``out[to + n] = table[places[at + n] + plus]`` for eight n.

    ``table`` and ``out`` are both int32 or both float32, ``places`` is int32; no place may leave
    the table.
    """
    signature = types.void(table, places, types.uint64, types.int64, out, types.uint64)

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, indices, target = (
            context.make_array(signature.args[n])(context, builder, args[n]).data for n in (0, 1, 4)
        )
        narrow, mask = ir.VectorType(_I32, LANES), ir.VectorType(ir.IntType(1), LANES)
        found = builder.load(
            builder.bitcast(builder.gep(indices, [args[2]]), narrow.as_pointer()), align=4
        )
        first = _spread(builder, builder.ptrtoint(builder.gep(source, [args[3]]), _I64), _INTS)
        bytes_in = builder.shl(builder.sext(found, _INTS), ir.Constant(_INTS, [2] * LANES))
        pointers = builder.inttoptr(
            builder.add(first, bytes_in), ir.VectorType(_I32.as_pointer(), LANES)
        )
        kind = ir.FunctionType(narrow, [pointers.type, _I32, mask, narrow])
        gather = cgutils.get_or_insert_function(
            builder.module, kind, f"llvm.masked.gather.v{LANES}i32.v{LANES}p0"
        )
        values = builder.call(
            gather,
            [
                pointers,
                ir.Constant(_I32, 4),
                ir.Constant(mask, [1] * LANES),
                ir.Constant(narrow, ir.Undefined),
            ],
        )
        builder.store(
            values, builder.bitcast(builder.gep(target, [args[5]]), narrow.as_pointer()), align=4
        )
        return context.get_dummy_value()

    return signature, code


def _blend(count: int) -> Any:
    def typed(typingctx, table, i, j, k, a, b, c, out, at):  # type: ignore[no-untyped-def]
        index, weight = types.uint64, types.float64
        signature = types.void(table, index, index, index, weight, weight, weight, out, index)

        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            source, target = (
                context.make_array(signature.args[n])(context, builder, args[n]).data
                for n in (0, 7)
            )
            wide, narrow = ir.VectorType(_F64, count), ir.VectorType(ir.FloatType(), count)
            kept = narrow if signature.args[0].dtype == types.float32 else wide
            total = None
            for place, share in zip(args[1:4], args[4:7], strict=True):
                row = builder.load(
                    builder.bitcast(builder.gep(source, [place]), kept.as_pointer()), align=4
                )
                row = builder.fpext(row, wide) if kept is narrow else row
                none = ir.Constant(wide, ir.Undefined)
                first = builder.insert_element(none, share, ir.Constant(_I32, 0))
                spread = builder.shuffle_vector(
                    first, none, ir.Constant(ir.VectorType(_I32, count), [0] * count)
                )
                part = builder.fmul(spread, row)
                total = part if total is None else builder.fadd(total, part)
            rounded = builder.fptrunc(total, narrow)
            builder.store(
                rounded,
                builder.bitcast(builder.gep(target, [args[8]]), narrow.as_pointer()),
                align=4,
            )
            return context.get_dummy_value()

        return signature, code

    return intrinsic(typed)


blend_4 = _blend(4)
"""``blend_4(table, i, j, k, a, b, c, out, at)``: a weighted sum of three rows, for four n.

``out[at + n] = a table[i + n] + b table[j + n] + c table[k + n]``, summed in float64; ``table`` is
float32 or float64, ``out`` float32.
"""

blend_2 = _blend(2)
"""``blend_4`` for two n."""
