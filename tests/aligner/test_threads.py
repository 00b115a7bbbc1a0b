"""Threads of the libraries that the aligner computes with."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json

import cv2
import torch
from dff.aligner.load import load_aligner
from dff.aligner.threads import use_threads
from threadpoolctl import threadpool_info

use_threads(1)
load_aligner()
pools = [(pool["user_api"], pool["num_threads"]) for pool in threadpool_info()]
print(json.dumps([*pools, ("torch", torch.get_num_threads()), ("cv2", cv2.getNumThreads())]))
"""


TURNS = """
import threading
import time

from dff.aligner.threads import share_interpreter

ended = False


def compute() -> None:
    while not ended:
        pass


def measure() -> float:
    began = time.monotonic()
    for _ in range(100):
        time.sleep(1e-4)  # gives the interpreter away, as a compiled loop does
    return time.monotonic() - began


threading.Thread(target=compute).start()
before = measure()
share_interpreter()
print(measure() / before)
ended = True
"""


def test_compiled_code_soon_has_the_interpreter_again() -> None:
    """While another thread computes in Python, as the one that answers a flood of requests."""
    assert float(subprocess.check_output([sys.executable, "-c", TURNS], text=True)) < 0.5


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a single core has no pools")
def test_no_library_keeps_more_threads_than_it_is_given() -> None:
    """A second thread of the BLAS spins on a busy machine: a served photo took 277 to 637 ms of CPU
    time instead of 59.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    output = subprocess.check_output([sys.executable, "-c", PROGRAM], text=True, env=environment)
    pools = json.loads(output)
    assert {name for name, _ in pools} >= {"blas", "torch", "cv2"}
    assert {count for _, count in pools} == {1}
