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
from safetensors.numpy import save

from dff.face.arrays import Floats, Ints
from dff.infra.files import replaced_file
from dff.infra.networks.tensor_file import read_tensor_file

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
    """The arrays and the metadata. Raises BadWeights as ``read_tensor_file``."""
    about, arrays = read_tensor_file(path, "cascade", FORMAT, kind="cascade", largest=LARGEST)
    return arrays, about
