"""Array types.

Fields of dataclasses are annotated with element type and axes, ``Float[Array, "faces 68 2"]``, and
a comment states unit and frame. The tests check the axes whenever a dataclass is created
(``tests/shapes.py``): axes of one name have one length within a value. Parameters and local
variables have the short aliases, with their shapes in the docstring.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, Shaped, UInt8
from numpy.typing import NDArray

if TYPE_CHECKING:
    Array = NDArray[Any]
else:
    Array = np.ndarray

__all__ = [
    "Array",
    "Bool",
    "Bools",
    "Bytes",
    "Float",
    "Floats",
    "Int",
    "Integer",
    "Ints",
    "Shaped",
    "UInt8",
]

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]
Bools = NDArray[np.bool_]
Bytes = NDArray[np.uint8]
