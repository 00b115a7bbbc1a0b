"""The wheel in an environment that holds nothing but what it demands: no extra, no source tree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from importlib.metadata import Distribution, distribution
from pathlib import Path

import cv2
import pytest
import skimage.data
import typer.main
from packaging.requirements import Requirement

from dff.commands.app import app
from tests.compiled_kernels import ROOMS, ROOT, give_to_package

WITHOUT_EXTRA = {"align", "label", "match", "models"}
NEED_EXTRA = {
    ("demo", "--out", "out"): "all",
    ("synthesize", "photos", "data"): "synthesis",
    ("inspect", "data"): "synthesis",
    ("submit", "synthesize", "photos", "data", "--address", "http://head:8265"): "synthesis",
    ("status", "data"): "synthesis",
    ("jobs", "--address", "http://head:8265"): "synthesis",
    ("models", "promote", "candidate", "champion", "--tracking", "http://mlflow"): "train",
    ("train", "data", "--out", "w.safetensors"): "train",
    ("train-cascade", "data", "--out", "c.safetensors"): "train",
    ("train-detector", "data", "--out", "d.safetensors"): "train",
    ("calibrate", "dff-open", "data"): "train",
    ("fit-expressions", "dff-open", "data"): "train",
    ("fit-landmark-offsets", "dff-open", "photos", "--source", "me"): "train",
    ("evaluate", "300w", "photos"): "train",
    ("evaluate", "matching", "data"): "train",
    ("serve",): "serve",
    ("export", "net.onnx"): "onnx",
    ("label", "s3://bucket/photos"): "s3",
    ("align", "film.mp4"): "video",
    ("align", "photos/a.png", "--weights", "models:/dff@best"): "train",
}
"""Commands, with the extra that each needs and names."""

RUN_COMMANDS = """
import contextlib, io, json, sys
from dff.commands.app import main
for line in json.loads(sys.argv[1]):
    sys.argv = ["dff", *line]
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        try:
            status = main() or 0
        except SystemExit as stop:
            status = stop.code
    print(json.dumps([line, status, errors.getvalue()]))
"""


def metadata_of(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [one for one in archive.namelist() if one.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


def needed(requirements: list[str]) -> dict[str, Distribution]:
    """The installed distributions that requirements lead to, directly or not, by name."""
    found: dict[str, Distribution] = {}
    queue = [(line, "") for line in requirements]
    seen = set(queue)
    while queue:
        line, extra = queue.pop()
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            found[requirement.name] = dist = distribution(requirement.name)
            lines = {
                (one, asked) for one in dist.requires or [] for asked in {"", *requirement.extras}
            }
            queue += lines - seen
            seen |= lines
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built from a copy: setuptools packs what earlier builds have left."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for room in ROOMS:
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", str(folder), str(source)], check=True, cwd=folder)
    (path,) = folder.glob("deep_face_feature-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel and the distributions that it demands.

    These are links to the ones of this environment: nothing is downloaded.
    """
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv/bin/python"
    site = next((folder / "venv/lib").glob("python*/site-packages"))
    for dist in needed(metadata_of(wheel).get_all("Requires-Dist") or []).values():
        for top in {file.parts[0] for file in dist.files or [] if file.parts[0] != ".."}:
            here = Path(str(dist.locate_file(top)))
            if here.exists() and not (site / top).exists():
                (site / top).symlink_to(here)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-index"]
    subprocess.run([*pip, "--no-deps", str(wheel)], check=True, cwd=folder)
    give_to_package(site / "dff")
    (folder / "photos").mkdir()
    (folder / "data").mkdir()
    photo = cv2.cvtColor(skimage.data.astronaut(), cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(folder / "photos/a.png"), photo)
    (folder / "film.mp4").write_bytes(b"\0\0\0\x18ftypisom")
    return folder


def run(installed: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PYTHON", "AWS_", "MLFLOW_"))
    }
    return subprocess.run(
        [str(installed / "venv/bin" / command[0]), *command[1:]],
        cwd=installed,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_the_wheel_carries_every_file_that_the_program_reads(wheel: Path) -> None:
    carried = set(zipfile.ZipFile(wheel).namelist())
    listed = subprocess.run(["git", "ls-files", *ROOMS], cwd=ROOT, capture_output=True, check=True)
    names = listed.stdout.decode().splitlines()
    files = [Path(name) for name in names if (ROOT / name).exists()]
    assert len(files) > 100
    for path in files:
        if path.parts[:2] in (("infra", "docker"), ("infra", "k8s")):
            continue
        name = path if path.parts[0] == "dff" else Path("dff") / path
        assert name.as_posix() in carried
    assert "dff/py.typed" in carried
    tops = {name.split("/")[0] for name in carried}
    assert tops == {"dff", next(top for top in tops if top.endswith(".dist-info"))}


def test_the_licence_is_true_of_all_that_the_wheel_carries(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        cards = [one for one in archive.namelist() if one.startswith("dff/infra/data/")]
        assert not [one for one in archive.namelist() if "research" in Path(one).name]
        for card in cards:
            if card.endswith(".md"):
                assert "| licence | CC0-1.0 AND MIT |" in archive.read(card).decode()
    metadata = metadata_of(wheel)
    assert metadata["License-Expression"] == "Apache-2.0 AND CC0-1.0 AND MIT"
    assert metadata["Requires-Python"] == "<3.14,>=3.11"
    extras = {"all", "gl", "heif", "models", "onnx", "s3", "serve", "synthesis", "train", "video"}
    assert extras <= set(metadata.get_all("Provides-Extra") or [])


@pytest.mark.slow
def test_without_an_extra_a_photo_is_aligned(installed: Path) -> None:
    outputs = ["--json", "a.jsonl", "--draw", "drawn.png", "--mesh", "face.glb"]
    code = f"""
import sys, dff
print(dff.__file__, dff.load_aligner().model.name)
from dff.commands.app import main
sys.argv = {["dff", "align", "photos/a.png", *outputs]}
main()
"""
    done = run(installed, "python", "-c", code)
    assert done.returncode == 0, done.stderr
    (answer,) = (installed / "a.jsonl").read_text().splitlines()
    assert len(json.loads(answer)["faces"][0]["landmarks_2d"]) == 68
    assert (installed / "drawn.png").stat().st_size
    assert (installed / "face.glb").stat().st_size
    place, name = done.stdout.splitlines()[0].split()
    assert place.startswith(str(installed))
    assert name == "open-head"


@pytest.mark.slow
def test_every_command_names_the_extra_that_it_lacks(installed: Path) -> None:
    group = typer.main.get_command(app)
    needing = {line[0] for line in NEED_EXTRA}
    assert needing | WITHOUT_EXTRA == set(group.commands)  # type: ignore[attr-defined]
    done = run(installed, "python", "-c", RUN_COMMANDS, json.dumps(list(NEED_EXTRA)))
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [tuple(line) for line, _, _ in answers] == list(NEED_EXTRA)
    for (line, status, errors), extra in zip(answers, NEED_EXTRA.values(), strict=True):
        assert status == 1, (line, status, errors)
        assert len(errors.splitlines()) == 1, (line, errors)
        assert f"pip install 'deep-face-feature[{extra}]'" in errors, (line, errors)
    alone = run(installed, "dff", "serve")
    assert (alone.returncode, len(alone.stderr.splitlines())) == (1, 1)
    assert "deep-face-feature[serve]" in alone.stderr
