"""How many cores the libraries of the aligner use."""

from __future__ import annotations

import cv2
import numba
import torch


def use_threads(count: int) -> None:
    """Let torch, OpenCV and numba use ``count`` threads each, from now on.

    Two pools of threads that compete for the cores spin instead of computing: a photo took 0.53 s
    of CPU time with all cores and 0.28 s with one thread.
    """
    torch.set_num_threads(count)
    cv2.setNumThreads(count)
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
