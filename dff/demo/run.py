"""Run the chain: inverse rendering, synthesis, training, a served aligner, and the report.

Each step is what people run: ``synthesize`` and ``fit`` on a local Ray, the aligner on Ray Serve.
"""

from __future__ import annotations

import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from dff.aligner.draw import draw
from dff.aligner.load import load_aligner
from dff.aligner.service.ray_serve import local_environment, serving
from dff.aligner.service.server_config import ServerConfig
from dff.demo import sections
from dff.demo.errors import DemoError
from dff.demo.photograph import LICENCE, write_photograph
from dff.face.arrays import Array, Bytes, UInt8
from dff.face.io.assets import load_albedo, load_model
from dff.infra.clusters.cluster import connected
from dff.infra.datasets.dataset import open_dataset
from dff.infra.files import write_file
from dff.infra.networks import weights as weights_files
from dff.infra.storage import open_storage
from dff.pipeline.inspection.recovery_panel import draw_recovery
from dff.pipeline.recovery.inverse import Recovery, invert
from dff.pipeline.recovery.photos import list_photos, read_photo
from dff.pipeline.synthesis import synthesize
from dff.report import Section, html
from dff.trainer import launch
from dff.trainer.config import TrainConfig

PORT = 8571
SEED = 7
CONTENT = {"photos", "dataset", "runs", "weights", "overview.jpg", "report.html"}
"""The files that a demo writes into its folder: nothing else there is ever removed."""


@dataclass
class Clock:
    """Seconds of the named steps."""

    say: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a block, and report it."""
        self.say(f"{name} ...")
        begin = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begin
        self.say(f"{name}: {self.seconds[name]:.1f} s")


@dataclass(frozen=True)
class Outcome:
    """The outputs of the steps of the demo."""

    photograph: UInt8[Array, "height width 3"]  # RGB
    recovery: Recovery
    dataset: str  # folder
    weights: Path
    start: str  # the weights that training started from; "": from scratch
    figures: dict[str, float]  # of held-out identities
    answer: dict[str, Any]  # of /v1/align


def run_demo(
    out: Path, *, identities: int, views: int, steps: int, say: Callable[[str], None]
) -> Path:
    """Run the chain in the folder ``out`` and return the path of the report.

    ``identities``: sampled faces; ``views``: of each face; ``steps``: of training; ``say`` is
    called with lines of progress. An earlier demo in the folder is removed first. Raises DemoError
    for a folder that holds anything else, and when a step fails.
    """
    remove_earlier(out)
    clock = Clock(say)
    outcome = _run_steps(out, identities=identities, views=views, steps=steps, clock=clock)
    page, overview = _build_report(outcome, clock)
    picture = io.BytesIO()
    Image.fromarray(overview).save(picture, "JPEG", quality=88)
    write_file(out / "overview.jpg", picture.getvalue())
    report = out / "report.html"
    write_file(report, page.encode())
    return report


def _run_steps(out: Path, *, identities: int, views: int, steps: int, clock: Clock) -> Outcome:
    photos, dataset, weights = out / "photos", str(out / "dataset"), out / "weights/dff.safetensors"
    photograph = write_photograph(photos)
    cores = os.cpu_count() or 1
    start = weights_files.DEFAULT if weights_files.SHIPPED[weights_files.DEFAULT].exists() else ""
    with clock.step("inverse rendering of the photograph"):
        storage = open_storage(str(photos))
        photo = read_photo(storage, list_photos(storage)[0])
        recovery = invert(photo, model=load_model(), albedo=load_albedo())
    served = ServerConfig(weights=weights, port=PORT)
    with connected(None, workers=cores, env=local_environment(served)):
        with clock.step(f"synthesis of {(identities + 1) * views} views"):
            synthesize(
                str(photos),
                dataset,
                views=views,
                identities=identities,
                seed=SEED,
                workers=max(2, cores),
                photo_terms=LICENCE,
                shard_subjects=8,
            )
        with clock.step(f"training for {steps} steps"):
            trained = launch.train_on_ray(
                dataset,
                weights,
                config=_train_config(steps, start),
                name="demo",
                storage=out / "runs",
                progress=True,
            )
        with clock.step("serving and aligning"), serving(served) as url:
            answer = request_alignment(url, photograph)
    return Outcome(photograph, recovery, dataset, weights, start, dict(trained.dev), answer)


def _train_config(steps: int, start: str) -> TrainConfig:
    return TrainConfig(
        steps=steps,
        start=start,
        learning_rate=5e-4 if start else 3e-3,
        ema=0.98,
        warmup=min(50, steps // 4),
        eval_every=steps,
        checkpoint_every=steps,
    )


def _build_report(outcome: Outcome, clock: Clock) -> tuple[str, Bytes]:
    """The report as HTML, and its overview picture."""
    aligner = load_aligner(outcome.weights)
    dataset = open_dataset(outcome.dataset)
    rows = [row for i in range(len(dataset.shards)) for row in dataset.read_shard(i)]
    photograph = outcome.photograph
    panels = draw_recovery(outcome.recovery, model=load_model(), albedo=load_albedo())
    alignment = aligner.align(photograph)
    if not alignment:
        raise DemoError("the aligner found no face in the photograph")
    drawn = draw(photograph, alignment, aligner.model)
    overview = sections.compose_overview(photograph, panels, rows, drawn)
    parts: list[Section] = [
        sections.overview_section(overview),
        sections.inverse_section(outcome.recovery, panels),
        sections.views_section(rows),
        sections.correspondence_section(rows),
        sections.training_section(rows, outcome.weights, outcome.figures, outcome.start),
        sections.alignment_section(photograph, aligner, alignment[0], outcome.answer),
        sections.timing_section(clock.seconds, outcome.answer["timing"]),
    ]
    page = html(
        "Deep Face Feature: one photograph through the whole chain",
        "A 3D face is recovered from a photograph, rendered in many views with exact dense "
        "correspondence, a descriptor is trained on the views, and the descriptor aligns the "
        "photograph: landmarks, pose and shape. Photograph: Eileen Collins, NASA, public domain.",
        parts,
    )
    return page, overview


def remove_earlier(out: Path) -> None:
    """Remove an earlier demo from ``out``.

    Raises DemoError, and removes nothing, when other files lie there.
    """
    if not out.exists():
        return
    others = sorted({path.name for path in out.iterdir()} - CONTENT) if out.is_dir() else [out.name]
    if others:
        raise DemoError(
            f"{out} holds {', '.join(others[:3])}, not written by a demo: choose another folder"
        )
    shutil.rmtree(out)


def request_alignment(url: str, photograph: Bytes) -> dict[str, Any]:
    """The answer of the service for the photograph. Raises DemoError when it is no success."""
    buffer = io.BytesIO()
    Image.fromarray(photograph).save(buffer, "PNG")
    reply = httpx.post(
        f"{url}/v1/align", files={"image": ("astronaut.png", buffer.getvalue())}, timeout=120
    )
    if reply.status_code != httpx.codes.OK:
        raise DemoError(f"the service answered {reply.status_code}: {reply.text[:300]}")
    answer: dict[str, Any] = reply.json()
    return answer
