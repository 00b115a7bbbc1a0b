"""``dff calibrate`` with a dataset that is too small says so in a line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dff.command_runner import run_command

SAMPLES = Path(__file__).parents[3] / "samples" / "views-200"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--correction",), "200 views to learn the correction of fits from; at least 1000 are"),
        (("--views", "32"), "too few held-out identities"),
    ],
)
def test_a_dataset_that_is_too_small_is_refused(
    tmp_path: Path, options: tuple[str, ...], reason: str
) -> None:
    out = tmp_path / "w.safetensors"
    code, _, errors = run_command(
        "calibrate", "dff-open", str(SAMPLES), "--all", "--no-match-errors", "--out", str(out),
        *options,
    )  # fmt: skip
    assert code == 1
    assert reason in errors
    assert "Traceback" not in errors
    assert not out.exists()
