"""Image files: bytes to pixels within the caller's limits. Errors say what is wrong.

The format is recognised by the content. Of the metadata only the orientation in EXIF is read, by a
reader that ignores what it can't make sense of; all other metadata is dropped before decoding, so
none of it can make an image unreadable.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import AvifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from PIL.ImageFile import ImageFile

from dff.face.arrays import Bytes, Floats
from dff.face.errors import BadPhoto, MissingExtra
from dff.face.extras import require_extra
from dff.infra.photos.exif import Exif, parse_exif

Format = Literal["JPEG", "PNG", "WebP", "AVIF", "HEIC"]
Fault = Literal["empty", "not-an-image", "damaged", "animated", "too-many-pixels"]

HEAD = 512  # bytes of a file that are enough for ``recognise``


@dataclass(frozen=True)
class ImageLimits:
    """Limits of the images that ``decode_image`` accepts."""

    pixels: int = 250_000_000  # of one image; telephones take photos of up to 200 megapixels
    formats: tuple[Format, ...] = ("JPEG", "PNG", "WebP", "AVIF", "HEIC")
    truncated: bool = True  # whether a JPEG that lacks its last bytes is read, with a warning


OWN_FILES = ImageLimits()
# Files of strangers: each further decoder adds attack surface.
UPLOADS = ImageLimits(pixels=40_000_000, formats=("JPEG", "PNG", "WebP"), truncated=False)

MISSING_ROWS = 1 / 8  # of a truncated JPEG's rows: with more of them missing it counts as damaged

_STRIP = 256  # rows that are converted at a time
_UNREADABLE = (
    (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"8BPS", "Photoshop"),
)
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # bytes
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")


class BadImage(BadPhoto):
    """Bytes that are no image within limits; ``fault`` says why."""

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


@dataclass(frozen=True)
class DecodedImage:
    """The pixels of an image file."""

    pixels: Bytes  # (H, W, 3) RGB
    warning: str = ""  # what is wrong with the file although it could be read
    focal_35mm: float | None = None  # millimetres on 35 mm film, if EXIF tells it of all of them


def recognise(data: bytes) -> str | None:
    """The name of an image format that ``data`` begins like, None for anything else.

    It is a ``Format``, or a format that is known but not read, such as GIF. The first ``HEAD``
    bytes of a file are enough.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    if data[4:8] == b"ftyp":
        end = min(int.from_bytes(data[:4]), HEAD)
        brands = [data[8:12], *(data[at : at + 4] for at in range(16, end, 4))]
        if any(brand in (b"avif", b"avis") for brand in brands):
            return "AVIF"
        if any(brand in _HEIC_BRANDS for brand in brands) or brands[0] in (b"mif1", b"msf1"):
            return "HEIC"
    if data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    return next((name for begin, name in _UNREADABLE if data.startswith(begin)), None)


def decode(
    data: bytes,
    *,
    upright: bool = True,
    limits: ImageLimits = OWN_FILES,
    reduce_to: int | None = None,
) -> Bytes:
    """``decode_image`` without its warning: (H, W, 3) uint8 RGB. Raises BadImage."""
    return decode_image(data, upright=upright, limits=limits, reduce_to=reduce_to).pixels


def decode_image(
    data: bytes,
    *,
    upright: bool = True,
    limits: ImageLimits = OWN_FILES,
    reduce_to: int | None = None,
) -> DecodedImage:
    """The pixels of an image file of one of the formats of ``limits``.

    The size is checked before a pixel is decoded. ``upright`` applies the EXIF orientation.
    Transparent images are composited over white; 16-bit grey keeps its high bits. With
    ``reduce_to`` a JPEG is decoded, several times as fast, at 1/2, 1/4 or 1/8 of its size, as long
    as both sides keep that many pixels. Raises BadImage.
    """
    image, exif = _open(data, limits)
    with image:
        focal = exif.focal_of(*image.size)
        # AVIF and HEIC may hold sequences too; their first image is the photo
        if image.format == "WEBP" and getattr(image, "is_animated", False):
            raise BadImage("animated", "the image is animated: send one of its frames")
        _reduce(image, reduce_to)
        warning = ""
        try:
            try:
                image.load()
            except OSError:
                if image.format != "JPEG":
                    raise
                image.close()
                image, warning = _load_truncated(data, limits, reduce_to)
            pixels = _to_rgb(image)
            image.close()  # its pixels take more memory than those that are returned
            turned = _turn(pixels, exif.orientation if upright else 1)
            return DecodedImage(turned, warning, focal)
        except BadImage:
            raise
        except Exception as error:  # decoders raise errors of many kinds for damaged data
            raise BadImage("damaged", f"the image is truncated or damaged: {error}") from error


def read_size(data: bytes, limits: ImageLimits = OWN_FILES) -> tuple[int, int]:
    """Width and height of an image file as stored. No pixel is decoded. Raises BadImage."""
    image, _ = _open(data, limits)
    with image:
        return image.size


def read_image(path: Path | str) -> Bytes:
    """``decode`` a file of this machine, upright: (H, W, 3) uint8 RGB.

    Raises BadPhoto, which names the file. Warns of a file that is incomplete.
    """
    try:
        image = decode_image(Path(path).read_bytes())
    except BadImage as error:
        raise BadPhoto(f"{path}: {error}") from error
    except OSError as error:
        raise BadPhoto(f"can't read {path}: {error.strerror}") from error
    if image.warning:
        warnings.warn(f"{path}: {image.warning}", stacklevel=2)
    return image.pixels


def as_stored(data: bytes, points: Floats) -> tuple[Floats, bool]:
    """(N, 2) pixels of a file's upright image in the image as stored, and whether that is mirrored.

    ``data``: bytes that ``decode`` takes.
    """
    image, exif = _open(data, OWN_FILES)
    orientation = exif.orientation
    with image:
        width, height = image.size
    x, y = np.asarray(points, dtype=np.float64).T
    if orientation >= 5:  # rows and columns are exchanged
        x, y = y, x
    if orientation in (2, 3, 7, 8):
        x = width - x
    if orientation in (3, 4, 6, 7):
        y = height - y
    return np.column_stack([x, y]), orientation in (2, 4, 5, 7)


def _open(data: bytes, limits: ImageLimits) -> tuple[ImageFile, Exif]:
    """The image, of which only the header is decoded, and its EXIF data."""
    if not data:
        raise BadImage("empty", "the image is empty")
    name = recognise(data[:HEAD])
    if name not in limits.formats:
        article = "an" if name == "AVIF" else "a"
        kind = "not an image" if name is None else f"{article} {name} image"
        *others, last = limits.formats
        raise BadImage("not-an-image", f"this is {kind}; {', '.join(others)} and {last} are read")
    if name == "PNG" and _is_animated_png(data):
        raise BadImage("animated", "the image is animated: send one of its frames")
    exif = Exif()
    try:
        # The classes are called, not Image.open, whose limit of pixels is one for all of Python.
        match name:
            case "JPEG":
                exif = parse_exif(_find_jpeg_exif(data))
                image: ImageFile = JpegImagePlugin.JpegImageFile(io.BytesIO(_bare_jpeg(data)))
            case "PNG":
                exif = parse_exif(_find_png_exif(data))
                image = PngImagePlugin.PngImageFile(io.BytesIO(_bare_png(data)))
            case "WebP":
                exif = parse_exif(_find_webp_exif(data))
                image = WebPImagePlugin.WebPImageFile(io.BytesIO(data))
            case "AVIF":
                image = _open_avif(data)
                # Pillow gives a rotation of the container as EXIF
                exif = parse_exif(image.info.get("exif", b""))
            case _:
                image = _open_heic(data)  # upright
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise _too_many_pixels("it", limits) from error
    except Exception as error:  # Pillow's parsers raise errors of many kinds for damaged headers
        raise BadImage("damaged", "the image ends or breaks within its header") from error
    width, height = image.size
    if width * height > limits.pixels:
        image.close()
        raise _too_many_pixels(f"{width} x {height} pixels", limits)
    return image, exif


def _too_many_pixels(what: str, limits: ImageLimits) -> BadImage:
    return BadImage(
        "too-many-pixels", f"{what}: an image may have at most {limits.pixels / 1e6:.0f} megapixels"
    )


def _open_avif(data: bytes) -> ImageFile:
    if not AvifImagePlugin.SUPPORTED:
        raise BadImage("not-an-image", "this is an AVIF image, which this Pillow can't read")
    return AvifImagePlugin.AvifImageFile(io.BytesIO(_hide_bmff_exif(data)))


def _open_heic(data: bytes) -> ImageFile:
    try:
        with require_extra("heif"):
            from pillow_heif import HeifImageFile
    except MissingExtra as error:
        raise BadImage("not-an-image", f"this is a HEIC image, and {error}") from error
    image: ImageFile = HeifImageFile(  # type: ignore[no-untyped-call]
        io.BytesIO(_hide_bmff_exif(data))
    )
    return image


def _reduce(image: ImageFile, side: int | None) -> None:
    if side is not None:
        image.draft(image.mode, (side, side))


def _load_truncated(
    data: bytes, limits: ImageLimits, reduce_to: int | None
) -> tuple[ImageFile, str]:
    """A JPEG that lacks its last bytes, and the warning about it.

    The decoder fills the missing rows with grey. Raises BadImage, in the words of the warning,
    where they are too many, and where ``limits`` do not allow any.
    """
    image, _ = _open(data + b"\xff\xd9", limits)
    _reduce(image, reduce_to)
    image.load()
    pixels = np.asarray(image)
    last = pixels[-1, -1]
    grey = image.mode not in ("L", "RGB") or bool((np.abs(last.astype(int) - 128) <= 2).all())
    filled = (pixels == last).reshape(len(pixels), -1).all(1) & grey
    missing = len(filled) if filled.all() else int(np.argmin(filled[::-1]))
    lacking = f"{missing} of {len(filled)} rows are" if missing else "its last bytes are"
    words = f"the image is truncated or damaged: {lacking} missing"
    if missing > MISSING_ROWS * len(filled) or not limits.truncated:
        raise BadImage("damaged", words)
    return image, words


def _to_rgb(image: Image.Image) -> Bytes:
    """(H, W, 3), converted in strips: only the image and the result are held as a whole."""
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    transparent = image.has_transparency_data
    for top in range(0, height, _STRIP):
        strip = image.crop((0, top, width, min(top + _STRIP, height)))
        pixels[top : top + _STRIP] = _strip_to_rgb(strip, transparent)
    return pixels


def _strip_to_rgb(strip: Image.Image, transparent: bool) -> Bytes:
    if strip.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips instead of scaling
        grey = (np.asarray(strip, dtype=np.uint32) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if transparent:
        white = Image.new("RGBA", strip.size, "white")
        strip = Image.alpha_composite(white, strip.convert("RGBA"))
    return np.asarray(strip.convert("RGB"))


def _turn(pixels: Bytes, orientation: int) -> Bytes:
    """The (H, W, 3) image of an EXIF orientation, upright."""
    match orientation:
        case 2:
            turned = pixels[:, ::-1]
        case 3:
            turned = pixels[::-1, ::-1]
        case 4:
            turned = pixels[::-1]
        case 5:
            turned = pixels.swapaxes(0, 1)
        case 6:
            turned = np.rot90(pixels, -1)
        case 7:
            turned = pixels[::-1, ::-1].swapaxes(0, 1)
        case 8:
            turned = np.rot90(pixels)
        case _:
            return pixels
    return np.ascontiguousarray(turned)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment before the compressed data."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        size = int.from_bytes(data[at + 2 : at + 4])
        if marker <= 0x01 or 0xD0 <= marker <= 0xDA or size < 2:
            return
        yield marker, at, at + 2 + size
        at += 2 + size


def _find_jpeg_exif(data: bytes) -> bytes:
    for marker, start, end in _jpeg_segments(data):
        if marker == 0xE1 and data[start + 4 : start + 10] == b"Exif\0\0":
            return data[start + 4 : end]
    return b""


def _bare_jpeg(data: bytes) -> bytes:
    """The file without comments and application data, but for what decides how colours are coded
    (JFIF and Adobe segments).
    """
    parts, done = [data[:2]], 2
    for marker, start, end in _jpeg_segments(data):
        whole = (marker == 0xE0 and end - start >= 16) or (marker == 0xEE and end - start >= 14)
        if whole or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            parts.append(data[start:end])
        done = end
    return b"".join([*parts, data[done:]])


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of each chunk; the last one may be cut off."""
    at = 8
    while at + 8 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4])
        yield data[at + 4 : at + 8], at, end
        at = end


def _is_animated_png(data: bytes) -> bool:
    for kind, start, _ in _png_chunks(data):
        if kind == b"acTL":
            return int.from_bytes(data[start + 8 : start + 12]) > 1
        if kind == b"IDAT":  # animation is announced before
            break
    return False


def _find_png_exif(data: bytes) -> bytes:
    for kind, start, end in _png_chunks(data):
        if kind == b"eXIf":
            return data[start + 8 : end - 4]
    return b""


def _bare_png(data: bytes) -> bytes:
    """The file with its critical chunks and the transparency only."""
    kept = [
        data[start:end]
        for kind, start, end in _png_chunks(data)
        if kind == b"tRNS" or not kind[0] & 0x20
    ]
    return b"".join([data[:8], *kept])


def _find_webp_exif(data: bytes) -> bytes:
    at = 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"EXIF":
            return data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2
    return b""


def _hide_bmff_exif(data: bytes) -> bytes:
    """An AVIF or HEIC file whose EXIF item has another name, so that no decoder parses it.

    The orientation of these formats is a property of the container; that of EXIF does not count.
    """
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4])
        if size < 8:
            break
        if data[at + 4 : at + 8] == b"meta":
            meta = data[at : at + size].replace(b"Exif\0", b"none\0")
            return data[:at] + meta + data[at + size :]
        at += size
    return data
