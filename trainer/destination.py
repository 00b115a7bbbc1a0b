"""Where trained weights go: a file, or MLflow's registry alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dff.face.errors import BadPlace
from dff.infra.networks import weights
from dff.infra.networks.weights_names import REGISTERED
from dff.infra.redaction import hide_secrets

NAME = "dff-descriptor"
"""Registered model of weights that are written to a file."""
ALIAS = "candidate"
"""Of the newest registered version."""


@dataclass(frozen=True)
class Destination:
    """The weights file of a training, if any, and the registered model whose version it becomes."""

    file: str | None  # path or s3://bucket/key
    name: str = NAME
    alias: str = ALIAS


def parse_destination(out: Path | str) -> Destination:
    """A path, ``s3://bucket/key``, ``models:/NAME`` or ``models:/NAME@ALIAS``.

    Raises BadPlace for names and aliases that MLflow would refuse after the training. It numbers
    versions itself, so an address with a version is none.
    """
    text = str(out)
    if not text.startswith(REGISTERED):
        return Destination(text)
    name, at, alias = text.removeprefix(REGISTERED).partition("@")
    alias = alias if at else ALIAS
    reserved = alias.lower() == "latest" or re.fullmatch(r"v\d+", alias, re.IGNORECASE)
    if not re.fullmatch(r"[\w. -]+", name) or not re.fullmatch(r"[\w-]+", alias) or reserved:
        raise BadPlace(
            f"{text} names no new version of a registered model: say {REGISTERED}NAME or "
            f"{REGISTERED}NAME@ALIAS; the aliases latest, v1, v2, ... are MLflow's own"
        )
    return Destination(None, name, alias)


def resolve_destination(out: Path | str, *, endpoint_url: str | None = None) -> Destination:
    """Where ``out`` is. Raises StorageError if no weights could be written there."""
    to = parse_destination(out)
    if to.file is not None:
        weights.check_destination(to.file, endpoint_url=endpoint_url)
    return to


def describe_destination(to: Destination) -> str:
    """The destination in words, without passwords."""
    return hide_secrets(to.file) if to.file is not None else f"{REGISTERED}{to.name}"


def check_run_name(name: str) -> None:
    """Raises ValueError for a name that is no name of a folder: checkpoints lie in one."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"a run's name is the name of a folder, without '/', not {name!r}")
