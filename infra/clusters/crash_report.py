"""One line where a native library ends the process, instead of its stack.

Ray's core aborts a process whose node or cluster is gone. No Python code runs then, so another
process tells.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

CLUSTER_GONE = (
    "ClusterError: the process was aborted: its cluster is gone, or it was killed; the same "
    "command continues what is stored; Ray's last words are in the log"
)
SERVICE_GONE = (
    "ClusterError: the service was aborted: its cluster is gone, or it was killed; the same "
    "command starts it again; Ray's last words are in the log"
)
DEMO_GONE = (
    "ClusterError: the demo was aborted: its Ray is gone, or it was killed; the same command "
    "begins it anew; Ray's last words are in the log"
)
ENDED = b"ended"
_WATCHER = """
import sys
if sys.stdin.buffer.read() != sys.argv[1].encode():
    sys.stderr.write("\\n" + sys.argv[2] + "\\n")  # a progress bar has not ended its line
"""


@contextmanager
def reported_crashes(reason: str, folder: Path | None = None) -> Iterator[Path]:
    """Let a process that is aborted in a ``with`` block leave one line on standard error.

    The line has the ``reason`` and the name of a log in ``folder`` (by default the one for
    temporary files), which holds what native code wrote to standard error.
    Python's own output stays where it is. The log is removed when the block ends in any other way.
    """
    number, name = tempfile.mkstemp(prefix="dff-crash-", suffix=".log", dir=folder)
    log = Path(name)
    sys.stderr.flush()
    before, usual = os.dup(2), sys.stderr
    shown = usual
    if _is_standard_error(usual):
        shown = open(  # noqa: SIM115
            os.dup(2), "w", buffering=1, encoding=usual.encoding, errors=usual.errors
        )
    watcher = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WATCHER, ENDED.decode(), f"dff: {reason} ({log})"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # an interrupt of the terminal is not for it
    )
    handlers = [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is usual
    ]
    os.dup2(number, 2)
    os.close(number)
    sys.stderr = shown
    for handler in handlers:
        handler.setStream(shown)
    try:
        yield log
    finally:
        for handler in handlers:
            handler.setStream(usual)
        shown.flush()
        sys.stderr = usual
        os.dup2(before, 2)
        os.close(before)
        if shown is not usual:
            shown.close()
        watcher.communicate(ENDED)
        log.unlink(missing_ok=True)


def _is_standard_error(stream: TextIO) -> bool:
    """Whether a stream writes to this process's standard error, and not to a test's buffer."""
    try:
        return stream.fileno() == 2
    except (OSError, ValueError):
        return False
