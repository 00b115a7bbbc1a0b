"""Bytes and errors of encodings of a view's ground truth, and of a person's textures.

python -m benchmarks.encodings DATASET [--views 60] [--photos FOLDER]
    [--write docs/experiments/encodings.md]

An error is the distance of the decoded surface point from that at the pixel's centre, in metres
times the view's pixels per metre there. Encodings without the triangle are given it here, so their
figures are lower bounds. Times are CPU times of this process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import cv2
import numba
import numpy as np
import pyarrow as pa
import typer
from rich.console import Console
from rich.table import Table

from dff.face.arrays import Bytes, Floats, Ints
from dff.face.errors import DffError
from dff.face.geometry.camera import Pinhole
from dff.face.io.assets import load_model
from dff.face.model.morphable import MorphableModel
from dff.infra.datasets.dataset import Dataset, open_dataset
from dff.infra.datasets.ground_truth import Maps, compute_maps
from dff.infra.datasets.shards import ViewRow
from dff.infra.storage import open_storage
from dff.pipeline.job.work import Subject
from dff.pipeline.recovery.photos import list_photos
from dff.pipeline.subjects.subject_file import IMAGE_QUALITY
from dff.pipeline.synthesis import Options, build_person

BEGIN, END = "<!-- {} -->", "<!-- end of {} -->"
IN_USE = "triangle ids, 16 bit, zstd 3"


@dataclass(frozen=True, eq=False)
class View:
    """A view with the inputs of all encodings, and the float64 truth."""

    row: ViewRow
    maps: Maps
    model: MorphableModel
    cam: Floats  # (V, 3) metres
    triangle: Ints  # (N,) of the seen pixels, row by row
    truth: Floats  # (N, 3) metres in cam: the surface points that they show
    px_per_metre: Floats  # (N,)

    @staticmethod
    def of(row: ViewRow, model: MorphableModel) -> View:
        maps = compute_maps(row, model)
        cam = row.cam_from_head.apply(model.vertices(row.coefficients(model)))
        truth = maps.points.of(cam, model.faces)
        scale = (
            row.camera.focal / truth[:, 2] if isinstance(row.camera, Pinhole) else row.camera.scale
        )
        return View(
            row,
            maps,
            model,
            cam,
            maps.triangle[maps.model],
            truth,
            np.broadcast_to(scale, len(truth)),
        )

    @property
    def corners(self) -> Floats:
        """(N, 3, 3) metres in cam of the seen pixels' triangles."""
        return np.asarray(self.cam[self.model.faces[self.triangle]])

    def from_coordinates(self, decoded: Floats, corners: Floats) -> Floats:
        """(N, 3) points in cam of (N, C) coordinates, linear on (N, 3, C) ``corners``."""
        a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
        d = decoded - corners[:, 0]
        aa, ab, bb = (a * a).sum(1), (a * b).sum(1), (b * b).sum(1)
        ad, bd = (a * d).sum(1), (b * d).sum(1)
        det = np.maximum(aa * bb - ab * ab, 1e-30)
        u, v = (bb * ad - ab * bd) / det, (aa * bd - ab * ad) / det
        places = self.corners
        across, down = places[:, 1] - places[:, 0], places[:, 2] - places[:, 0]
        return np.asarray(places[:, 0] + u[:, None] * across + v[:, None] * down)

    def apart(self, points: Floats) -> Floats:
        """(N,) px between (N, 3) points in cam and those that the pixels show."""
        return np.asarray(np.linalg.norm(points - self.truth, axis=1) * self.px_per_metre)

    def off_centre(self) -> Floats:
        """(N,) px between pixel centres and projections of the surface points that they show."""
        y, x = np.nonzero(self.maps.model)
        px = self.row.camera.px_from_cam(self.truth)
        return np.asarray(np.linalg.norm(px - np.stack([x, y], axis=1) - 0.5, axis=1))


@dataclass(frozen=True)
class Encoding:
    """A way to store a view's surface points: bytes, and the (N,) errors in px after decoding."""

    name: str
    encode: Callable[[View], bytes]
    error: Callable[[View, bytes], Floats]


def zstd(level: int) -> Callable[[Any], bytes]:
    codec = pa.Codec("zstd", compression_level=level)
    return lambda values: codec.compress(np.ascontiguousarray(values).tobytes(), asbytes=True)


def unzstd(data: bytes, dtype: str, shape: tuple[int, ...]) -> Any:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(pa.Codec("zstd").decompress(data, size, asbytes=True), dtype).reshape(
        shape
    )


def exact(view: View, data: bytes) -> Floats:
    """Errors of triangle ids: the surface point follows exactly, up to the grid of visibility."""
    return view.off_centre()


def ids(view: View) -> Ints:
    return view.row.triangle_ids.astype("<u2")


def packed_ids(level: int, view: View) -> bytes:
    return zstd(level)(ids(view))


@numba.njit(cache=True)
def copied(values):  # type: ignore[no-untyped-def]
    """Whether ids equal the left neighbour's, which other neighbour's (0: none), and the rest."""
    height, width = values.shape
    flag = np.zeros(height * width, dtype=np.uint8)
    way = np.empty(height * width, dtype=np.uint8)
    rest = np.empty(height * width, dtype=np.int32)
    ways = rests = 0
    for r in range(height):
        for c in range(width):
            value = values[r, c]
            left = values[r, c - 1] if c > 0 else -1
            up = values[r - 1, c] if r > 0 else -1
            if value == left:
                continue
            flag[r * width + c] = 1
            if value == up:
                way[ways] = 1
            elif r > 0 and c + 1 < width and value == values[r - 1, c + 1]:
                way[ways] = 2
            elif r > 0 and c > 0 and value == values[r - 1, c - 1]:
                way[ways] = 3
            else:
                nearer = abs(value - left) <= abs(value - up)
                way[ways] = 4 if nearer else 5
                step = value - left if nearer else value - up
                rest[rests] = (step << 1) ^ (step >> 31)
                rests += 1
            ways += 1
    return flag, way[:ways], rest[:rests]


def predicted(view: View) -> bytes:
    flag, way, rest = copied(view.row.triangle_ids)
    planes = rest.astype("<u2").view(np.uint8).reshape(-1, 2).T
    return b"".join(zstd(3)(part) for part in (np.packbits(flag), way, planes))


def by_bytes(values: Ints) -> Ints:
    return np.ascontiguousarray(values.view(np.uint8).reshape(-1, values.dtype.itemsize).T)


def with_weights(bits: int) -> Encoding:
    """Ids, and two of the three barycentric weights of each pixel."""
    dtype, top = f"<u{bits // 8}", 2**bits - 1

    def encode(view: View) -> bytes:
        weights = np.rint(view.maps.barycentric[..., :2] * top).astype(dtype)
        return zstd(3)(ids(view)) + zstd(3)(weights)

    def error(view: View, data: bytes) -> Floats:
        two = np.rint(view.maps.barycentric[..., :2] * top)[view.maps.model] / top
        weights = np.concatenate([two, 1.0 - two.sum(1, keepdims=True)], axis=1)
        return view.apart(np.einsum("nk,nkc->nc", weights, view.corners))

    return Encoding(f"{IN_USE}; and barycentric weights, {bits} bit", encode, error)


def coordinates(
    name: str,
    values: Callable[[View], tuple[Floats, Floats, Ints]],
    encode: Callable[[Floats], bytes],
    decode: Callable[[bytes, tuple[int, ...]], Floats],
) -> Encoding:
    """A map of surface coordinates.

    ``values``: the map, the coordinates at vertices, and their triangles.
    """

    def error(view: View, data: bytes) -> Floats:
        field, at_vertices, faces = values(view)
        decoded = decode(data, field.shape)[view.maps.model]
        return view.apart(
            view.from_coordinates(decoded, at_vertices[faces[view.triangle]].astype(np.float64))
        )

    return Encoding(name, lambda view: encode(values(view)[0]), error)


def of_rest(view: View) -> tuple[Floats, Floats, Ints]:
    return view.maps.rest, view.model.template, view.model.faces


def of_rest_in_box(view: View) -> tuple[Floats, Floats, Ints]:
    """``of_rest`` as 0..1 of the template's bounding box."""
    low, high = view.model.template.min(0), view.model.template.max(0)
    return (
        (view.maps.rest - low) / (high - low),
        (view.model.template - low) / (high - low),
        view.model.faces,
    )


def of_uv(view: View) -> tuple[Floats, Floats, Ints]:
    return view.maps.uv, view.model.uv, view.model.uv_faces


def as_png(
    bits: int,
) -> tuple[Callable[[Floats], bytes], Callable[[bytes, tuple[int, ...]], Floats]]:
    dtype, top = {8: (np.uint8, 255), 16: (np.uint16, 65535)}[bits]

    def encode(field: Floats) -> bytes:
        levels = np.zeros((*field.shape[:2], 3), dtype)
        levels[..., : field.shape[2]] = np.rint(np.clip(field, 0.0, 1.0) * top)
        return cv2.imencode(".png", levels)[1].tobytes()

    def decode(data: bytes, shape: tuple[int, ...]) -> Floats:
        levels = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED))
        return np.asarray(levels[..., : shape[2]].astype(np.float64) / top)

    return encode, decode


def as_floats(
    dtype: str,
) -> tuple[Callable[[Floats], bytes], Callable[[bytes, tuple[int, ...]], Floats]]:
    return (
        lambda field: zstd(3)(field.astype(dtype)),
        lambda data, shape: unzstd(data, dtype, shape).astype(np.float64),
    )


def depth(
    name: str, encode: Callable[[Floats], bytes], decode: Callable[[bytes, tuple[int, ...]], Floats]
) -> Encoding:
    """Depth alone: the point at that depth on the pixel's ray."""

    def error(view: View, data: bytes) -> Floats:
        found = decode(data, view.maps.depth.shape)[view.maps.model]
        if isinstance(view.row.camera, Pinhole):
            return view.apart(view.truth * (found / view.truth[:, 2])[:, None])
        return view.apart(np.concatenate([view.truth[:, :2], found[:, None]], axis=1))

    return Encoding(name, lambda view: encode(view.maps.depth), error)


def encodings() -> list[Encoding]:
    """The compared encodings."""
    return [
        Encoding("triangle ids, 16 bit, uncompressed", lambda v: ids(v).tobytes(), exact),
        *(
            Encoding(f"triangle ids, 16 bit, zstd {level}", partial(packed_ids, level), exact)
            for level in (1, 3, 9, 19)
        ),
        Encoding("triangle ids, 32 bit, zstd 3", lambda v: zstd(3)(v.row.triangle_ids), exact),
        Encoding(
            "triangle ids, 16 bit, byte planes, zstd 3", lambda v: zstd(3)(by_bytes(ids(v))), exact
        ),
        Encoding(
            "triangle ids, difference to the left neighbour, zstd 3",
            lambda v: zstd(3)(np.diff(ids(v).astype(np.int32), axis=1, prepend=0).astype("<u2")),
            exact,
        ),
        Encoding(
            "triangle ids, 16 bit, PNG", lambda v: cv2.imencode(".png", ids(v))[1].tobytes(), exact
        ),
        Encoding(
            "triangle ids, neighbour or difference to it, zstd 3",
            predicted,
            exact,
        ),
        with_weights(8),
        with_weights(16),
        coordinates("point on the template, float32, zstd 3", of_rest, *as_floats("<f4")),
        coordinates("point on the template, float16, zstd 3", of_rest, *as_floats("<f2")),
        coordinates("point on the template, 16 bit PNG", of_rest_in_box, *as_png(16)),
        coordinates("point on the template, 8 bit PNG", of_rest_in_box, *as_png(8)),
        coordinates("uv, float16, zstd 3", of_uv, *as_floats("<f2")),
        coordinates("uv, 16 bit PNG", of_uv, *as_png(16)),
        coordinates("uv, 8 bit PNG", of_uv, *as_png(8)),
        depth("depth, float32, zstd 3", *as_floats("<f4")),
        depth("depth, float16, zstd 3", *as_floats("<f2")),
    ]


def measured(encoding: Encoding, views: Sequence[View]) -> tuple[float, float, float, float]:
    """Bytes of a view, 99th percentile and maximum of the error in px, milliseconds of encoding."""
    encoding.encode(views[0])
    start = time.process_time()
    stored = [encoding.encode(view) for view in views]
    spent = (time.process_time() - start) / len(views) * 1e3
    away = np.concatenate(
        [encoding.error(view, data) for view, data in zip(views, stored, strict=True)]
    )
    return (
        float(np.mean([len(data) for data in stored])),
        float(np.percentile(away, 99)),
        float(away.max()),
        spent,
    )


def table_of_maps(views: Sequence[View]) -> list[list[str]]:
    out = [
        [
            "encoding",
            "bytes per view",
            "error, 99 % of pixels (px)",
            "error, worst (px)",
            "ms to encode",
        ]
    ]
    for encoding in encodings():
        size, most, worst, spent = measured(encoding, views)
        name = f"**{encoding.name}** (in use)" if encoding.name == IN_USE else encoding.name
        out.append([name, f"{size:,.0f}", _px(most), _px(worst), f"{spent:.1f}"])
    return out


def _px(value: float) -> str:
    return f"{value:.4f}" if value < 0.1 else f"{value:.2f}"


def table_of_columns(dataset: Dataset, shards: Sequence[int]) -> list[list[str]]:
    """Bytes of a view by part."""
    rows = [row for index in shards for row in dataset.read_shard(index)]
    whole = sum(dataset.shards[index].bytes for index in shards)
    people = len({row.identity_id for row in rows})
    image = sum(len(row.image) for row in rows)
    person = sum(len(row.person or b"") for row in rows)
    triangles = sum(len(zstd(3)(row.triangle_ids.astype("<u2"))) for row in rows)
    parts = {
        "triangle ids": triangles,
        "image (JPEG)": image,
        f"person ({person / people:,.0f} bytes, {len(rows) / people:.0f} views each)": person,
        "other columns (camera, coefficients, light, landmarks, recipe, file structure)": whole
        - triangles
        - image
        - person,
        "**total**": whole,
    }
    return [
        ["part", "bytes per view"],
        *([name, f"{size / len(rows):,.0f}"] for name, size in parts.items()),
    ]


def how_to_jpeg(quality: int, whole_colours: bool) -> list[int]:
    sampling = (
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
        if whole_colours
        else cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420
    )
    return [
        cv2.IMWRITE_JPEG_QUALITY,
        quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        sampling,
        cv2.IMWRITE_JPEG_OPTIMIZE,
        1,
    ]


def table_of_pictures(pictures: Sequence[Bytes]) -> list[list[str]]:
    """Encodings of textures before they were stored: (S, S, 3) RGB."""
    tried: dict[str, tuple[str, list[int]]] = {
        "PNG": (".png", []),
        "WebP, lossless": (".webp", [cv2.IMWRITE_WEBP_QUALITY, 101]),
        **{
            f"JPEG {q}, colours at full resolution": (".jpg", how_to_jpeg(q, True))
            for q in (98, 95, 90, 85)
        },
        **{
            f"JPEG {q}, colours at half resolution": (".jpg", how_to_jpeg(q, False))
            for q in (95, 90)
        },
        **{f"WebP {q}": (".webp", [cv2.IMWRITE_WEBP_QUALITY, q]) for q in (95, 90)},
    }
    used = f"JPEG {IMAGE_QUALITY['texture']}, colours at full resolution"
    out = [
        [
            "encoding",
            "bytes",
            "error, root mean square (of 255)",
            "99.9 % of texels (of 255)",
            "ms to write and read",
        ]
    ]
    for name, (suffix, how) in tried.items():
        size, square, most, start = 0, 0.0, 0.0, time.process_time()
        for picture in pictures:
            data = cv2.imencode(suffix, picture[..., ::-1], how)[1]
            back = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB))
            away = np.abs(back.astype(int) - picture)
            size, square = size + len(data), square + float((away**2).mean())
            most += float(np.percentile(away, 99.9))
        count = len(pictures)
        spent = (time.process_time() - start) / count * 1e3
        shown = f"**{name}** (in use)" if name == used else name
        out.append(
            [
                shown,
                f"{size / count:,.0f}",
                f"{(square / count) ** 0.5:.2f}",
                f"{most / count:.0f}",
                f"{spent:.0f}",
            ]
        )
    return out


def textures(photos: Path | None, count: int) -> list[Bytes]:
    """(S, S, 3) RGB textures as they were before storing: of photos, or of sampled faces."""
    subjects = [Subject(f"sampled-{i:06d}", None) for i in range(count)]
    storage = None
    if photos is not None:
        storage = open_storage(str(photos))
        found = list_photos(storage)
        subjects = [Subject(ref.id, ref) for ref in found[:: max(len(found) // count, 1)][:count]]
    out = []
    for subject in subjects:
        try:
            person = build_person(subject, storage=storage, seed=0, options=Options())
        except DffError:
            continue
        out.append(np.rint(np.clip(person.texture[..., :3], 0.0, 1.0) * 255.0).astype(np.uint8))
    return out


def markdown(table: list[list[str]]) -> str:
    head, *body = table
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(line)} |" for line in body)])


def written(text: str, name: str, content: str) -> str:
    """``text`` with the content between the marks of ``name`` replaced.

    Raises ValueError without marks.
    """
    begin, end = BEGIN.format(name), END.format(name)
    before, after = text.index(begin) + len(begin), text.index(end)
    return f"{text[:before]}\n{content}\n{text[after:]}"


def main(
    dataset: Annotated[str, typer.Argument(help="A finished dataset of 16-bit ids.")],
    views: int = 60,
    photos: Annotated[
        Path | None, typer.Option(help="Photos whose textures are tried; without, sampled ones.")
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="Markdown file whose marked tables are replaced.")
    ] = None,
) -> None:
    """Measure and show."""
    found = open_dataset(dataset)
    rows: list[ViewRow] = []
    shards = np.unique(np.linspace(0, len(found.shards) - 1, 6).astype(int)).tolist()
    for index in shards:
        here = found.read_shard(index)
        rows += here[:: max(len(here) * len(shards) // views, 1)]
    model = load_model(rows[0].model)
    tables = {
        "maps": table_of_maps([View.of(row, model) for row in rows[:views]]),
        "row": table_of_columns(found, shards),
        "textures": table_of_pictures(textures(photos, 12)),
    }
    console = Console()
    for name, table in tables.items():
        shown = Table(*table[0], title=name)
        for line in table[1:]:
            shown.add_row(*line)
        console.print(shown)
    if write is not None:
        text = write.read_text(encoding="utf-8")
        for name, table in tables.items():
            text = written(text, name, markdown(table))
        write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
