"""Filters of a dataset's rows: ``abs(yaw) > 45 and licence == 'CC0-1.0'``.

The text is parsed into a tree that has only comparisons of columns, and becomes an expression of
Arrow. So nothing of it is executed as Python, and Parquet row groups whose statistics exclude a
match are not read.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

from dff.face.extras import require_extra
from dff.infra.datasets.shards import SCHEMA

with require_extra("train"):
    import pyarrow as pa
    import pyarrow.compute as pc

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_FLIPPED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.Gt,
    ast.LtE: ast.GtE,
    ast.Gt: ast.Lt,
    ast.GtE: ast.LtE,
    ast.Eq: ast.Eq,
    ast.NotEq: ast.NotEq,
}


def _is_plain(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind))


COLUMNS = tuple(field.name for field in SCHEMA if _is_plain(field.type) and field.name != "recipe")
"""The columns that a filter may name."""


@dataclass(frozen=True)
class RowFilter:
    """A parsed filter."""

    text: str
    expression: Any  # pyarrow.compute.Expression


def parse_filter(text: str) -> RowFilter:
    """Parse a filter: comparisons of columns with numbers or quoted texts.

    Comparisons (``<``, ``<=``, ``>``, ``>=``, ``==``, ``!=``, ``in``, also chained) are joined by
    ``and``, ``or``, ``not`` and parentheses; ``abs(column)`` is an absolute value. Raises
    ValueError for anything else, naming it.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"the filter {text!r} can't be read: {error}") from error
    try:
        return RowFilter(text, _build(tree.body))
    except ValueError as error:
        raise ValueError(f"the filter {text!r} can't be used: {error}") from error
    except RecursionError as error:
        raise ValueError(f"the filter of {len(text)} characters is nested too deeply") from error


def _build(node: ast.expr) -> Any:
    if isinstance(node, ast.BoolOp):
        join = operator.and_ if isinstance(node.op, ast.And) else operator.or_
        return reduce(join, map(_build, node.values))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return ~_build(node.operand)
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        parts = [
            _compare(left, op, right)
            for left, op, right in zip(sides, node.ops, sides[1:], strict=False)
        ]
        return reduce(operator.and_, parts)
    raise ValueError(f"{ast.unparse(node)!r} is no comparison")


def _compare(left: ast.expr, op: ast.cmpop, right: ast.expr) -> Any:
    column, is_absolute = _read_column(left)
    if column is None:
        column, is_absolute = _read_column(right)
        if column is None or type(op) not in _FLIPPED:
            raise ValueError(f"{ast.unparse(left)!r} is no column of {', '.join(COLUMNS)}")
        op, right = _FLIPPED[type(op)](), left
    field = pc.field(column)
    if isinstance(op, ast.In | ast.NotIn):
        if not isinstance(right, ast.Tuple | ast.List) or not right.elts:
            raise ValueError(f"'in' needs values in parentheses, got {ast.unparse(right)!r}")
        values = [_read_value(element, column) for element in right.elts]
        within = (pc.abs(field) if is_absolute else field).isin(values)
        return within if isinstance(op, ast.In) else ~within
    if type(op) not in _COMPARISONS:
        raise ValueError(f"there is no comparison {type(op).__name__}")
    value = _read_value(right, column)
    if not is_absolute:
        return _COMPARISONS[type(op)](field, value)
    # Statistics of Parquet are used for comparisons of a column itself, not of its absolute value.
    if isinstance(op, ast.Gt | ast.GtE) and value >= 0:
        return _COMPARISONS[type(op)](field, value) | _COMPARISONS[_FLIPPED[type(op)]](
            field, -value
        )
    if isinstance(op, ast.Lt | ast.LtE) and value >= 0:
        return _COMPARISONS[type(op)](field, value) & _COMPARISONS[_FLIPPED[type(op)]](
            field, -value
        )
    return _COMPARISONS[type(op)](pc.abs(field), value)


def _read_column(node: ast.expr) -> tuple[str | None, bool]:
    """The column of an operand, None for a value; and whether its absolute value is meant.

    Raises ValueError for a name that is no column.
    """
    if isinstance(node, ast.Call):
        argument = node.args[0] if len(node.args) == 1 and not node.keywords else None
        named = isinstance(node.func, ast.Name) and node.func.id == "abs"
        if not named or not isinstance(argument, ast.Name):
            raise ValueError(f"the only function is abs(column), got {ast.unparse(node)!r}")
        column, _ = _read_column(argument)
        assert column is not None
        if _is_text(column):
            raise ValueError(f"{column} is a text, which has no absolute value")
        return column, True
    if not isinstance(node, ast.Name):
        return None, False
    if node.id not in COLUMNS:
        raise ValueError(f"there is no column {node.id!r}; there are {', '.join(COLUMNS)}")
    return node.id, False


def _is_text(column: str) -> bool:
    return bool(pa.types.is_string(SCHEMA.field(column).type))


def _read_value(node: ast.expr, column: str) -> Any:
    """A node's number or text. Raises ValueError where the column has values of another kind."""
    sign = 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        sign, node = -1, node.operand
    value = node.value if isinstance(node, ast.Constant) else None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{ast.unparse(node)!r} is no number and no quoted text")
    if isinstance(value, str) != _is_text(column) or (isinstance(value, str) and sign < 0):
        kind = "texts" if _is_text(column) else "numbers"
        raise ValueError(f"{column} has {kind}, which can't be compared with {value!r}")
    return value if isinstance(value, str) else sign * value
