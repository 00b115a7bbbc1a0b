"""Filters: they select what Python's own comparison selects, and execute nothing."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.dataset as pads
import pytest

from dff.infra.datasets.shard_filter import parse_filter

TABLE = pa.table(
    {
        "yaw": [-90.0, -45.0, -10.0, 0.0, 10.0, 45.0, 45.5, 90.0],
        "view": pa.array([0, 1, 2, 3, 0, 1, 2, 3], pa.int32()),
        "licence": ["CC0-1.0", "CC0-1.0", "research", "research"] * 2,
    }
)


@pytest.mark.parametrize(
    "text",
    [
        "yaw > 10",
        "abs(yaw) > 45 and licence == 'CC0-1.0'",
        "abs(yaw) >= 45",
        "abs(yaw) <= 10",
        "45 > abs(yaw)",
        "abs(yaw) > -1",
        "abs(yaw) < -1",
        "abs(yaw) == 45",
        "abs(yaw) in (10, 45)",
        "-45 <= yaw < 45",
        "not view == 2",
        "view in (0, 3) or licence != 'research'",
        "licence not in ['research']",
        "(yaw < 0 or yaw > 40) and not (view > 1)",
        "licence > 'D'",
    ],
)
def test_a_filter_selects_as_python_does(text: str) -> None:
    wanted = [row for row in TABLE.to_pylist() if eval(text, {"abs": abs}, row)]
    got = pads.dataset(TABLE).to_table(filter=parse_filter(text).expression).to_pylist()
    assert got == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("__import__('os').remove('x')", "is no comparison"),
        ("yaw > __import__('os').getpid()", "is no number and no quoted text"),
        ("open('x') == 1", r"the only function is abs\(column\)"),
        ("abs(yaw, 1) > 3", r"the only function is abs\(column\)"),
        ("yawn > 3", "there is no column 'yawn'; there are .*yaw"),
        ("image == 'x'", "there is no column 'image'"),
        ("yaw > 'left'", "yaw has numbers, which can't be compared with 'left'"),
        ("licence == 3", "licence has texts, which can't be compared with 3"),
        ("abs(licence) > 3", "licence is a text, which has no absolute value"),
        ("yaw > True", "is no number"),
        ("yaw > view", "is no number"),
        ("yaw is 3", "there is no comparison Is"),
        ("yaw in ()", "'in' needs values"),
        ("yaw", "'yaw' is no comparison"),
        ("yaw > ", "can't be read"),
        ("", "can't be read"),
        ("(" * 5000 + "yaw > 1" + ")" * 5000, "can't be read"),
        ("not " * 5000 + "yaw > 1", "can't be read|nested too deeply"),
    ],
)
def test_anything_else_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_filter(text)
