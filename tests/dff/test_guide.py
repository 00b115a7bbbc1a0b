"""The guide's Python runs as it stands, and the commands and options that it names exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from PIL import Image

from dff.commands.app import app
from dff.demo.photograph import write_photograph

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "infra" / "data").glob("*.md")),
]
ELSEWHERE = (
    "VideoCapture",
    "onnxruntime",
)  # wants a camera; the export is tested in tests/infra/test_onnx_file.py


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.S)


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Each indented ``dff COMMAND`` of a page with its options."""
    for line in re.findall(r"^    (?:.*; )?dff ([a-z].*)$", page.read_text("utf-8"), re.M):
        name, *words = line.partition("   #")[0].split()
        yield name, [word.partition("=")[0] for word in words if word.startswith("-")]


def test_the_guides_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(write_photograph(tmp_path / "photos")).save(tmp_path / "photo.jpg")
    (tmp_path / "photos" / "astronaut.pts").unlink()
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks(ROOT / "docs" / "guide" / "index.md"):
        if not any(word in block for word in ELSEWHERE):
            exec(compile(block, "guide.md", "exec"), names)
    assert len(names["faces"]) == 1  # type: ignore[arg-type]
    assert len(names["dense"]) == 5934  # type: ignore[arg-type]
    # The pixel in the middle of a face and the middle of its mirror image show points equally far
    # from the midline.
    assert abs(names["there"][0] - 40) <= 4  # type: ignore[index]
    assert (tmp_path / "face.glb").read_bytes()[:4] == b"glTF"
    assert "labelled" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_of_the_pages_exist(page: Path) -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, options in commands(page):
        assert name in known
        flags = {flag for p in known[name].params for flag in (*p.opts, *p.secondary_opts)}
        if name == "submit":
            flags |= {
                flag for c in ("synthesize", "train") for p in known[c].params for flag in p.opts
            }
        assert set(options) <= flags


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]*)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), target
    headings = {
        re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-")
        for h in re.findall(r"^#+ (.*)$", text, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= headings
