"""What the driver shows of a run."""

from __future__ import annotations

import io

import pytest
from tqdm import tqdm

from dff.trainer.events import show_step


def test_steps_of_an_earlier_run_are_shown_but_not_counted_in_the_rate() -> None:
    with tqdm(total=400, file=io.StringIO()) as bar:
        show_step(bar, 260)
        assert (bar.n, bar.initial) == (260, 260)
        bar.start_t = bar._time() - 10.0
        show_step(bar, 280)
        shown = bar.format_dict
        rate = (shown["n"] - shown["initial"]) / shown["elapsed"]
        assert rate == pytest.approx(2.0, rel=0.05)
        show_step(bar, 250)  # done again
        assert bar.n == 250
