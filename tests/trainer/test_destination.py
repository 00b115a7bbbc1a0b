"""Where trained weights go."""

from __future__ import annotations

from pathlib import Path

import pytest

from dff.face.errors import BadPlace, StorageError
from dff.infra.networks.weights_names import name_weights
from dff.trainer.destination import ALIAS, NAME, Destination, parse_destination, resolve_destination


@pytest.mark.parametrize(
    ("out", "destination"),
    [
        ("w.safetensors", Destination("w.safetensors", NAME, ALIAS)),
        ("s3://faces/w.safetensors", Destination("s3://faces/w.safetensors", NAME, ALIAS)),
        ("models:/ours", Destination(None, "ours", ALIAS)),
        ("models:/ours@staging", Destination(None, "ours", "staging")),
    ],
)
def test_a_destination_is_a_file_or_a_registered_model(out: str, destination: Destination) -> None:
    assert parse_destination(out) == destination
    assert name_weights(out) == ("ours" if destination.file is None else "w")


@pytest.mark.parametrize(
    "out",
    ["models:/", "models:/ours/3", "models:/ours@", "models:/ours@latest", "models:/ours@v2"],
)
def test_a_version_that_mlflow_would_refuse_is_refused_before_the_training(out: str) -> None:
    with pytest.raises(BadPlace, match="say models:/NAME or models:/NAME@ALIAS"):
        resolve_destination(out)


def test_a_folder_is_no_destination(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is a folder"):
        resolve_destination(tmp_path)
