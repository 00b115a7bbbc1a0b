"""Of a job's log one bar is shown, and every other line once."""

from __future__ import annotations

import io

import pytest

from dff.commands.job_progress import JobProgress
from dff.infra.clusters.cluster import is_progress, split_log

LOG = (
    "run dff-1, checkpoints in s3://b/runs\n"
    "\r  0%|          | 0/6 [00:00<?, ?step/s]\r 50%|█████     | 3/6 [00:01<00:01, 2.0step/s]"
    "\r100%|██████████| 6/6 [00:02<00:00, 2.5step/s, loss=0.167]\n"
    "weights: 5% | of | them\n"
)


def test_bars_are_told_from_lines_however_the_log_is_cut() -> None:
    for size in (1, 7, 1000):
        rest, found = "", list[str]()
        for first in range(0, len(LOG), size):
            lines, rest = split_log(rest + LOG[first : first + size])
            found += lines
        assert rest == ""
        assert [line for line in found if not is_progress(line)] == [
            "run dff-1, checkpoints in s3://b/runs",
            "weights: 5% | of | them",
        ]
        assert len([line for line in found if is_progress(line)]) == 3


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_the_last_bar_over_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    stream = Terminal()
    with JobProgress(stream) as progress:
        progress.show_bar(" 50%|█████     | 3/6 [x]")
        progress.show_line("a line")
        progress.show_bar("100%|██████████| 6/6 [x]")
    assert capsys.readouterr().out == "a line\n"
    assert stream.getvalue().endswith("\r100%|██████████| 6/6 [x]\n")
    assert stream.getvalue().count("\n") == 1


def test_a_file_gets_few_lines_of_progress_and_the_last_one() -> None:
    stream = io.StringIO()
    with JobProgress(stream) as progress:
        for step in range(100):
            progress.show_bar(f"{step:3}%|x| {step}/100 [x]")
    assert stream.getvalue().splitlines() == ["0%|x| 0/100 [x]", "99%|x| 99/100 [x]"]
