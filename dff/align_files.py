"""Align image files, one or a folder of thousands: batched, with every bad file named and none
stopping the rest.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from pydantic import TypeAdapter, ValidationError
from tqdm import tqdm

from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment
from dff.aligner.draw import draw
from dff.aligner.fitting.multi_image import PersonAlignment
from dff.face.arrays import Bytes
from dff.face.errors import BadPhoto, StorageError
from dff.face.geometry.camera import Box
from dff.face.model.morphable import MorphableModel
from dff.infra.images import decode

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
UNREAD = {
    ".heic",
    ".heif",
    ".avif",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
}  # images that people have, and no decoder here
DRAWINGS = (".png", ".jpg", ".jpeg")
MESHES = (".glb",)
BATCH = 32  # images that are decoded and aligned together

Boxes = Mapping[str, Sequence[Box]]


@dataclass(frozen=True)
class Aligned:
    """One file's answer: its alignments, or why there are none."""

    path: Path
    image: Bytes | None  # (H, W, 3) RGB; None when the file could not be read
    faces: tuple[Alignment, ...]
    error: str = ""

    def lines(self) -> list[str]:
        """For people, one line a face."""
        if self.error:
            return []
        if not self.faces:
            return [f"{self.path}: no face found"]
        return [f"{self.path}: {_line(face)}" for face in self.faces]


def _line(face: Alignment) -> str:
    where = f"box {face.box.x0:.0f},{face.box.y0:.0f},{face.box.x1:.0f},{face.box.y1:.0f}"
    if face.failed:
        return f"{where}: failed: {face.reason}"
    pose = face.pose
    return (
        f"{where}: yaw {pose.yaw:.1f} pitch {pose.pitch:.1f} roll {pose.roll:.1f} degrees, "
        f"{int((face.visibility > 0.5).sum())} of 68 landmarks visible, confidence {face.face_confidence:.2f}"
    )


def drawn(
    image: Bytes, faces: Sequence[Alignment], model: MorphableModel, suffix: str = ".png"
) -> bytes:
    """A file of the (H, W, 3) image with landmarks, mesh and axes of every face: JPEG by its
    ``suffix``, else PNG.
    """
    buffer = io.BytesIO()
    Image.fromarray(draw(image, faces, model)).save(
        buffer, "JPEG" if suffix.lower() in (".jpg", ".jpeg") else "PNG"
    )
    return buffer.getvalue()


def image_files(places: Iterable[Path]) -> list[Path]:
    """The image files that the places name, folders' in the order of names. Raises BadPhoto for a
    missing place.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            found += sorted(p for p in place.iterdir() if p.suffix.lower() in SUFFIXES)
        elif place.is_file():
            found.append(place)
        else:
            raise BadPhoto(f"{place} is neither a file nor a folder")
    if not found:
        raise BadPhoto(f"no image ({', '.join(sorted(SUFFIXES))}) in {', '.join(map(str, places))}")
    return found


def passed_over(places: Iterable[Path]) -> list[Path]:
    """Images in the folders among ``places`` that ``image_files`` leaves out because of their
    format.
    """
    return sorted(
        p
        for place in places
        if place.is_dir()
        for p in place.iterdir()
        if p.suffix.lower() in UNREAD
    )


def outputs(place: Path, files: Sequence[Path], kinds: Sequence[str]) -> dict[Path, Path]:
    """The file that is made of each image: ``place`` itself, named as one of ``kinds``, or files in
    the folder it is.

    Raises ValueError when one file would hold what several images give, when a name is of no such
    kind, or when an image itself would be overwritten.
    """
    if place.suffix.lower() in kinds and not place.is_dir():
        if len(files) > 1:
            raise ValueError(
                f"{place} is one file, and there are {len(files)} images: name a folder"
            )
        made = {files[0]: place}
    elif place.suffix and not place.is_dir():
        raise ValueError(f"{place} should end in {' or '.join(kinds)}, or be a folder")
    else:
        times = Counter(path.stem for path in files)
        made = {}
        for path in files:
            name = (
                path.stem
                if times[path.stem] == 1
                else "_".join(part for part in path.parts if part != path.anchor)
            )
            made[path] = (
                place / f"{name}{path.suffix if path.suffix.lower() in kinds else kinds[0]}"
            )
    spare(files, made.values())
    return made


def spare(inputs: Iterable[Path | None], places: Iterable[Path | None]) -> None:
    """Raises ValueError when a file that is read would be overwritten. None: no file."""
    originals = {path.resolve() for path in inputs if path}
    for path in places:
        if path and path.resolve() in originals:
            raise ValueError(f"{path} is one of the files that are read: name another place")


def read_boxes(path: Path) -> Boxes:
    """Boxes by image file name from ``{name: [[x0, y0, x1, y1], ...]}``. Raises ValueError naming
    what is wrong.
    """
    kind = TypeAdapter(dict[str, list[tuple[float, float, float, float]]])
    try:
        content = kind.validate_json(path.read_bytes())
        return {name: [Box(*corners) for corners in some] for name, some in content.items()}
    except (OSError, ValueError) as error:
        # pydantic's own words take several lines for each value that is wrong
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise ValueError(
            f"{path} is not a file of boxes {{name: [[x0, y0, x1, y1], ...]}}: {why}"
        ) from error


def align_files(
    aligner: Aligner, paths: Sequence[Path], *, boxes: Boxes | None = None, progress: bool = False
) -> Iterator[Aligned]:
    """Each file's alignments in the order of ``paths``. With ``boxes``, files without an entry are
    looked through.
    """
    with tqdm(total=len(paths), unit="image", disable=not progress) as bar:
        for begin in range(0, len(paths), BATCH):
            chunk = paths[begin : begin + BATCH]
            yield from _align_chunk(aligner, chunk, boxes or {})
            bar.update(len(chunk))


def _align_chunk(aligner: Aligner, paths: Sequence[Path], boxes: Boxes) -> list[Aligned]:
    images: dict[Path, Bytes] = {}
    out: dict[Path, Aligned] = {}
    for path in paths:
        try:
            images[path] = decode(path.read_bytes())
        except (BadPhoto, OSError) as error:
            out[path] = Aligned(path, None, (), str(error))
    try:
        faces = aligner.align_batch(list(images.values()), [boxes.get(p.name) for p in images])
        found = dict(zip(images, faces, strict=True))
        out |= {path: Aligned(path, images[path], tuple(some)) for path, some in found.items()}
    except (BadPhoto, ValueError) as error:
        # One bad image or box refuses a whole batch, so the batch is taken apart to name it.
        if len(images) == 1:
            (path,) = images
            out[path] = Aligned(path, images[path], (), str(error))
        else:
            out |= {p: _align_chunk(aligner, [p], boxes)[0] for p in images}
    return [out[path] for path in paths]


def align_person(
    aligner: Aligner, paths: Sequence[Path], *, boxes: Boxes | None = None
) -> tuple[PersonAlignment, list[str]]:
    """One identity for the images, all of one person, and what to tell people, one line an image.

    Of the boxes of an image the first counts. Raises BadPhoto for a file that can't be read, NoFace
    when no image can be used.
    """
    images = []
    for path in paths:
        try:
            images.append(decode(path.read_bytes()))
        except BadPhoto as error:
            raise BadPhoto(f"{path}: {error}") from error
    given = [next(iter((boxes or {}).get(path.name, ())), None) for path in paths]
    found = aligner.align_person(images, given)
    lines = [
        f"{path}: left out: {found.left_out[i]}" if face is None else f"{path}: {_line(face)}"
        for i, (path, face) in enumerate(zip(paths, found.faces, strict=True))
    ]
    return found, lines


def json_line(name: str, result: Aligned) -> str:
    """One image's answer as a line of JSON: its name, its alignments, and why there are none where
    it has no faces.
    """
    error = {"error": result.error} if result.error else {}
    return (
        json.dumps({"image": name, "faces": [face.to_json() for face in result.faces], **error})
        + "\n"
    )


def kept_lines(path: Path) -> set[str]:
    """The images that a file of ``json_line`` holds; what a killed run left of a last line is cut
    off.

    No file: none. Raises ValueError for a file of something else.
    """
    if not path.exists():
        return set()
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    try:
        names = {str(json.loads(line)["image"]) for line in whole.splitlines()}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} does not hold one alignment a line, so nothing can be added to it"
        ) from error
    if whole != data:
        path.write_bytes(whole)
    return names


def to_json(results: Iterable[Aligned]) -> dict[str, list[dict[str, Any]]]:
    """``{image's name as of names_of: [alignment, ...]}``: an unreadable file has an empty list."""
    every = list(results)
    names = names_of([result.path for result in every])
    return {
        name: [face.to_json() for face in one.faces] for name, one in zip(names, every, strict=True)
    }


def names_of(paths: Sequence[Path]) -> list[str]:
    """What answers call image files: their names, or the whole path where another folder has one of
    that name.
    """
    times = Counter(path.name for path in paths)
    return [path.name if times[path.name] == 1 else str(path) for path in paths]


def write_json(path: Path, content: object) -> None:
    """``write_file`` of ``content`` as JSON."""
    write_file(path, (json.dumps(content, indent=1) + "\n").encode())


def write_file(path: Path, data: bytes) -> None:
    """Write ``data``, making the folder when it is missing. Raises StorageError, which names the
    file.
    """
    _put(path, data, "wb")


def append_file(path: Path, data: bytes) -> None:
    """``write_file`` at the end of the file."""
    _put(path, data, "ab")


def _put(path: Path, data: bytes, mode: Literal["wb", "ab"]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open(mode) as file:
            file.write(data)
    except OSError as error:
        raise StorageError(f"can't write {path}: {error.strerror}") from error
