"""Image files for tests, good and hostile, made in memory."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from dff.face.arrays import Bytes


def pixels(height: int = 120, width: int = 160) -> Bytes:
    """(H, W, 3) a bright gradient with a dark block in the upper left corner."""
    image = np.full((height, width, 3), 200, np.uint8)
    image[: height // 3, : width // 4] = 20
    return image


def encoded(image: Bytes, form: str = "PNG", **options: object) -> bytes:
    """A file of these pixels."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form, **options)
    return buffer.getvalue()


def turned(image: Bytes, orientation: int) -> bytes:
    """A JPEG whose EXIF says that it must be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, "JPEG", exif=exif, quality=95)


def with_exif(image: bytes, entries: dict[int, tuple[int, int, bytes]]) -> bytes:
    """A JPEG with EXIF of raw entries: tag to (type, count, the four bytes of value or offset)."""
    rows = b"".join(
        struct.pack(">HHI", tag, kind, count) + value
        for tag, (kind, count, value) in entries.items()
    )
    body = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + rows + bytes(4)
    return image[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + image[2:]


def animated(form: str) -> bytes:
    """Two different frames."""
    frames = [Image.fromarray(np.full((64, 64, 3), value, np.uint8)) for value in (10, 200)]
    buffer = io.BytesIO()
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:], duration=100)
    return buffer.getvalue()


def bomb(width: int = 10_000, height: int = 10_000) -> bytes:
    """A PNG of 100 kB whose header promises 100 megapixels of grey."""
    size = (width + 1) * height
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    million = packer.compress(bytes(1_000_000)) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = packer.compress(bytes(size % 1_000_000)) + packer.flush()
    checksum = size % 65521 << 16 | 1  # Adler-32 of that many zeros
    rows = b"\x78\xda" + million * (size // 1_000_000) + rest + struct.pack(">I", checksum)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*c) for c in ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
