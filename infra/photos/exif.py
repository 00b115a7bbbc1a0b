"""EXIF data of photos: the orientation and the focal length, nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ORIENTATION, FOCAL_35MM, WIDTH, HEIGHT, SUB_FOLDER = 0x0112, 0xA405, 0xA002, 0xA003, 0x8769
_SIZES = {1: 1, 3: 2, 4: 4}  # bytes of the integer types


@dataclass(frozen=True)
class Exif:
    """The EXIF data of a photo that are used."""

    orientation: int = 1  # 1 to 8
    # millimetres on 35 mm film, of the whole width and height as the camera took them
    focal_35mm: float | None = None
    taken_size: tuple[int, int] | None = None  # width and height that the camera wrote

    def focal_of(self, width: int, height: int) -> float | None:
        """Millimetres on 35 mm film of an image of that size; None if it was cropped since."""
        if self.taken_size is None or sorted(self.taken_size) == sorted((width, height)):
            return self.focal_35mm
        return None


def parse_exif(data: bytes) -> Exif:
    """The values in EXIF data that make sense; defaults for the others, whatever the data is."""
    tiff = data.removeprefix(b"Exif\0\0")
    order: Literal["little", "big"] = "little" if tiff[:2] == b"II" else "big"
    first = _read_folder(tiff, order, int.from_bytes(tiff[4:8], order))
    orientation = first.get(ORIENTATION, 1)
    tags = first
    if SUB_FOLDER in first:
        tags = first | _read_folder(tiff, order, first[SUB_FOLDER])
    focal = tags.get(FOCAL_35MM, 0)
    size = tags.get(WIDTH, 0), tags.get(HEIGHT, 0)
    return Exif(
        orientation if 1 <= orientation <= 8 else 1,
        float(focal) if focal else None,
        size if min(size) > 0 else None,
    )


def _read_folder(tiff: bytes, order: Literal["little", "big"], start: int) -> dict[int, int]:
    """The first integer of each entry of an image file directory."""

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], order)

    out: dict[int, int] = {}
    for entry in range(start + 2, start + 2 + 12 * number(start, 2), 12):
        if entry + 12 > len(tiff):
            break
        out.setdefault(number(entry, 2), number(entry + 8, _SIZES.get(number(entry + 2, 2), 0)))
    return out
