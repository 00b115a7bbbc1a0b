from __future__ import annotations

import subprocess
import sys

COUNT_KERNELS = """
import gc
import numpy as np
from numba.core.dispatcher import Dispatcher
import dff
from dff.aligner.service.face_aligner import SAMPLE, warm_up

def loaded():
    found = [each for each in gc.get_objects() if isinstance(each, Dispatcher)]
    return {(each.__module__, each.__name__): len(each.signatures) for each in found}

aligner = dff.load_aligner().with_quick_search()
warm_up(aligner)
before = loaded()
photo = dff.read_image(SAMPLE)
aligner.align_batch([photo[:, ::-1].copy()])
aligner.align_batch([photo], [[dff.Box(170, 80, 280, 180)]])
print(sum(before.values()), sorted(set(loaded().items()) - set(before.items())))
"""


def test_after_warming_up_a_request_waits_for_no_kernel() -> None:
    command = [sys.executable, "-c", COUNT_KERNELS]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kernels, later = told.split(maxsplit=1)
    assert int(kernels) > 20
    assert later.strip() == "[]"
