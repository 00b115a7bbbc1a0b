"""Cascade files: safetensors of named arrays, with JSON metadata that describes them.

``dff.aligner.cascade.model`` gives the arrays their meaning. Nothing in the file runs when it is
read, and a file that is too large to be a cascade is not read at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dff.face.arrays import Floats, Ints
from dff.face.errors import BadWeights
from dff.infra.files import replaced_file

FORMAT = "dff-cascade-1"
LARGEST = 16 << 20  # bytes; useful cascades had under four million
SHIPPED = {
    name: Path(__file__).parents[1] / "data" / f"{name}-cascade.safetensors"
    for name in ("dff-open",)
}
"""Cascades that come with the program, by the name of the weights they were trained with."""


def write_cascade(
    path: Path | str, arrays: Mapping[str, Floats | Ints], about: Mapping[str, Any]
) -> None:
    """Write a cascade, whole or not at all; equal arrays and ``about`` give equal bytes."""
    words = json.dumps({**about, "format": FORMAT}, sort_keys=True)
    # safetensors writes the memory as it lies, whatever its order.
    in_order = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with replaced_file(path) as temporary:
        temporary.write_bytes(save(in_order, {"cascade": words}))


def read_cascade(path: Path | str) -> tuple[dict[str, Floats | Ints], dict[str, Any]]:
    """The arrays and the metadata.

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
