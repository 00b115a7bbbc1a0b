"""Files of named arrays with JSON metadata: safetensors, of which nothing runs when they are read.

All metadata is under one key: several would be written in random order, and equal content should be
equal bytes. It names its ``format``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from dff.face.arrays import Floats, Ints
from dff.face.errors import BadWeights


def read_tensor_file(
    path: Path | str, key: str, wanted: str, *, kind: str, largest: int | None = None
) -> tuple[dict[str, Any], dict[str, Floats | Ints]]:
    """The metadata and the arrays of a file whose format is ``wanted``.

    ``kind``: what the file should be, for messages. Raises BadWeights, naming the file, when it
    cannot be read, has another format or more than ``largest`` bytes.
    """
    try:
        if largest is not None and Path(path).stat().st_size > largest:
            raise BadWeights(f"{path} is larger than {largest} bytes, as no {kind} is")
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get(key, "{}")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name, array in arrays.items():
            if array.dtype.kind not in "biuf":  # of a library that adds types to NumPy
                raise TypeError(f"{name} has numbers of type {array.dtype}")
    except FileNotFoundError as error:
        raise BadWeights(f"there is no {kind} {path}") from error
    except (OSError, SafetensorError, TypeError, AttributeError) as error:  # of types NumPy lacks
        raise BadWeights(f"{path} cannot be read as a {kind}: {error}") from error
    try:
        about = dict(json.loads(text))
    except (TypeError, ValueError) as error:
        raise BadWeights(f"{path} has bad metadata: {error!r}") from error
    if about.get("format") != wanted:
        raise BadWeights(
            f"{path} has format {about.get('format', 'none')!r}, this program reads {wanted!r}"
        )
    return about, arrays
