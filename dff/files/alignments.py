"""Align image files, one or a folder of thousands, in batches; a bad file is named and stops none.

The results go to files: JSON or JSON lines, drawings, meshes.
"""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from pydantic import TypeAdapter, ValidationError

from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment, PersonAlignment
from dff.aligner.confidence import SURE_FROM
from dff.aligner.cutouts import crop_face, mask_faces
from dff.aligner.draw import draw
from dff.aligner.face_description import FaceDescriber
from dff.aligner.found_faces import describe_missing_face
from dff.aligner.image_checks import check_box, check_image
from dff.aligner.intrinsics import Intrinsics
from dff.aligner.mesh_file import encode_mesh
from dff.aligner.texture import FaceTexture, texture_face, texture_person
from dff.face.arrays import Array, Bytes, UInt8
from dff.face.errors import BadPhoto
from dff.face.geometry.camera import Box
from dff.face.model.morphable import MorphableModel
from dff.files.images import unique_names
from dff.files.outputs import write_json
from dff.files.photo_bar import PhotoBar
from dff.files.table import FaceTable
from dff.infra.files import append_file, write_file
from dff.infra.photos.images import DecodedImage, decode_image
from dff.infra.printing import counted

if TYPE_CHECKING:
    from dff.client import Client

DRAWINGS = (".png", ".jpg", ".jpeg")
PICTURES = (".png",)  # of masks and crops
CROP_SIZE = 256  # pixels of the side of a face's crop
MISSING = "neither a file nor a folder"
BATCH = 32  # images that are decoded and aligned together
# of their pixels, after which no further image is added: a telephone's photos are aligned alone,
# since it takes long to find their faces, and nothing is answered meanwhile
BATCH_BYTES = 36_000_000

Boxes = Mapping[Path, Sequence[Box]]  # by image


@dataclass(frozen=True)
class ImageResult:
    """The alignments of one image file, or why there are none."""

    path: Path
    image: UInt8[Array, "height width 3"] | None  # RGB; None when the file could not be read
    faces: tuple[Alignment, ...]
    error: str = ""
    warning: str = ""  # what is wrong with the file although it could be read
    camera: Intrinsics | None = None  # None where no image was read
    missing: str = ""  # why the aligner found no face, where it tells

    def lines(self) -> list[str]:
        """A line of text for each face."""
        if self.error:
            return []
        if not self.faces:
            return [f"{self.path}: {self.missing or 'no face found'}"]
        return [f"{self.path}: {describe_face(face)}" for face in self.faces]

    def to_json(self, describer: FaceDescriber) -> list[dict[str, Any]] | dict[str, str]:
        """The alignments as plain lists and numbers, or the error."""
        return {"error": self.error} if self.error else self.describe_faces(describer)

    def describe_faces(self, describer: FaceDescriber) -> list[dict[str, Any]]:
        """The alignments as plain lists and numbers."""
        if self.camera is None:
            return []
        return [describer.describe(face, self.camera) for face in self.faces]

    def to_json_line(self, name: str, describer: FaceDescriber) -> str:
        """A line of JSON: the image's ``name``, its alignments, and the error if there is one."""
        error = {"error": self.error} if self.error else {}
        faces = self.describe_faces(describer)
        return json.dumps({"image": name, "faces": faces, **error}) + "\n"


@dataclass
class ImageCounts:
    """Counts of a command's images, by outcome."""

    faces: int = 0
    images: int = 0
    without_face: int = 0
    refused: int = 0  # that could not be read, or whose boxes are wrong

    def add(self, result: ImageResult) -> None:
        """Count an image."""
        self.faces += len(result.faces)
        self.images += 1
        self.without_face += not result.error and not result.faces
        self.refused += bool(result.error)

    def describe(self, places: Sequence[Path] = ()) -> str:
        """One line; ``places``: the files that hold the faces."""
        found = f"{counted(self.faces, 'face')} of {counted(self.images, 'image')}"
        if places:
            found += f" in {' and '.join(map(str, places))}"
        parts = [found]
        if self.without_face:
            parts.append(f"{self.without_face} without a face")
        if self.refused:
            parts.append(f"{self.refused} refused")
        return "; ".join(parts)


def describe_face(face: Alignment) -> str:
    """A face in words: where it is, its pose and confidence, or why its fit was rejected."""
    box = f"box {face.box.x0:.0f},{face.box.y0:.0f},{face.box.x1:.0f},{face.box.y1:.0f}"
    if face.failed:
        return f"{box}: failed: {face.reason}"
    pose = face.pose
    visible = int((face.visibility > 0.5).sum())
    unsure = ", unsure" if face.face_confidence < SURE_FROM else ""
    return (
        f"{box}: yaw {pose.yaw:.1f} pitch {pose.pitch:.1f} roll {pose.roll:.1f} degrees, "
        f"{visible} of 68 landmarks visible, confidence {face.face_confidence:.2f}{unsure}"
    )


def align_files(
    aligner: Aligner,
    paths: Sequence[Path],
    *,
    boxes: Boxes | None = None,
    focal: float | None = None,
    progress: bool = False,
) -> Iterator[ImageResult]:
    """The alignments of each file, in order; faces are detected in files without ``boxes``.

    ``focal``: pixels, of the camera; by default that of EXIF, or one is assumed.
    """
    images: dict[Path, DecodedImage | str] = {}
    with PhotoBar(len(paths), shown=progress) as bar:
        for number, path in enumerate(paths, start=1):
            bar.begin(path, _size_of(path))
            images[path] = _read(path)
            held = sum(each.pixels.nbytes for each in images.values() if not isinstance(each, str))
            if len(images) == BATCH or held >= BATCH_BYTES or number == len(paths):
                yield from _align_together(aligner, images, boxes or {}, focal)
                bar.end(len(images))
                images = {}


def align_files_on_server(
    client: Client,
    paths: Sequence[Path],
    *,
    boxes: Boxes | None = None,
    focal: float | None = None,
    progress: bool = False,
) -> Iterator[ImageResult]:
    """``align_files`` by a server, which is sent the files as they are.

    Raises ServiceError when the server does not answer.
    """
    with PhotoBar(len(paths), shown=progress) as bar:
        for path in paths:
            bar.begin(path, _size_of(path))
            yield _ask(client, path, (boxes or {}).get(path), focal)
            bar.end()


def _ask(
    client: Client, path: Path, boxes: Sequence[Box] | None, focal: float | None
) -> ImageResult:
    try:
        found = client.align(path, boxes)
    except (BadPhoto, ValueError) as error:
        return ImageResult(path, None, (), str(error))
    image = _read(path)
    if isinstance(image, str):
        return ImageResult(path, None, tuple(found))
    return ImageResult(path, image.pixels, tuple(found), camera=find_camera(image, focal))


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _read(path: Path) -> DecodedImage | str:
    """The image of a file, or why there is none."""
    try:
        return decode_image(path.read_bytes())
    except FileNotFoundError:
        return MISSING
    except BadPhoto as error:
        return str(error)
    except OSError as error:
        return f"can't be read: {error.strerror}"


def _read_checked(path: Path, box: Box | None) -> DecodedImage | str:
    """The image of a file, or why it can't be aligned, in ``box`` if there is one."""
    image = _read(path)
    try:
        if isinstance(image, DecodedImage):
            check_image(image.pixels)
            if box is not None:
                check_box(box, image.pixels)
    except (BadPhoto, ValueError) as error:
        return str(error)
    return image


def find_camera(image: DecodedImage, focal: float | None) -> Intrinsics:
    """The camera of an image; ``focal``: pixels, if given."""
    height, width = image.pixels.shape[:2]
    return Intrinsics.of_photo(width, height, focal=focal, focal_35mm=image.focal_35mm)


def _align_together(
    aligner: Aligner,
    images: Mapping[Path, DecodedImage | str],
    boxes: Boxes,
    focal: float | None,
) -> list[ImageResult]:
    read = {path: one for path, one in images.items() if not isinstance(one, str)}
    results = {
        path: ImageResult(path, None, (), one)
        for path, one in images.items()
        if isinstance(one, str)
    }
    try:
        faces = aligner.align_batch(
            [one.pixels for one in read.values()], [boxes.get(path) for path in read]
        )
        for (path, one), found in zip(read.items(), faces, strict=True):
            camera = find_camera(one, focal)
            results[path] = ImageResult(
                path,
                one.pixels,
                tuple(found),
                warning=one.warning,
                camera=camera,
                missing="" if found else describe_missing_face(found),
            )
    except (BadPhoto, ValueError) as error:
        # a bad image or box fails its whole batch, so its images are aligned one by one
        if len(read) == 1:
            ((path, one),) = read.items()
            results[path] = ImageResult(path, None, (), str(error))
        else:
            results |= {
                p: _align_together(aligner, {p: one}, boxes, focal)[0] for p, one in read.items()
            }
    return [results[path] for path in images]


def align_person_files(
    aligner: Aligner,
    paths: Sequence[Path],
    *,
    boxes: Boxes | None = None,
    drawings: Mapping[Path, Path] | None = None,
    mesh: Path | None = None,
) -> tuple[PersonAlignment, list[str], int]:
    """One identity for images of one person, a line of text for each image, and how many of them
    could not be read.

    ``drawings``: files for the images with their alignments, by image. ``mesh``: file for the face
    at rest, with the texture of the image that shows it best.

    Of an image's ``boxes`` the first counts. Files that can't be read, and boxes outside of their
    image, are left out as photos without a face are. Raises BadPhoto when that leaves no image, and
    NoFace when no image can be used.
    """
    first = {path: next(iter((boxes or {}).get(path, ())), None) for path in paths}
    images = {path: _read_checked(path, box) for path, box in first.items()}
    read = {path: one for path, one in images.items() if not isinstance(one, str)}
    unread = {path: one for path, one in images.items() if isinstance(one, str)}
    if not read:
        raise BadPhoto("; ".join(f"{path}: {why}" for path, why in unread.items()))
    given = [first[path] for path in read]
    found = aligner.align_person([one.pixels for one in read.values()], given)
    if mesh is not None:
        pixels = [one.pixels for one in read.values()]
        write_mesh(mesh, found, aligner.model, texture_person(found, aligner.model, pixels))
    faces = dict(zip(read, found.faces, strict=True))
    for path, face in faces.items():
        if drawings and path in drawings:
            place, shown = drawings[path], [face] if face else []
            write_file(place, encode_drawing(read[path].pixels, shown, aligner.model, place.suffix))
    reasons = unread | {[*read][i]: why for i, why in found.left_out.items()}
    doubts = {[*read][i]: why for i, why in found.doubts.items()}
    person = replace(
        found,
        faces=tuple(faces.get(path) for path in images),
        left_out={i: reasons[path] for i, path in enumerate(images) if path in reasons},
        doubts={i: doubts[path] for i, path in enumerate(images) if path in doubts},
    )
    lines = [
        f"{path}: left out: {person.left_out[i]}"
        if face is None
        else "; ".join(
            [f"{path}: {describe_face(face)}", *([doubts[path]] if path in doubts else [])]
        )
        for i, (path, face) in enumerate(zip(images, person.faces, strict=True))
    ]
    if person.in_doubt:
        lines.append(
            "the photos may show no person in common: none of them clearly agrees with the others"
        )
    warnings = [f"{path}: {one.warning}" for path, one in read.items() if one.warning]
    return person, lines + warnings, len(unread)


@dataclass(frozen=True)
class ImageOutputs:
    """The files that the results of images are written to; what has no file is not written."""

    json: Path | None = None  # one line for each image where it ends in .jsonl
    table: Path | None = None  # CSV, one row for each face and each image without one
    drawings: Mapping[Path, Path] = field(default_factory=dict)  # by image
    meshes: Mapping[Path, Path] = field(default_factory=dict)  # of the first face, by image
    masks: Mapping[Path, Path] = field(default_factory=dict)  # by image
    crops: Mapping[Path, Path] = field(default_factory=dict)  # by image, to which a number is added
    crop_size: int = CROP_SIZE  # pixels

    @property
    def json_lines(self) -> Path | None:
        """``json`` where it grows image by image."""
        return self.json if self.json and is_json_lines(self.json) else None


@dataclass(frozen=True)
class AlignmentWriter:
    """Writes the results of image files to their outputs."""

    describer: FaceDescriber
    names: Mapping[Path, str]  # of the images, in JSON
    outputs: ImageOutputs
    _results: list[ImageResult] = field(default_factory=list)

    @property
    def model(self) -> MorphableModel:
        """The model of the faces."""
        return self.describer.model

    def write(self, result: ImageResult) -> None:
        """Write what belongs to one image. Raises StorageError."""
        if result.path in self.outputs.drawings and result.image is not None:
            place = self.outputs.drawings[result.path]
            write_file(place, encode_drawing(result.image, result.faces, self.model, place.suffix))
        if result.path in self.outputs.meshes and result.faces:
            self._write_mesh(result.faces[0], result)
        if result.path in self.outputs.masks and result.image is not None:
            mask = mask_faces(result.image.shape[:2], result.faces, self.model)
            write_file(self.outputs.masks[result.path], encode_png(mask))
        if result.path in self.outputs.crops and result.image is not None:
            self._write_crops(result.image, result)
        if self.outputs.table:
            # names of files may be bytes that are no text
            append_file(self.outputs.table, self._rows(result).encode(errors="backslashreplace"))
        if self.outputs.json_lines:
            line = result.to_json_line(self.names[result.path], self.describer)
            append_file(self.outputs.json_lines, line.encode())
        elif self.outputs.json:
            self._results.append(replace(result, image=None))

    def begin(self) -> None:
        """Begin the table and the JSON lines. Raises StorageError."""
        if self.outputs.json_lines:
            write_file(self.outputs.json_lines, b"")
        if self.outputs.table:
            write_file(self.outputs.table, FaceTable(self.model, ["image"]).header().encode())

    def _rows(self, result: ImageResult) -> str:
        table, name = FaceTable(self.model, ["image"]), self.names[result.path]
        if result.camera is None or not result.faces:
            return table.row_without_face([name], result.error)
        return "".join(
            table.row([name], number, face, result.camera)
            for number, face in enumerate(result.faces)
        )

    def _write_crops(self, image: Bytes, result: ImageResult) -> None:
        place = self.outputs.crops[result.path]
        for number, face in enumerate(result.faces):
            if not face.failed:
                name = f"{place.stem}_{number}{place.suffix}"
                crop = crop_face(image, face, self.outputs.crop_size)
                write_file(place.with_name(name), encode_png(crop))

    def _write_mesh(self, face: Alignment, result: ImageResult) -> None:
        texture = None if result.image is None else texture_face(face, self.model, result.image)
        write_mesh(self.outputs.meshes[result.path], face, self.model, texture)

    def finish(self) -> None:
        """Write what belongs to all images together. Raises StorageError."""
        if self.outputs.json and not self.outputs.json_lines:
            write_json(self.outputs.json, to_json(self._results, self.describer))


def write_mesh(
    place: Path,
    face: Alignment | PersonAlignment,
    model: MorphableModel,
    texture: FaceTexture | None,
) -> None:
    """Write a GLB, or an OBJ with material and texture beside it. Raises StorageError."""
    lit = None if texture is None else texture.lit
    for name, data in encode_mesh(face, model, place, texture=lit).items():
        write_file(place.with_name(name), data)


def is_json_lines(path: Path) -> bool:
    """Whether a file has a line of JSON for each image, which a later run may append to."""
    return path.suffix.lower() == ".jsonl"


def encode_png(image: Bytes) -> bytes:
    """A PNG file of an (H, W) or (H, W, 3) uint8 image."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def encode_drawing(
    image: Bytes, faces: Sequence[Alignment], model: MorphableModel, suffix: str = ".png"
) -> bytes:
    """An image file with landmarks, mesh and axes of every face; JPEG by its suffix, else PNG.

    ``image``: (H, W, 3) uint8 RGB.
    """
    buffer = io.BytesIO()
    kind = "JPEG" if suffix.lower() in (".jpg", ".jpeg") else "PNG"
    Image.fromarray(draw(image, faces, model)).save(buffer, kind)
    return buffer.getvalue()


def read_boxes(path: Path) -> dict[str, list[Box]]:
    """Boxes from a JSON file ``{image: [[x0, y0, x1, y1], ...]}``.

    Raises ValueError for another content, and OSError for a file that can't be read.
    """
    kind = TypeAdapter(dict[str, list[tuple[float, float, float, float]]])
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    refusal = f"{path} is not a file of boxes {{name: [[x0, y0, x1, y1], ...]}}"
    try:
        content = kind.validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]  # pydantic's own message has several lines for each wrong value
        name = f"{first['loc'][0]!r}: " if first["loc"] else ""
        raise ValueError(f"{refusal}: {name}{first['msg']}") from error
    boxes = {}
    for name, some in content.items():
        try:
            boxes[name] = [Box(*corners) for corners in some]
        except ValueError as error:
            raise ValueError(f"{refusal}: {name!r}: {error}") from error
    return boxes


def assign_boxes(
    named: Mapping[str, Sequence[Box]], paths: Sequence[Path]
) -> tuple[Boxes, list[str]]:
    """The boxes of each image, and the names that no image has.

    An image is named by its path or by the last parts of it, such as ``b/one.png`` or ``one.png``.
    Raises ValueError for a name that several images have, and for an image with several names.
    """
    by_end: dict[tuple[str, ...], list[Path]] = {}
    for path in paths:
        for parts in {path.parts, path.absolute().parts}:
            for start in range(len(parts)):
                by_end.setdefault(parts[start:], []).append(path)
    assigned: dict[Path, Sequence[Box]] = {}
    names: dict[Path, str] = {}
    unmatched = []
    for name, boxes in named.items():
        parts = Path(name).parts
        # "one.png" may be a whole path besides the end of others
        whole = [path for path in paths if path.parts == parts]
        found = whole or list(dict.fromkeys(by_end.get(parts, ())))
        if len(found) > 1:
            raise ValueError(
                f"boxes of {name!r}: {len(found)} images have that name, "
                f"such as {found[0]} and {found[1]}: give paths"
            )
        if not found:
            unmatched.append(name)
        elif found[0] in assigned:
            raise ValueError(f"boxes of {names[found[0]]!r} and {name!r}: both are {found[0]}")
        else:
            assigned[found[0]], names[found[0]] = boxes, name
    return assigned, unmatched


def read_finished(path: Path) -> set[str]:
    """Names of the images in a JSON lines file; the partial last line of a killed run is cut off.

    A missing file has none. Raises ValueError for a file of another kind.
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
        write_file(path, whole)
    return names


def to_json(results: Iterable[ImageResult], describer: FaceDescriber) -> dict[str, Any]:
    """Alignments by image name, as of ``unique_names``; a refused image has an object "error"."""
    every = list(results)
    names = unique_names([result.path for result in every])
    return {name: each.to_json(describer) for name, each in zip(names, every, strict=True)}
