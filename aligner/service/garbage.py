"""Python's search for reference cycles, beside requests."""

from __future__ import annotations

import gc


def exempt_objects() -> None:
    """Leave the objects that exist now out of later searches, after one that frees what is unused.

    A search of all objects, some 280,000 of libraries and weights, holds the interpreter for 110 to
    160 ms. With load there was one every 10 to 20 s, and all requests waited for it. Called again,
    it frees cycles among the objects that were left out before, such as those of former weights.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
