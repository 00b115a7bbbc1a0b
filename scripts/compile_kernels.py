"""Compile the numerical kernels once: numba keeps them beside the sources.

Otherwise the first process that needs a kernel compiles it, which takes the first alignment about a
minute; and the tests, which start many processes, compile most of them several times. ``make
setup`` and the build of the image run this.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def align_photos() -> None:
    """Kernels of the aligner: photos, several photos of a person, textures, matches, tracks."""
    from dataclasses import replace

    import cv2

    import dff
    from dff.aligner.texture import texture_face
    from dff.aligner.tracking.tracker import Tracker
    from dff.demo.photograph import write_photograph

    with tempfile.TemporaryDirectory() as folder:
        photo = write_photograph(Path(folder) / "photos")
    aligner = dff.load_aligner()
    (face,) = aligner.align(photo)
    aligner.align(cv2.resize(photo, (1500, 1500)))  # large ones are shrunk
    dff.load_aligner(preset="fast").align(photo)
    dff.load_aligner(config=replace(aligner.config, reduced_precision=False)).align(photo)
    texture_face(face, aligner.model, photo)
    aligner.align_person([photo, photo[:, ::-1].copy()])
    dff.Matcher(aligner).match(photo, [(240.0, 130.0)], photo)
    tracker = Tracker(aligner)
    for time in (0.0, 0.04):
        tracker.step(photo, time)


def make_and_learn() -> None:
    """Kernels of the synthesis and of the training."""
    import dff
    from dff.demo.photograph import LICENCE, write_photograph
    from dff.face.descriptor import NetConfig
    from dff.infra.datasets.dataset import open_dataset
    from dff.trainer.config import TrainConfig
    from dff.trainer.data.config import AugmentConfig, MosaicConfig
    from dff.trainer.train import train

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_photograph(folder / "photos")
        dff.synthesize(
            str(folder / "photos"), str(folder / "data"), photo_terms=LICENCE,
            identities=2, views=4, size=96, profile_share=0.5,
        )  # fmt: skip
        small = TrainConfig(
            steps=2, batch=8, views=2, size=64, anchors=100, loaders=0,
            augment=AugmentConfig(mosaic=MosaicConfig(probability=0.5)),
            net=NetConfig(dims=8, widths=(8, 16), depths=(1, 1)),
        )  # fmt: skip
        train(open_dataset(str(ROOT / "samples/views-200")), folder / "w.safetensors", config=small)


def main() -> None:
    """Run the parts at the same time: their kernels differ."""
    parts: tuple[Callable[[], None], ...] = (align_photos, make_and_learn)
    running = [multiprocessing.get_context("spawn").Process(target=part) for part in parts]
    for process in running:
        process.start()
    for process in running:
        process.join()
    if any(process.exitcode for process in running):
        warnings.warn("not all kernels are compiled: it is done when they are needed", stacklevel=1)


if __name__ == "__main__":
    main()
