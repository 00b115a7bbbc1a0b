"""The Python code of README and guide runs, and the commands that they show exist."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
import typer
from PIL import Image

from dff.commands.app import app
from dff.commands.submit import Submittable
from dff.demo.photograph import write_photograph

ROOT = Path(__file__).parents[2]
# In this order: `synthesize.md` makes the dataset that `inspect.md` reads.
GUIDE = [
    ROOT / "docs" / "guide" / f"{name}.md"
    for name in (
        "index",
        "install",
        "align",
        "match",
        "serve",
        "label",
        "synthesize",
        "inspect",
        "train",
        "evaluate",
        "clusters",
        "face-models",
        "export",
        "troubleshooting",
    )
]
CARDS = sorted(ROOT.glob("infra/data/*.md")) + sorted(ROOT.glob("weights/**/*.md"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *CARDS]
NAMING = [*PAGES, ROOT / "ARCHITECTURE.md"]  # pages that name files
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir()}


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.S)


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Each ``dff COMMAND`` of a code block or between backticks, with its options."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    lines = re.findall(r"^(?:    )?dff ([a-z].*)$", text, re.M)
    lines += re.findall(r"`dff\s+([a-z][^`]*)`", text)
    for line in lines:
        name, *words = shlex.split(line, comments=True)
        yield name, [word.partition("=")[0] for word in words if word.startswith("-")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that the guide reads."""
    photo = write_photograph(tmp_path / "photos")
    (tmp_path / "photos" / "astronaut.pts").unlink()
    Image.fromarray(photo).save(tmp_path / "photo.jpg")
    size = (photo.shape[1], photo.shape[0])
    film = cv2.VideoWriter(str(tmp_path / "film.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 25.0, size)
    for _ in range(2):
        film.write(cv2.cvtColor(photo, cv2.COLOR_RGB2BGR))
    film.release()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_guide_has_all_its_pages_in_order() -> None:
    assert set(GUIDE) == set((ROOT / "docs" / "guide").glob("*.md"))


@pytest.mark.slow
def test_the_python_of_readme_and_guide_runs(
    folder: Path, exported_net: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(exported_net, folder / "dff-open.onnx")
    names: dict[str, dict[str, object]] = {}
    for page in (ROOT / "README.md", ROOT / "docs" / "index.md", *GUIDE, *CARDS):
        own = names[page.as_posix()] = {}
        for block in blocks(page):
            exec(compile(block, str(page), "exec"), own)
    align = names[(ROOT / "docs" / "guide" / "align.md").as_posix()]
    assert len(align["faces"]) == 1  # type: ignore[arg-type]
    assert len(align["dense"]) == 5934  # type: ignore[arg-type]
    # The pixel in the middle of a face and the middle of its mirror image show points equally far
    # from the midline.
    assert abs(align["row"] - 40) <= 4  # type: ignore[operator]
    assert (folder / "face.glb").read_bytes()[:4] == b"glTF"
    assert "labelled" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_and_options_of_the_pages_exist(page: Path) -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, options in commands(page):
        assert name in known
        flags = {flag for p in known[name].params for flag in (*p.opts, *p.secondary_opts)}
        inner = list(known[name].commands.values()) if name == "models" else []
        if name == "submit":
            inner = [known[command] for command in Submittable]
        flags |= {flag for each in inner for p in each.params for flag in p.opts}
        assert set(options) <= flags, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target, heading in re.findall(
        r"\]\((?!http)([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text("utf-8")
    ):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        if heading:
            assert heading in headings(linked), f"{target}#{heading}"


@pytest.mark.parametrize("page", NAMING, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_source_files_and_benchmarks_of_the_pages_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    for path in re.findall(r"`((?:\w+/)+\w*(?:\.py)?)`", text):
        if path.split("/")[0] in FOLDERS:
            assert (ROOT / path).exists(), path
    for name in re.findall(r"python -m benchmarks\.(\w+)", text):
        assert (ROOT / "benchmarks" / f"{name}.py").exists(), name


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs name them."""
    return {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.M)
    }


def test_the_readme_is_short_and_its_lines_and_those_of_the_guide_are_narrow() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 120
    for page in (ROOT / "README.md", *GUIDE):
        for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
            assert len(line) <= 100, f"{page.name}:{number}"
