"""The whole chain on one public-domain photograph, told in one HTML report.

Every step is the program that people use: ``synthesize`` and ``fit`` on a local Ray, the aligner
behind Ray Serve.
"""

from __future__ import annotations

import io
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dff.aligner.align import Aligner, load_aligner
from dff.aligner.alignment import Alignment
from dff.aligner.draw import draw, draw_landmarks
from dff.aligner.service.ray_serve import serving
from dff.face.arrays import Bytes
from dff.face.errors import DffError
from dff.face.extras import require_extra
from dff.face.geometry.camera import Box
from dff.face.io.assets import load_albedo, load_model
from dff.face.model.landmarks import INNER, nme_box
from dff.infra import weights as weights_files
from dff.infra.cluster import connected
from dff.infra.dataset import open_dataset
from dff.infra.landmark_files import parse_pts
from dff.infra.shards import ViewRow
from dff.infra.storage import open_storage
from dff.pipeline.inspection.gallery import contact_sheet, correspondence_picture
from dff.pipeline.inspection.recovery_panel import recovery_panel
from dff.pipeline.recovery.inverse import Recovery, invert
from dff.pipeline.recovery.photos import list_photos, read_photo
from dff.pipeline.synthesis import synthesize
from dff.report import Figure, Section, Table, html
from dff.trainer import launch
from dff.trainer.config import TrainConfig
from dff.trainer.evaluation.figures import match_picture

with require_extra("all"):
    import httpx
    from skimage import data

PORT = 8571
SEED = 7
TERMS = "LicenseRef-public-domain"
MADE = {"photos", "dataset", "runs", "weights", "overview.jpg", "report.html"}
"""What a demo leaves in its folder: nothing else there is ever removed."""
PANELS = {
    "photo": "The photograph, its landmarks (red) and the fitted ones (green)",
    "mesh": "The fitted mesh",
    "albedo": "Recovered albedo",
    "light": "Recovered light on white skin",
    "rendering": "Rendered again from the recovery",
    "residual": "What is left (grey is zero, pink counts as covered)",
}


class DemoError(DffError):
    """A step of the demo did not do what it must."""


@dataclass
class Clock:
    """Seconds of the named steps."""

    say: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a block and say so."""
        self.say(f"{name} ...")
        begin = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begin
        self.say(f"{name}: {self.seconds[name]:.1f} s")


def run_demo(
    out: Path, *, identities: int, views: int, steps: int, say: Callable[[str], None]
) -> Path:
    """Run the chain under the folder ``out`` and return the path of the report.

    What an earlier demo left there is removed first. Raises DemoError for a folder that holds
    anything else.
    """
    clear(out)
    photos, dataset_uri, weights = (
        out / "photos",
        str(out / "dataset"),
        out / "weights" / "dff.safetensors",
    )
    photograph = write_photograph(photos)
    clock = Clock(say)
    model, albedo = load_model(), load_albedo()
    cores = os.cpu_count() or 1

    start = weights_files.DEFAULT if weights_files.SHIPPED[weights_files.DEFAULT].exists() else ""
    config = TrainConfig(
        steps=steps,
        start=start,
        learning_rate=5e-4 if start else 3e-3,
        ema=0.98,
        warmup=min(50, steps // 4),
        eval_every=steps,
        checkpoint_every=steps,
    )

    with clock.step("inverse rendering of the photograph"):
        storage = open_storage(str(photos))
        recovery = invert(read_photo(storage, list_photos(storage)[0]), model=model, albedo=albedo)
    with connected(None, workers=cores):
        with clock.step(f"synthesis of {(identities + 1) * views} views"):
            made = synthesize(
                str(photos),
                dataset_uri,
                views=views,
                identities=identities,
                seed=SEED,
                workers=max(2, cores),
                photo_terms=TERMS,
                shard_subjects=8,
            )
        with clock.step(f"training for {steps} steps"):
            trained = launch.fit(
                dataset_uri,
                weights,
                config=config,
                name="demo",
                storage=out / "runs",
                progress=True,
            )
        with clock.step("serving and aligning"), serving(weights, port=PORT) as url:
            answer = ask(url, photograph)
    aligner = load_aligner(weights)
    dataset = open_dataset(dataset_uri)
    rows = [row for i in range(len(dataset.shards)) for row in dataset.read_shard(i)]
    panels = recovery_panel(recovery, model=model, albedo=albedo)

    assert made.manifest is not None
    alignment = aligner.align(photograph)
    if not alignment:
        raise DemoError("the aligner found no face in the photograph")
    overview = glance(photograph, panels, rows, draw(photograph, alignment, aligner.model))
    Image.fromarray(overview).save(out / "overview.jpg", quality=88)
    sections = [
        Section(
            "At a glance",
            "",
            [
                Figure(
                    "Photograph, recovered face, views, correspondences, alignment", overview, True
                )
            ],
        ),
        inverse_section(recovery, panels),
        views_section(rows, made.manifest.rows),
        correspondence_section(rows),
        training_section(rows, weights, trained.dev, start),
        alignment_section(photograph, aligner, alignment[0], answer),
        Section(
            "Timings",
            f"Seconds of each step on this machine ({cores} cores). The service's own timing of one request, in "
            f"milliseconds: {', '.join(f'{name} {value:.0f}' for name, value in answer['timing'].items())}.",
            table=Table(
                ("step", "seconds"),
                [(name, f"{value:.1f}") for name, value in clock.seconds.items()],
            ),
        ),
    ]
    report = out / "report.html"
    report.write_text(
        html(
            "Deep Face Feature: one photograph through the whole chain",
            "A photograph is turned into a 3D face, the face into many views with exact correspondence, the views into "
            "a descriptor, and the descriptor into landmarks, pose and shape of the photograph. Photograph: Eileen "
            "Collins, NASA, public domain.",
            sections,
        ),
        encoding="utf-8",
    )
    return report


def clear(out: Path) -> None:
    """Remove an earlier demo from ``out``. Raises DemoError, and removes nothing, when other files
    lie there.
    """
    if not out.exists():
        return
    foreign = sorted({path.name for path in out.iterdir()} - MADE) if out.is_dir() else [out.name]
    if foreign:
        raise DemoError(
            f"{out} holds {', '.join(foreign[:3])}, which no demo made: choose another folder"
        )
    shutil.rmtree(out)


def write_photograph(folder: Path) -> Bytes:
    """Lay scikit-image's astronaut with the project's landmarks into ``folder``; (512, 512, 3)
    RGB.
    """
    folder.mkdir(parents=True)
    image = np.asarray(data.astronaut(), dtype=np.uint8)
    Image.fromarray(image).save(folder / "astronaut.png")
    (folder / "astronaut.pts").write_bytes(_landmark_file())
    return image


def _landmark_file() -> bytes:
    return files("dff").joinpath("data/astronaut.pts").read_bytes()


def ask(url: str, photograph: Bytes) -> dict[str, Any]:
    """What the service answers for the photograph. Raises DemoError when it refuses."""
    buffer = io.BytesIO()
    Image.fromarray(photograph).save(buffer, "PNG")
    reply = httpx.post(
        f"{url}/v1/align", files={"image": ("astronaut.png", buffer.getvalue())}, timeout=120
    )
    if reply.status_code != httpx.codes.OK:
        raise DemoError(f"the service answered {reply.status_code}: {reply.text[:300]}")
    answer: dict[str, Any] = reply.json()
    return answer


def inverse_section(recovery: Recovery, panels: dict[str, Bytes]) -> Section:
    """Photo, mesh, albedo, light, rendering and residual."""
    return Section(
        "Inverse rendering",
        "Pose, identity, expression, albedo and light of the open head, from 68 landmarks and then from the pixels.",
        [Figure(caption, panels[name]) for name, caption in PANELS.items()],
        Table(
            ("quality", "value"),
            [(name, f"{value:.4f}") for name, value in recovery.quality.items()],
        ),
    )


def views_section(rows: list[ViewRow], total: int) -> Section:
    """Sheets of the photograph's views and of sampled faces."""
    own = [row for row in rows if row.photo_id]
    sampled = [row for row in rows if not row.photo_id]
    return Section(
        "Synthesised views",
        f"{total} views in Parquet shards. The recovered face, textured from the photograph, and faces sampled from "
        "the statistical model; yaw to ±95 degrees, with expressions, lights, cameras, backgrounds and sensors.",
        [
            Figure(
                "The photograph's face, with landmarks (hollow where hidden)",
                contact_sheet(own, landmarks=True),
                True,
            ),
            Figure(
                "Sampled faces", contact_sheet(sampled[:: max(1, len(sampled) // 30)][:30]), True
            ),
        ],
    )


def correspondence_section(rows: list[ViewRow]) -> Section:
    """Lines between two views of the photograph's face."""
    own = [row for row in rows if row.photo_id]
    a = own[0]
    b = _turned(own, 40.0)
    return Section(
        "Exact correspondence",
        "A row stores the triangle that every pixel shows; with camera and coefficients that is the exact surface "
        "point. The same points in two views:",
        [
            Figure(
                "Lines join the same point of the face",
                correspondence_picture(a, b, load_model()),
                True,
            )
        ],
    )


def training_section(
    rows: list[ViewRow], weights: Path, dev: Mapping[str, float], start: str
) -> Section:
    """Dev figures and a heat map of matches between two views."""
    loaded = weights_files.load(weights)
    own = [row for row in rows if row.photo_id]
    a = own[0]
    b = _turned(own, 30.0)
    crop_a, points = _network_crop(a)
    crop_b, _ = _network_crop(b)
    chosen = points[[36, 45, 30, 48, 8]]
    picture = match_picture(loaded.net, loaded.anchors, crop_a, crop_b, chosen)
    return Section(
        "The Deep Face Feature",
        "A unit vector for every pixel. Five points of the first view, and where the descriptor finds each in the "
        f"second (bright: likely). Trained on these views from {start or 'scratch'}; the figures are of identities "
        "that were not trained on.",
        [Figure("Matches of five points", picture, True)],
        Table(("held-out figure", "value"), [(name, f"{value:.3f}") for name, value in dev.items()])
        if dev
        else None,
    )


def _network_crop(row: ViewRow, size: int = 128) -> tuple[Bytes, np.ndarray]:
    """(size, size, 3) RGB about the view's face, and its (68, 2) landmarks in the crop's pixels."""
    box = Box.around(row.landmarks_3d).square(1.4)
    scale = size / box.width
    corner = np.array([box.x0, box.y0])
    image = Image.fromarray(row.pixels()).transform(
        (size, size),
        Image.Transform.EXTENT,
        (box.x0, box.y0, box.x1, box.y1),
        Image.Resampling.BILINEAR,
    )
    return np.asarray(image), np.clip((row.landmarks_3d - corner) * scale, 0, size - 1)


def glance(
    photograph: Bytes, panels: Mapping[str, Bytes], rows: list[ViewRow], aligned: Bytes
) -> Bytes:
    """(H, 1200, 3) RGB: the chain in four lines of pictures."""
    own = [row for row in rows if row.photo_id]
    sampled = [row for row in rows if not row.photo_id and row.view == 1]
    cut = _about_face()
    chain = [photograph[cut], panels["mesh"], panels["albedo"], panels["rendering"], aligned[cut]]
    top = np.hstack([np.asarray(Image.fromarray(image).resize((240, 240))) for image in chain])
    sheets = [contact_sheet(some[:10], columns=10, tile=117) for some in (own, sampled)]
    parts = [top, *(np.asarray(Image.fromarray(sheet).resize((1200, 120))) for sheet in sheets)]
    lines = correspondence_picture(own[0], _turned(own, 40.0), load_model())
    parts.append(
        np.asarray(Image.fromarray(lines).resize((1200, 1200 * lines.shape[0] // lines.shape[1])))
    )
    return np.vstack(parts)


def _turned(rows: list[ViewRow], degrees: float) -> ViewRow:
    """Of the views of one face, the one whose yaw differs from the first's by about so much."""
    return min(rows[1:], key=lambda row: abs(abs(row.pose[0] - rows[0].pose[0]) - degrees))


def _about_face() -> tuple[slice, slice]:
    """Rows and columns of the photograph about its face."""
    box = Box.around(parse_pts(_landmark_file())).square(1.9)
    return slice(int(max(box.y0, 0)), int(box.y1)), slice(int(max(box.x0, 0)), int(box.x1))


def alignment_section(
    photograph: Bytes, aligner: Aligner, face: Alignment, answer: dict[str, Any]
) -> Section:
    """The alignment after each iteration, and how far it is from the annotation."""
    truth = parse_pts(_landmark_file())
    served = answer["faces"][0]
    apart = np.abs(np.array(served["landmarks_2d"]) - face.landmarks_2d).max()
    if apart > 0.5:
        raise DemoError(f"the service's landmarks lie {apart:.2f} px from the library's")
    cut = _about_face()
    figures = []
    for number, iteration in enumerate(face.trace, start=1):
        image = photograph.copy()
        draw_landmarks(image, iteration.landmarks_2d, face.visibility)
        figures.append(
            Figure(
                f"Iteration {number}: residual {100 * iteration.residual:.1f} % of the face",
                image[cut],
            )
        )
    figures.append(
        Figure("The fitted mesh, landmarks and pose", draw(photograph, [face], aligner.model)[cut])
    )
    error, inner = (
        nme_box(face.landmarks_2d, truth),
        nme_box(face.landmarks_2d[INNER], truth[INNER]),
    )
    state = f"failed: {face.reason}" if face.failed else "accepted"
    return Section(
        "Alignment by the served aligner",
        "Answered over HTTP by Ray Serve, with the descriptor that was trained above.",
        figures,
        Table(
            ("figure", "value"),
            [
                ("state", state),
                ("confidence", f"{face.face_confidence:.2f}"),
                ("nme_box, 68 landmarks", f"{100 * error:.2f} %"),
                ("nme_box, inner 51 landmarks", f"{100 * inner:.2f} %"),
                (
                    "yaw, pitch, roll",
                    f"{face.pose.yaw:.1f}, {face.pose.pitch:.1f}, {face.pose.roll:.1f} degrees",
                ),
            ],
        ),
    )
