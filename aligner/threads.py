"""How many cores the libraries of the aligner use."""

from __future__ import annotations

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
