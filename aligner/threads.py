"""How many cores the libraries of the aligner use, and how its threads share the interpreter."""

from __future__ import annotations

import sys

import cv2
import numba
import scipy.linalg  # noqa: F401  (numba multiplies matrices by its BLAS)
import torch
from threadpoolctl import threadpool_limits


def use_threads(count: int) -> None:
    """Let torch, OpenCV, numba, OpenMP and BLAS use ``count`` threads each, from now on.

    Threads of pools that compete for the cores spin instead of computing: on a busy machine with
    two cores, a served photo took 277 ms of CPU time or more with two threads of the BLAS, and 59
    with one.
    """
    torch.set_num_threads(count)
    cv2.setNumThreads(count)
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    threadpool_limits(count)


def share_interpreter() -> None:
    """Let a thread that waits for Python's interpreter have it after 0.1 ms instead of 5.

    The aligner's thread gives it away and asks for it again in each of its compiled loops, some
    hundred times a photo. Beside eight clients that flood a server with broken forms, a small photo
    took 1.3 s with 1 ms, and 0.26 s with 0.1 ms; without the flood 0.05 s with both.
    """
    sys.setswitchinterval(1e-4)
