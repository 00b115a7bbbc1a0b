"""Files of cascades: safetensors of named arrays, and in their metadata JSON that says what they
are.

What the arrays mean is the aligner's affair (``dff.aligner.cascade.model``). Nothing in the file
runs when it is read, and a file that is too large to be a cascade is not read at all.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dff.face.arrays import Floats, Ints
from dff.face.errors import BadWeights

FORMAT = "dff-cascade-1"
LARGEST = 16 << 20  # bytes; cascades that were of use had under four million
SHIPPED = {
    name: Path(__file__).parent / "data" / f"{name}-cascade.safetensors" for name in ("dff-open",)
}
"""Cascades that come with the program, by the name of the weights on which they were learned."""


def write(path: Path | str, arrays: Mapping[str, Floats | Ints], about: Mapping[str, Any]) -> None:
    """Write a cascade in one step (a reader never sees half of it); the same arrays and words are
    the same bytes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    words = json.dumps({**about, "format": FORMAT}, sort_keys=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            # safetensors writes the memory as it lies, whatever its order.
            file.write(
                save(
                    {name: np.ascontiguousarray(array) for name, array in arrays.items()},
                    {"cascade": words},
                )
            )
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read(path: Path | str) -> tuple[dict[str, Floats | Ints], dict[str, Any]]:
    """The arrays and what is said of them.

    Raises BadWeights, naming the file, when it cannot be read, is too large or has another format.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise BadWeights(f"{path} has {size} bytes: no cascade is larger than {LARGEST}")
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get("cascade", "{}")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise BadWeights(f"{path} cannot be read as a cascade: {error}") from error
    try:
        about = dict(json.loads(text))
    except (TypeError, ValueError) as error:
        raise BadWeights(f"{path} has bad metadata: {error!r}") from error
    if about.get("format") != FORMAT:
        raise BadWeights(
            f"{path} has format {about.get('format', 'none')!r}, this program reads {FORMAT!r}"
        )
    return arrays, about
