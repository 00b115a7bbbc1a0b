"""Realism of a dataset's views, and whether the views of a photo retain its identity.

    python -m benchmarks.realism DATASET PHOTOS [--json FIGURES] [--sheet PICTURE]

PHOTOS holds the photos that the dataset was made from, and may hold others. Chance is printed
beside each figure, and so are controls: photos against photos (no difference), photos against
slightly altered photos (a known difference), and crops that show only the landmarks' positions.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from dff.face.arrays import Bytes
from dff.face.errors import BadLandmarks, BadPhoto
from dff.face.io.assets import load_albedo, load_model
from dff.face.model.landmarks import BELOW_BROWS
from dff.face.texture.crop import square_crop
from dff.infra.datasets.dataset import Dataset, open_dataset
from dff.infra.datasets.shards import ViewRow
from dff.infra.photos.images import decode
from dff.infra.storage import LocalStorage
from dff.pipeline.inspection import identity_retention, realism
from dff.pipeline.inspection.realism import CONFIG, Portrait, TwoSampleTest
from dff.pipeline.recovery.inverse import build_tables
from dff.pipeline.recovery.landmark_fit import fit_landmarks
from dff.pipeline.recovery.photos import Photo, list_photos, read_photo
from dff.pipeline.scene.camera_sensor import apply_sensor, encode_jpeg, sample_sensor

YAWS = ((0.0, 30.0), (30.0, 60.0), (60.0, 180.0))
REPEATS = 4
TURNED = 20.0  # degrees from the photo's pose
CANDIDATES = 3000  # views of a mode, to be matched with photos
PEOPLE = 200  # people whose identity retention is measured
console = Console()

Figures = dict[str, dict[str, Any]]
"""Fields of a test's result, by what was measured."""


def read_photos(folder: Path) -> dict[str, Photo]:
    storage, out = LocalStorage(folder), {}
    for ref in list_photos(storage):
        try:
            out[ref.id] = read_photo(storage, ref)
        except (BadPhoto, BadLandmarks):
            continue
    return out


def get_mode(row: ViewRow) -> str:
    """The mode of a view: "sampled", or how a photo's view was made."""
    return row.mode if row.photo_id else "sampled"


def turn_between(a: ViewRow, b: ViewRow) -> float:
    """Degrees between the poses of two views."""
    between = a.cam_from_head.rotation @ b.cam_from_head.rotation.T
    return float(np.rad2deg(np.arccos(np.clip((np.trace(between) - 1.0) / 2.0, -1.0, 1.0))))


def has_bare_face(row: ViewRow) -> bool:
    """Whether no accessory is in front of the face."""
    return not {"hand", "object", "cover", "glasses", "hat"} & set(
        json.loads(row.recipe).get("worn", ())
    )


def build_portrait(row: ViewRow) -> Portrait:
    bounds = (0.0, 0.0, float(row.width), float(row.height))
    return Portrait(
        row.photo_id or row.identity_id, row.pixels(), row.landmarks_2d.astype(float), bounds
    )


def views(
    dataset: Dataset, rng: np.random.Generator
) -> tuple[dict[str, list[Portrait]], dict[str, list[ViewRow]]]:
    """Portraits of views by mode, to be matched with photos, and the rows of photos' people."""
    portraits: dict[str, list[Portrait]] = defaultdict(list)
    of_photo: dict[str, list[ViewRow]] = {}
    room = CANDIDATES // max(len(dataset.shards), 1) + 1
    for index in range(len(dataset.shards)):
        by_mode: dict[str, list[ViewRow]] = defaultdict(list)
        own: dict[str, ViewRow] = {}
        for row in dataset.read_shard(index):
            if row.photo_id and (row.photo_id in of_photo or len(of_photo) < PEOPLE):
                of_photo.setdefault(row.photo_id, []).append(row)
            # The first view of a photo is the photo's own scene; few photos are profiles.
            if not (row.photo_id and row.view == 0) and abs(row.pose[0]) < 50.0:
                by_mode[get_mode(row)].append(row)
                if row.mode == "profile" and turn_between(row, own[row.photo_id]) > TURNED:
                    by_mode[f"profile, turned over {TURNED:.0f}°"].append(row)
            elif row.photo_id and row.view == 0:
                own[row.photo_id] = row
        for mode, some in by_mode.items():
            portraits[mode] += [build_portrait(some[i]) for i in rng.permutation(len(some))[:room]]
    return portraits, of_photo


def crops(
    portraits: Sequence[Portrait], frame: float, rng: np.random.Generator
) -> tuple[Bytes, np.ndarray]:
    found = [realism.align_crop(p, frame, rng=rng) for p in portraits]
    return np.stack([a.pixels for a in found]), np.array([a.inside for a in found])


def compare_samples(
    real: Sequence[Portrait],
    made: Sequence[Portrait],
    frame: float,
    seed: int,
    change: Callable[[Bytes], Bytes] = lambda pictures: pictures,
    only_inside: bool = False,
) -> TwoSampleTest:
    rng = np.random.default_rng(seed)
    (a, a_inside), (b, b_inside) = crops(real, frame, rng), crops(made, frame, rng)
    both = a_inside & b_inside if only_inside else np.ones(len(a), bool)
    a, b = change(a[both]), change(b[both])
    people = [p.person for p, keep in zip(real, both, strict=True) if keep]
    people += [p.person for p, keep in zip(made, both, strict=True) if keep]
    labels = np.arange(len(people)) >= len(a)
    return realism.run_two_sample_test(np.concatenate([a, b]), labels, people, seed=seed)


def average(found: Sequence[TwoSampleTest]) -> TwoSampleTest:
    """The average of repetitions with other folds and frames; the interval stays that of one."""
    accuracy, low, high = np.mean([(f.accuracy, f.low, f.high) for f in found], axis=0).tolist()
    return replace(found[0], accuracy=accuracy, low=low, high=high)


def dots(portrait: Portrait) -> Portrait:
    """The inner landmarks alone, as black dots on grey."""
    out = np.full_like(portrait.pixels, realism.GREY)
    for x, y in np.round(portrait.landmarks[BELOW_BROWS] * 16 - 8).astype(int).tolist():
        cv2.circle(out, (x, y), 16, (0, 0, 0), -1, cv2.LINE_AA, 4)
    return replace(portrait, pixels=out)


def refitted(portrait: Portrait) -> Portrait:
    """The portrait with landmarks fitted by the model instead of marked by a person."""
    fit_model = build_tables(load_model(), load_albedo()).fit_model
    return replace(
        portrait,
        landmarks=fit_model.project(fit_landmarks(portrait.landmarks, fit_model, "2d"), "2d"),
    )


def smoothed(portrait: Portrait) -> Portrait:
    """The portrait without fine detail, like a poor texture."""
    out = cv2.bilateralFilter(portrait.pixels, 9, 60.0, 4.0)
    return replace(portrait, pixels=out)


def measure_realism(
    dataset: Dataset, photos: dict[str, Photo], pairs: int, seed: int, sheet: Path | None
) -> tuple[Figures, dict[str, list[ViewRow]]]:
    rng = np.random.default_rng(seed)
    portraits, of_photo = views(dataset, rng)
    size = next(iter(portraits.values()))[0].pixels.shape[0]
    seen = [realism.reframe_photo(photo, photo.id, size=size, rng=rng) for photo in photos.values()]
    real = [portrait for portrait in seen if portrait is not None]
    shapes = np.array([realism.normalise_landmarks(portrait) for portrait in real])
    table = Table(
        "views",
        "crop",
        "accuracy",
        "95 %",
        "pictures",
        "people",
        title=f"{len(real)} photos; chance 50 %",
    )
    figures: Figures = {}
    pictures: list[Bytes] = []

    def report(views: str, crop: str, found: list[TwoSampleTest]) -> None:
        one = average(found)
        figures[f"{views}, {crop}"] = asdict(one)
        span = f"{one.low:.1%} to {one.high:.1%}"
        table.add_row(views, crop, f"{one.accuracy:.1%}", span, str(one.pictures), str(one.people))

    for mode, pool in sorted(portraits.items()):
        i, j = realism.match_shapes(
            shapes, np.array([realism.normalise_landmarks(p) for p in pool])
        )
        chosen = np.sort(rng.permutation(len(i))[:pairs])
        if len(chosen) < 60:
            console.print(f"{mode}: only {len(i)} views meet a photo like them; left out")
            continue
        a, b = [real[k] for k in i[chosen]], [pool[k] for k in j[chosen]]
        marks = [dots(p) for p in a], [dots(p) for p in b]
        tries = [seed + k for k in range(REPEATS)]
        report(
            mode,
            "face",
            [compare_samples(a, b, CONFIG.face_frame, k, realism.mask_oval) for k in tries],
        )
        report(
            mode,
            "whole",
            [compare_samples(a, b, CONFIG.whole_frame, k, only_inside=True) for k in tries],
        )
        report(
            mode, "landmarks alone", [compare_samples(*marks, CONFIG.face_frame, k) for k in tries]
        )
        for frame in (CONFIG.face_frame, CONFIG.whole_frame):
            shown = [crops(side[:16], frame, np.random.default_rng(seed))[0] for side in (a, b)]
            shown = [
                realism.mask_oval(some) if frame == CONFIG.face_frame else some for some in shown
            ]
            pictures += [np.concatenate(list(some), axis=1) for some in shown]
    table.add_section()
    controls: dict[str, list[TwoSampleTest]] = defaultdict(list)
    for k in range(REPEATS):
        drawn = rng.permutation(len(real))
        half = min(pairs, len(real) // 2)
        a, b = [real[i] for i in drawn[:half]], [real[i] for i in drawn[half : 2 * half]]
        changes = {
            "other photos": b,
            "smoothed photos": list(map(smoothed, b)),
            "framed by a fit": list(map(refitted, b)),
        }
        for name, other in changes.items():
            controls[name].append(
                compare_samples(a, other, CONFIG.face_frame, seed + k, realism.mask_oval)
            )
    for name, found in controls.items():
        report(f"control: {name}", "face", found)
    console.print(table)
    if sheet is not None and pictures:
        width = max(p.shape[1] for p in pictures)
        padded = [
            np.pad(p, ((0, 4), (0, width - p.shape[1]), (0, 0)), constant_values=255)
            for p in pictures
        ]
        cv2.imwrite(str(sheet), np.concatenate(padded)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    return figures, of_photo


def cut_crop(photo: Photo, size: int) -> Bytes:
    """The crop of inverse rendering, which has the pixels of view 0 of the photo's person."""
    fit_model = build_tables(load_model(), load_albedo()).fit_model
    found = fit_model.project(fit_landmarks(photo.landmarks, fit_model, photo.scheme), photo.scheme)
    return square_crop(photo.pixels, found, size).pixels


def measure_retention(
    of_photo: dict[str, list[ViewRow]], photos: dict[str, Photo], seed: int
) -> Figures:
    rng = np.random.default_rng(seed)
    model = load_model()
    frontal = identity_retention.FrontalMap.build(model)
    names = [name for name in sorted(of_photo) if name in photos and of_photo[name][0].view == 0]
    gallery, twice = [], []
    textures: dict[str, list[identity_retention.FrontalTexture]] = defaultdict(list)
    whose: dict[str, list[int]] = defaultdict(list)
    for person, name in enumerate(names):
        first, *others = of_photo[name]
        crop = cut_crop(photos[name], first.width)
        gallery.append(identity_retention.extract_frontal_texture(crop, first, model, frontal))
        sensor = sample_sensor(rng=rng)
        again = decode(
            encode_jpeg(apply_sensor(crop.astype(np.float32) / 255.0, sensor), sensor.quality)
        )
        twice.append(identity_retention.extract_frontal_texture(again, first, model, frontal))
        for row in others:
            away = abs(row.pose[0])
            span = next(f"yaw {low:.0f} to {high:.0f}" for low, high in YAWS if low <= away < high)
            texture = identity_retention.extract_frontal_texture(row.pixels(), row, model, frontal)
            keys = [row.mode, f"{row.mode}, {span}"]
            if row.mode == "rerender" and has_bare_face(row):
                keys.append("rerender, face without accessories")
            for key in keys:
                textures[key].append(texture)
                whose[key].append(person)
    table = Table(
        "views",
        "same person",
        "95 %",
        "views",
        title=f"{len(names)} people; chance {1 / len(names):.1%}",
    )
    figures: Figures = {}
    found = identity_retention.measure_identity_retention(
        twice, range(len(names)), gallery, seed=seed
    )
    rows = [("bound: the photo through another sensor", found)]
    rows += [
        (
            key,
            identity_retention.measure_identity_retention(
                textures[key], whose[key], gallery, seed=seed
            ),
        )
        for key in sorted(textures)
    ]
    for key, one in rows:
        figures[key] = asdict(one)
        table.add_row(key, f"{one.rate:.1%}", f"{one.low:.1%} to {one.high:.1%}", str(one.views))
    console.print(table)
    return figures


def main(
    dataset: str,
    photos: Path,
    json_out: Annotated[Path | None, typer.Option("--json")] = None,
    sheet: Annotated[Path | None, typer.Option()] = None,
    pairs: Annotated[
        int,
        typer.Option(
            help="Views of a mode, and photos, at most: figures compare at equal numbers."
        ),
    ] = 200,
    seed: int = 0,
) -> None:
    """Measure and show."""
    start = time.process_time()
    given = read_photos(photos)
    data = open_dataset(dataset)
    apart, of_photo = measure_realism(data, given, pairs, seed, sheet)
    same = measure_retention(of_photo, given, seed) if of_photo else {}
    console.print(f"{time.process_time() - start:.0f} s of CPU time")
    if json_out is not None:
        json_out.write_text(
            json.dumps({"two-sample test": apart, "identity retention": same}, indent=1)
        )


if __name__ == "__main__":
    typer.run(main)
