"""Thread pools of libraries in forked child processes."""

from __future__ import annotations

import os
import sys


def limit_threads_after_fork() -> None:
    """Give forked child processes one thread for torch and OpenCV, from now on.

    A fork copies none of the parent's threads, so a child that hands work to the parent's pools
    waits for ever. A library that the child imports first starts its own threads and keeps them.
    """
    os.register_at_fork(after_in_child=_use_one_thread)


def _use_one_thread() -> None:
    # a library whose import was under way in another thread may still lack its functions
    if set_torch_threads := getattr(sys.modules.get("torch"), "set_num_threads", None):
        set_torch_threads(1)
    if set_opencv_threads := getattr(sys.modules.get("cv2"), "setNumThreads", None):
        set_opencv_threads(0)  # with 1 it would join threads that the fork did not copy
