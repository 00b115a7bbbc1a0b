"""Processes that are forked after the libraries' threads have started still answer."""

from __future__ import annotations

import subprocess
import sys

import pytest

# a process of its own: threads that other tests started must not matter
SCRIPT = """
import multiprocessing as mp
import sys

import cv2
import numpy as np
import torch

import dff

torch.set_num_threads(4)
cv2.setNumThreads(4)
image = np.random.default_rng(0).integers(0, 255, (1000, 1000, 3), np.uint8)
aligner = dff.load_aligner() if "aligner" in sys.argv else None


def use_pools(_):
    if aligner is not None:
        return aligner.align(image[:200, :200])
    made = (
        cv2.GaussianBlur(image, (31, 31), 5),
        cv2.resize(image, (3000, 3000), interpolation=cv2.INTER_CUBIC),
        torch.conv2d(torch.ones(4, 8, 128, 128), torch.ones(8, 8, 3, 3)),
        torch.ones(600, 600) @ torch.ones(600, 600),
        np.linalg.solve(np.eye(600) + 1, np.ones((600, 600))),
    )
    return [round(float(each.sum())) for each in made]


if __name__ == "__main__":
    expected = use_pools(0)
    with mp.get_context("fork").Pool(2) as pool:
        assert pool.map_async(use_pools, range(4)).get(60) == [expected] * 4
    print("answered")
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["libraries", "aligner"])
def test_a_pool_of_processes_answers_after_threads_have_started(what: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, what],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "answered\n", done.stderr
