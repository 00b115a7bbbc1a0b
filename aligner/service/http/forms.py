"""Fields of a multipart form: files to pixels, JSON text to boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Generic, TypeVar

import anyio
from fastapi import Form, UploadFile
from pydantic import Field, TypeAdapter, ValidationError

from dff.aligner.image_checks import check_box
from dff.aligner.service.http.limits import LIMITS, Limits
from dff.aligner.service.http.problems import Problem
from dff.aligner.service.http.worker_threads import run_to_end
from dff.face.arrays import Bytes
from dff.face.geometry.camera import Box
from dff.infra.photos.images import UPLOADS, DecodedImage, decode_image, read_size

T = TypeVar("T")
KINDS_OF_JSON: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}
SMALL = 128 << 10  # bytes of a file whose header is read at once
BoxCorners = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels


@dataclass(frozen=True)
class JsonField(Generic[T]):
    """A text field of a form that holds JSON."""

    content: TypeAdapter[T]
    form: str  # of its content, in words and for people
    problem: str = "bad-request"  # the kind of problem that another content is

    def parameter(self, description: str) -> Any:
        """The field as FastAPI takes it; its schema says what the text holds."""
        schema = self.content.json_schema()
        about = {"contentMediaType": "application/json", "contentSchema": schema}
        return Form(description=description, json_schema_extra=about)

    def parse(self, name: str, text: str) -> T:
        """The content of the field ``name``. Raises a Problem, which says what it should be."""
        try:
            return self.content.validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise Problem(
                self.problem, f"{name} must be JSON {self.form}: {_explain(name, first)}"
            ) from error


def _explain(name: str, error: Mapping[str, Any]) -> str:
    """What is wrong with the content of the field ``name``."""
    if error["type"] == "json_invalid":
        return "this is not JSON"
    missing = error["type"] == "missing"
    place = [step for step in error["loc"] if isinstance(step, int)]
    where = name + "".join(f"[{number}]" for number in (place[:-1] if missing else place))
    if error["type"] == "too_long":
        return f"{where} has too many entries"
    if missing:
        return f"{where} has too few entries"
    # the value itself is not repeated: it may be long, or private
    return f"{where} is {KINDS_OF_JSON.get(type(error['input']), 'another value')}"


# as many as a request may have, which ``check_count`` checks
BoxList = Annotated[list[BoxCorners], Field(json_schema_extra={"maxItems": LIMITS.boxes})]
# null, for a photo or for all: faces are detected
BOXES: JsonField[list[BoxCorners] | None] = JsonField(
    TypeAdapter(BoxList | None),
    "[[x0, y0, x1, y1], ...], a box for each face",
    "bad-boxes",
)
BOXES_OF_EACH: JsonField[list[list[BoxCorners] | None] | None] = JsonField(
    TypeAdapter(list[BoxList | None] | None),
    "with null or [[x0, y0, x1, y1], ...] for each image",
    "bad-boxes",
)
BOX_OF_EACH: JsonField[list[BoxCorners | None] | None] = JsonField(
    TypeAdapter(list[BoxCorners | None] | None),
    "with null or [x0, y0, x1, y1] for each image",
    "bad-boxes",
)
BOX: JsonField[BoxCorners | None] = JsonField(
    TypeAdapter(BoxCorners | None), "[x0, y0, x1, y1]", "bad-boxes"
)


async def read_pixel_count(image: UploadFile, limits: Limits) -> int:
    """Width times height that the header of an uploaded file announces.

    Raises BadImage, and Problem ``too-large`` for a file over the limit.
    """
    data = await _read(image, limits)
    read = partial(read_size, data, replace(UPLOADS, pixels=limits.pixels))
    # a change of threads would take longer than the header of a small file
    width, height = read() if len(data) <= SMALL else await anyio.to_thread.run_sync(read)
    return width * height


async def read_upload(image: UploadFile, limits: Limits) -> DecodedImage:
    """The image of an uploaded file, upright, with its focal length.

    Raises BadImage, and Problem ``too-large`` for a file over the limit.
    """
    data = await _read(image, limits)
    uploads = replace(UPLOADS, pixels=limits.pixels)
    return await run_to_end(partial(decode_image, data, limits=uploads))


async def _read(image: UploadFile, limits: Limits) -> bytes:
    if image.size is not None and image.size > limits.body:
        raise Problem(
            "too-large", f"a photo may have at most {limits.body} bytes: send a smaller file"
        )
    await image.seek(0)
    return await image.read()


def parse_boxes_of_each(
    form: JsonField[list[T] | None], text: str | None, photos: int, limits: Limits
) -> list[T | None]:
    """An entry of the field ``boxes`` for each of the ``photos`` photos; None where it has none.

    Raises Problem ``too-many-images`` or ``bad-boxes``.
    """
    if photos > limits.photos:
        raise Problem(
            "too-many-images",
            f"a request may have at most {limits.photos} images, not {photos}: send several "
            "requests",
        )
    boxes = None if text is None else form.parse("boxes", text)
    if boxes is None:
        return [None] * photos
    if len(boxes) != photos:
        raise Problem(
            "bad-boxes",
            f"boxes has {len(boxes)} entries for {photos} images: give one for each image, or null",
        )
    return [*boxes]


def to_boxes(corners: Sequence[BoxCorners], pixels: Bytes, *, name: str = "boxes") -> list[Box]:
    """Boxes in an (H, W, 3) image, of the field ``name``.

    Raises Problem ``bad-boxes`` for an empty list, and for a box that can't hold a face of it.
    """
    if not corners:
        raise Problem("bad-boxes", "an empty list: omit `boxes`, or send null, to detect faces")
    try:
        return [check_box(Box(*each), pixels) for each in corners]
    except ValueError as error:
        raise Problem("bad-boxes", f"{name}: {error}") from error


def check_count(boxes: int, limits: Limits) -> None:
    """Raises Problem ``bad-boxes`` for more boxes than a request may have."""
    if boxes > limits.boxes:
        raise Problem(
            "bad-boxes",
            f"a request may have at most {limits.boxes} boxes, not {boxes}: send several requests",
        )
