"""Whether a video file lacks its end, by the structure of its container, without decoding.

Files that were cut off while they were recorded, copied or downloaded play without an error up to
where they end.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

HEAD = 16384  # bytes in which the sizes that a file declares stand
TAIL = 1 << 22  # bytes that hold the last frame of each stream
BOXES = 10000  # top-level boxes that are looked at: fragmented recordings have thousands

_ASF = b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"  # Windows Media
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # holds the file's size
_SEGMENT = b"\x18\x53\x80\x67"  # of Matroska and WebM
_FLV_TAGS = (8, 9, 18)  # sound, picture, script


def find_missing_end(path: Path) -> str:
    """What is missing at the end of a video file, in words; "" if nothing is known to be."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEAD)
        return _checker(head)(file, head, size)


def _checker(head: bytes) -> Callable[[BinaryIO, bytes, int], str]:
    """The check of the container that ``head`` begins."""
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return _check_boxes
    if head[:4] == b"RIFF":
        return _check_riff
    if head.startswith(b"\x1aE\xdf\xa3"):
        return _check_matroska
    if head.startswith(_ASF):
        return _check_asf
    if head.startswith(b"FLV\x01"):
        return _check_flv
    if head.startswith(b"\x00\x00\x01\xba"):
        return _check_program_stream
    if head.startswith((b"GIF87a", b"GIF89a")):
        return _check_gif
    if transport_packet(head) is not None:
        return _check_transport_stream
    return lambda file, head, size: ""


def transport_packet(head: bytes) -> tuple[int, int] | None:
    """The start and length of the packets of an MPEG transport stream; None for other files.

    Packets are 188 bytes long, in camcorders' .mts files 192 with a time code before each.
    """
    for start, length in ((0, 188), (4, 192)):
        count = 4
        if len(head) > start + (count - 1) * length and all(
            head[start + i * length] == 0x47 for i in range(count)
        ):
            return start, length
    return None


def _missing(count: int) -> str:
    return f"{count} bytes that it declares are missing" if count > 0 else ""


def _check_boxes(file: BinaryIO, head: bytes, size: int) -> str:
    """MP4 and QuickTime: boxes, each with its length, fill the file."""
    at = 0
    for _ in range(BOXES):
        file.seek(at)
        start = file.read(16)
        if len(start) < 8 or not start[4:8].isalnum():
            return ""  # the end, or bytes that another program appended
        length = int.from_bytes(start[:4])
        if length == 1:
            length = int.from_bytes(start[8:])
        if length < 8:
            return ""  # 0: to the end of the file
        at += length
        if at > size:
            return _missing(at - size)
    return ""


def _check_riff(file: BinaryIO, head: bytes, size: int) -> str:
    """AVI: one RIFF chunk, and further ones in files of more than a gigabyte."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        start = file.read(8)
        length = int.from_bytes(start[4:], "little")
        if start[:4] != b"RIFF" or length in (0, 0xFFFFFFFF):
            return ""
        at += 8 + length + length % 2
    return _missing(at - size if at - size > 1 else 0)


def _check_matroska(file: BinaryIO, head: bytes, size: int) -> str:
    at = head.find(_SEGMENT) + len(_SEGMENT)
    if at < len(_SEGMENT) or at >= len(head) or not head[at]:
        return ""
    width = 9 - head[at].bit_length()  # bytes of the length, whose first bits say how many
    data = int.from_bytes(head[at : at + width]) & ((1 << 7 * width) - 1)
    if data == (1 << 7 * width) - 1:
        return ""  # of unknown length, as a live recording
    return _missing(at + width + data - size)


def _check_asf(file: BinaryIO, head: bytes, size: int) -> str:
    at = head.find(_ASF_FILE_PROPERTIES)
    return _missing(int.from_bytes(head[at + 40 : at + 48], "little") - size) if at >= 0 else ""


def _check_flv(file: BinaryIO, head: bytes, size: int) -> str:
    """The last four bytes are the length of the last tag."""
    file.seek(-4, os.SEEK_END)
    length = int.from_bytes(file.read(4))
    if 11 <= length <= size - 17:
        file.seek(size - 4 - length)
        tag = file.read(4)
        if tag[0] in _FLV_TAGS and int.from_bytes(tag[1:]) == length - 11:
            return ""
    return "its last tag is incomplete"


def _check_program_stream(file: BinaryIO, head: bytes, size: int) -> str:
    """The packets after the last pack header end with the file."""
    file.seek(-min(size, TAIL), os.SEEK_END)
    tail = file.read()
    at = tail.rfind(b"\x00\x00\x01\xba")
    if at < 0:
        return ""
    # MPEG-2 begins with the bits 01 and has stuffing, MPEG-1 with 0010
    second = tail[at + 4 : at + 5] >= b"\x40"
    at += 14 + (tail[at + 13] & 7 if len(tail) > at + 13 else 0) if second else 12
    while at + 6 <= len(tail):
        code = tail[at : at + 4]
        if code[:3] != b"\x00\x00\x01":
            return ""  # padding after the film
        at += 4 if code[3] == 0xB9 else 6 + int.from_bytes(tail[at + 4 : at + 6])
    return "its last packet is incomplete" if at != len(tail) else ""


def _check_transport_stream(file: BinaryIO, head: bytes, size: int) -> str:
    """Packets are whole, and so are the frames that they carry in parts.

    A cut between two frames is not seen here, since no length of the film is declared.
    """
    packet = transport_packet(head)
    assert packet is not None
    start, length = packet
    if size % length:
        return "its last packet is incomplete"
    file.seek(-min(size, TAIL // length * length), os.SEEK_END)
    tail = file.read()
    missing: dict[int, bool] = {}  # by stream: whether its last frame is incomplete
    wanted: dict[int, int] = {}  # bytes of the frame that are still to come; negative: not known
    for at in range(start, len(tail), length):
        stream = int.from_bytes(tail[at + 1 : at + 3]) & 0x1FFF
        fields = tail[at + 3] >> 4
        payload = at + 4 + (1 + tail[at + 4] if fields & 2 else 0)
        data = tail[payload : at + 188] if fields & 1 else b""
        if tail[at + 1] & 0x40:  # a frame begins
            wanted.pop(stream, None)
            if data[:3] == b"\0\0\1" and len(data) >= 6:
                declared = int.from_bytes(data[4:6])
                wanted[stream] = 6 + declared if declared else -1
        if stream in wanted and data:
            # the last packet of a frame of unknown length is padded
            known = wanted[stream] >= 0
            wanted[stream] -= len(data) if known else 0
            missing[stream] = wanted[stream] > 0 if known else len(data) == 184
    return "its last frame is incomplete" if any(missing.values()) else ""


def _check_gif(file: BinaryIO, head: bytes, size: int) -> str:
    file.seek(-min(size, 512), os.SEEK_END)
    return "" if file.read().rstrip(b"\0").endswith(b";") else "it has no end mark"
