"""Where weights are: files that come with the program, by name, and other addresses.

Without torch, which takes seconds to import.
"""

from __future__ import annotations

import os
from pathlib import Path

from dff.face.errors import BadWeights, UnknownWeights

SHIPPED = {"dff-open": Path(__file__).parents[1] / "data" / "dff-open.safetensors"}
"""Weights that come with the program, by name."""
RESEARCH_TERMS = "research only (terms of the 300-W photos, iBUG)"
RESEARCH = {
    "dff-research": Path(__file__).parents[2] / "weights" / "research" / "dff-research.safetensors"
}
"""Weights that only the repository holds, by name, since their terms are for research only."""
NAMED = SHIPPED | RESEARCH
"""Weights that are loaded by name, where their file is."""
DEFAULT = "dff-open"
REGISTERED = "models:/"
"""Prefix of the address of a model registered in MLflow."""
BUCKET = "s3://"
"""Prefix of the address of a weights file in a bucket."""


def everywhere(path: Path | str) -> str:
    """``path`` as other processes of this machine can ``load`` it: names stay, files get their
    absolute path.
    """
    text = str(path)
    return (
        text
        if text in NAMED or text.startswith((REGISTERED, BUCKET))
        else os.path.normpath(Path(path).absolute())
    )


def find_file(path: Path | str) -> Path:
    """The file of a path or a name.

    Raises BadWeights where there is none: UnknownWeights for what can only be a name.
    """
    name, path = str(path), NAMED.get(str(path), Path(path))
    if name in RESEARCH and not path.is_file():
        raise BadWeights(
            f"{name} is for {RESEARCH_TERMS} and therefore not installed with the program: "
            f"take weights/research/{path.name} from the repository and give its path"
        )
    if not path.is_file():
        kind = BadWeights if len(path.parts) > 1 or path.suffix else UnknownWeights
        raise kind(
            f"there is no weights file {name}; known by name: {', '.join(NAMED)}; others by their "
            f"path, {BUCKET}bucket/key or {REGISTERED}NAME@ALIAS"
        )
    return path


def name_weights(address: Path | str) -> str:
    """A short name: the stem of a file, or the name of a registered model."""
    text = str(address)
    if text.startswith(REGISTERED):
        return text.removeprefix(REGISTERED).partition("@")[0]
    return Path(text).stem
