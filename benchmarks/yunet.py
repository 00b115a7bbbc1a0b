"""YuNet, the face detector of libfacedetection (Wu et al. 2023), in a process of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np

from dff.face.arrays import Bytes
from dff.face.geometry.camera import Box

PACKAGE = "yuface==2023.5.1"  # from the authors of YuNet; the network is part of the program
CONFIDENCE = 0.5  # of a detection; the default of the package
# Where the box of the 68 landmarks lies in a detection (x0, y0, x1, y1, fractions of its width and
# height): medians over the 268 of 272 labelled photos of AFLW2000-3D in which YuNet finds the face.
LANDMARKS = np.array([-0.015, 0.246, 1.02, 0.996])

WORKER = """
import json, sys, time, numpy as np, yuface
pipe, confidence = sys.stdin.buffer, float(sys.argv[1])
while head := pipe.read(8):
    height, width = np.frombuffer(head, "<i4")
    image = np.frombuffer(pipe.read(3 * height * width), np.uint8).reshape(height, width, 3)
    start = time.process_time()
    _, boxes, _ = yuface.detect(image, conf=confidence)
    seconds = time.process_time() - start
    print(json.dumps([seconds, np.reshape(boxes, (-1, 4)).tolist()]), flush=True)
"""


class YuNet:
    """Detects faces of at least ``CONFIDENCE``; ``seconds`` is the CPU time of all calls."""

    def __init__(self, python: Path) -> None:
        self.seconds = 0.0
        self.process = subprocess.Popen(
            [str(python), "-c", WORKER, str(CONFIDENCE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # it warns of every image of more than 640 pixels
        )

    def find(self, image: Bytes) -> list[Box]:
        """Boxes of landmarks in an (H, W, 3) uint8 RGB image."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(np.array(image.shape[:2], "<i4").tobytes())
        self.process.stdin.write(np.ascontiguousarray(image[:, :, ::-1]).tobytes())
        self.process.stdin.flush()
        seconds, found = json.loads(self.process.stdout.readline())
        self.seconds += seconds
        return [_to_landmarks(*map(float, box)) for box in found]

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def _to_landmarks(x: float, y: float, width: float, height: float) -> Box:
    size = np.array([width, height, width, height])
    x0, y0, x1, y1 = np.array([x, y, x, y]) + size * LANDMARKS
    return Box(float(x0), float(y0), float(x1), float(y1))
