"""A process that native code aborts says so in one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import logging, os, sys, time
from pathlib import Path
from dff.infra.clusters.crash_report import reported_crashes
logging.basicConfig()
with reported_crashes("the cluster is gone", Path(sys.argv[1])):
    print("a message", file=sys.stderr)
    logging.warning("a warning")
    os.write(2, b"*** SIGABRT received ***\\n")
    os.system("echo a child >&2")
    print("50 %|## a bar", file=sys.stderr, end="", flush=True)
    END
print("after", file=sys.stderr)
"""


@pytest.mark.parametrize("end", ["os.abort()", "os._exit(1)", "os.kill(os.getpid(), 9)"])
def test_an_abort_is_one_line_that_names_the_log(end: str, tmp_path: Path) -> None:
    code, said = run(SCRIPT.replace("END", end), tmp_path)
    assert code != 0
    *others, line = said.splitlines()
    assert others == ["a message", "WARNING:root:a warning", "50 %|## a bar"]
    found = re.fullmatch(r"dff: the cluster is gone \((.*)\)", line)
    assert found
    assert Path(found[1]).read_text() == "*** SIGABRT received ***\na child\n"


@pytest.mark.parametrize(("end", "status"), [("pass", 0), ("raise SystemExit(3)", 3)])
def test_any_other_end_says_and_leaves_nothing(end: str, status: int, tmp_path: Path) -> None:
    code, said = run(SCRIPT.replace("END", end), tmp_path)
    assert code == status
    bar = "50 %|## a bar" + "after" * (status == 0)
    assert said.splitlines() == ["a message", "WARNING:root:a warning", bar]
    assert not list(tmp_path.iterdir())


def run(script: str, folder: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONWARNINGS": "error"},
    )
    return done.returncode, done.stderr
