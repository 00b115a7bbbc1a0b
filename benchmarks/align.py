"""Milliseconds for each aligned face on one core, by stage: ``python -m benchmarks.align``.

The network has its real size and runtime, but its output is replaced by an oracle's, so that faces
converge with any weights. CPU time of the fastest round, all taking turns: ratios are more reliable
than absolute numbers.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dff.aligner.align import Aligner
from dff.aligner.confidence import DEFAULT as DEFAULT_CALIBRATION
from dff.aligner.fitting import fitters, observation
from dff.aligner.fitting.assessment import assess
from dff.aligner.fitting.correspondence import match_pixels
from dff.aligner.fitting.steps import fit_from_detection, refine
from dff.aligner.load import load_aligner
from dff.aligner.threads import use_threads
from dff.face.descriptor import Features, Network
from dff.face.fused_network import FusedNetwork
from dff.face.io.assets import load_model
from dff.infra.networks.onnx_file import export
from dff.infra.networks.weights import DEFAULT, Weights, load
from tests.aligner.oracle import READING, OracleNet, PositionCode, Scene, make_scene, oracle_anchors

FACES, ROUNDS = 16, 6
BATCHES = (1, 16)
STAGES = ("network", "matching", "fit", "visibility and confidence", "rest")


class Clock:
    """CPU seconds by stage; ``hidden`` is time outside the aligner."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys((*STAGES, "hidden"), 0.0)

    @contextmanager
    def on(self, stage: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.seconds[stage] += time.process_time() - start

    def around(self, stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.on(stage):
                return work(*args, **kwargs)

        return timed


class TimedNet:
    """Runs the real network, but returns the oracle's features."""

    def __init__(self, net: Network, oracle: OracleNet, clock: Clock) -> None:
        self.net, self.oracle, self.clock = net, oracle, clock

    def __call__(self, image: Tensor) -> Features:
        with self.clock.on("network"):
            self.net(image)
        with self.clock.on("hidden"):
            return self.oracle(image)


def measure(aligner: Aligner, clock: Clock, scenes: list[Scene], batch: int) -> dict[str, float]:
    """Milliseconds of each stage for one face, and in total."""
    clock.seconds = dict.fromkeys(clock.seconds, 0.0)
    start = time.process_time()
    for begin in range(0, len(scenes), batch):
        some = scenes[begin : begin + batch]
        aligner.align_batch([scene.image for scene in some], [[scene.box] for scene in some])
    total = time.process_time() - start - clock.seconds["hidden"]
    spent = {stage: clock.seconds[stage] for stage in STAGES}
    spent["rest"] = total - sum(spent.values())
    return {
        stage: 1e3 * seconds / len(scenes) for stage, seconds in {**spent, "all": total}.items()
    }


def network_times(weights: Weights, side: int) -> dict[int, tuple[float, ...]]:
    """Milliseconds for one crop by batch size: fused, in torch and in onnxruntime."""
    fused = FusedNetwork(weights.net)
    net = weights.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        export(weights, Path(folder) / "net.onnx")
        session = onnxruntime.InferenceSession(
            Path(folder) / "net.onnx", options, providers=["CPUExecutionProvider"]
        )
    out = {}
    for batch in BATCHES:
        image = torch.rand(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
        plain = image.contiguous().numpy()
        works: tuple[Callable[[], Any], ...] = (
            partial(fused, image),
            partial(net, image),
            partial(session.run, None, {"image": plain}),
        )
        best = [np.inf] * len(works)
        for _ in range(ROUNDS):
            for i, work in enumerate(works):
                start = time.process_time()
                work()
                best[i] = min(best[i], (time.process_time() - start) * 1e3 / batch)
        out[batch] = tuple(best)
    return out


@torch.no_grad()
def main() -> None:
    use_threads(1)
    model = load_model()
    code = PositionCode.of(model)
    clock = Clock()
    weights, crop = load(DEFAULT), load_aligner().config.crop
    timed = TimedNet(FusedNetwork(weights.net), OracleNet(code, noise=0.6), clock)
    # With the noise of real features the oracle's confidence would be too low, and failed faces are
    # aligned twice.
    sure = replace(
        DEFAULT_CALIBRATION, face=np.append(np.zeros(len(DEFAULT_CALIBRATION.face) - 1), 9.0)
    )
    anchors = oracle_anchors(model, code)
    aligner = Aligner(timed, anchors, model, config=replace(READING, crop=crop), calibration=sure)
    rng = np.random.default_rng(0)
    scenes = [
        make_scene(model, code, yaw=float(rng.uniform(-80, 80)), rng=rng) for _ in range(FACES)
    ]
    best: dict[int, dict[str, float]] = {}
    with (
        patch.object(observation, "match_pixels", clock.around("matching", match_pixels)),
        patch.object(fitters, "fit_from_detection", clock.around("fit", fit_from_detection)),
        patch.object(fitters, "refine", clock.around("fit", refine)),
        patch.object(fitters, "assess", clock.around("visibility and confidence", assess)),
    ):
        for number in range(ROUNDS + 1):  # the first compiles
            for batch in BATCHES:
                spent = measure(aligner, clock, scenes, batch)
                if number and spent["all"] < best.get(batch, {"all": np.inf})["all"]:
                    best[batch] = spent
    passes = np.mean([len(aligner.align(s.image, [s.box])[0].trace) for s in scenes])
    table = Table("stage", *(f"batch {batch}, ms" for batch in BATCHES))
    for stage in (*STAGES, "all"):
        table.add_row(stage, *(f"{best[batch][stage]:.1f}" for batch in BATCHES))
    console = Console()
    console.print(table)
    networks = Table("network alone", "fused, ms", "torch, ms", "onnxruntime, ms")
    for batch, times in network_times(weights, crop).items():
        networks.add_row(f"batch {batch}", *(f"{ms:.1f}" for ms in times))
    console.print(networks)
    console.print(f"{passes:.1f} passes for each face; bounds: 40 ms at batch 1, 25 ms at batch 16")


if __name__ == "__main__":
    main()
