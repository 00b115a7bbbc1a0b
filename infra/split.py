"""Which photos are for learning and which for judging: decided by the photo's name alone, for
ever.
"""

from __future__ import annotations

import hashlib
import re
from typing import Literal

Split = Literal["train", "dev"]

# AFW and Helen name the faces of one photo 134212_1, 134212_2; LFPW's image_0012 counts photos, not
# faces.
_FACE_NUMBER = re.compile(r"_[1-9][0-9]?$")


def split_of(photo_id: str) -> Split:
    """ "dev" for one photo in ten, by the SHA-256 of its name; the same wherever the photo's folder
    lies.

    The faces of one photo go together, since their crops overlap. A sampled identity is asked by
    its own id.
    """
    name = _FACE_NUMBER.sub("", photo_id.rpartition("/")[2])
    return (
        "dev" if int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % 10 == 0 else "train"
    )
