"""How many cores the libraries of the aligner use, and how its threads share the interpreter."""

from __future__ import annotations

import sys

import cv2
import numba
import scipy.linalg  # noqa: F401  (numba multiplies matrices by its BLAS)
import torch
from threadpoolctl import threadpool_limits


def use_threads(count: int) -> None:
    """Let torch, OpenCV, numba and the BLAS libraries use ``count`` threads each, from now on.

    Threads of pools that compete for the cores spin instead of computing: on a busy machine with
    two cores, a served photo took 277 ms of CPU time or more with two threads of the BLAS, and 59
    with one.
    """
    torch.set_num_threads(count)
    cv2.setNumThreads(count)
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    threadpool_limits(count, user_api="blas")


def share_interpreter() -> None:
    """Let a thread that waits for Python's interpreter have it after 1 ms instead of 5.

    The aligner's thread gives it away and asks for it again in each of its compiled loops. While
    another thread answered a flood of requests to ``/healthz``, a photo took 215 to 1239 ms in six
    runs with 5 ms, and 116 to 777 in five with 1 ms; without the flood 42 to 103.
    """
    sys.setswitchinterval(1e-3)
