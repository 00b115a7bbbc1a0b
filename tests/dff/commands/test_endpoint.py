"""Weights in a bucket of an S3 server other than AWS, wherever a command takes weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from PIL import Image
from skimage.data import astronaut
from typer.main import get_command
from typer.testing import CliRunner

from dff.commands.app import app
from dff.face.errors import BadWeights
from dff.infra.networks import weights

ADDRESS, ENDPOINT = "s3://faces/w.safetensors", "http://10.0.0.9:9000"
COMMANDS = {
    "align": ("photo.jpg", "--weights", ADDRESS),
    "calibrate": (ADDRESS, "data", "--out", "out.safetensors"),
    "evaluate": ("300w", "photos", "--weights", ADDRESS),
    "export": ("out.onnx", "--weights", ADDRESS),
    "fit-expressions": (ADDRESS, "data", "--out", "out.safetensors"),
    "fit-landmark-offsets": (
        ADDRESS,
        "photos",
        "--source",
        "us",
        "--out",
        "out.safetensors",
    ),
    "label": ("photos", "--weights", ADDRESS),
    "match": ("photo.jpg", "photo.jpg", "--points", "9,9", "--weights", ADDRESS),
    "serve": ("--no-ray", "--port", "18099", "--weights", ADDRESS),
    "train-cascade": ("data", "--out", "cascade.safetensors", "--weights", ADDRESS),
}


class Asked(BadWeights):
    """Raised instead of reading weights."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str | None]]:
    """What weights were asked for, and of which server."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    Image.fromarray(astronaut()).save(tmp_path / "photo.jpg")
    seen: list[tuple[str, str | None]] = []

    def load(path: Path | str, *, endpoint_url: str | None = None, **_: object) -> None:
        seen.append((str(path), endpoint_url))
        raise Asked("not read")

    monkeypatch.setattr(weights, "load", load)
    return seen


@pytest.mark.parametrize("command", COMMANDS)
def test_weights_are_asked_of_the_named_server(
    command: str, asked: list[tuple[str, str | None]]
) -> None:
    result = CliRunner().invoke(app, [command, *COMMANDS[command], "--endpoint-url", ENDPOINT])
    assert isinstance(result.exception, Asked), result.output
    assert asked == [(ADDRESS, ENDPOINT)]


def test_no_command_that_takes_weights_lacks_the_option() -> None:
    group = get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    taking = {
        name
        for name, command in group.commands.items()
        if {"weights", "start"} & {parameter.name for parameter in command.params}
    }
    assert taking == {*COMMANDS, "train", "train-detector"}
    for name in taking:
        assert "endpoint_url" in {parameter.name for parameter in group.commands[name].params}
