"""The code's version covers exactly what decides a row."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dff.pipeline import synthesis
from dff.pipeline.job.versions import ROOT, ROW_MAKER, code_version, find_row_code
from dff.pipeline.job.work import WorkSpec

ROOMS = ("face", "infra", "pipeline")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the sources that a test may change."""
    for room in ROOMS:
        for path in (ROOT / room).rglob("*"):
            if path.suffix in (".py", ".glsl", ".toml", ".png"):
                target = tmp_path / path.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
    return tmp_path


def digest(tree: Path) -> str:
    return find_row_code(tree, ROW_MAKER).digest()


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_code_version_names_the_release() -> None:
    assert code_version() == f"0.1.0+{find_row_code(ROOT, ROW_MAKER).digest()[:12]}"


def test_the_row_maker_is_the_function_that_workers_call() -> None:
    module, _, name = ROW_MAKER.partition(":")
    assert module == synthesis.__name__
    assert callable(getattr(synthesis, name))
    assert WorkSpec.create(ROW_MAKER).factory == ROW_MAKER


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("face/render/frame.py", "HIDDEN_DEPTH = 0.004", "HIDDEN_DEPTH = 0.005"),
        ("pipeline/scene/views.py", "import numpy as np", "import numpy as np\n\nEXTRA = 1"),
        ("face/render/shaders/ids.vert.glsl", "void main", "void  main"),
        ("pipeline/synthesis.py", "views: int = 20", "views: int = 21"),  # a field of Options
    ],
)
def test_a_change_that_may_change_rows_changes_the_version(
    tree: Path, file: str, old: str, new: str
) -> None:
    before = digest(tree)
    replace(tree / file, old, new)
    assert digest(tree) != before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("face/render/frame.py", "from __future__", "# A comment.\nfrom __future__"),
        ("face/render/frame.py", '"""', '"""Another docstring. '),
        ("face/render/frame.py", "HIDDEN_DEPTH = 0.004", "HIDDEN_DEPTH = (\n    0.004\n)"),
        ("pipeline/inspection/gallery.py", "import cv2", "import cv2\n\nEXTRA = 1"),
        ("pipeline/job/ray.py", "straggler_ratio: float = 3.0", "straggler_ratio: float = 4.0"),
        ("pipeline/synthesis.py", "class Summary:", "class Summary:\n    extra: int\n"),
    ],
)
def test_a_change_that_changes_no_row_leaves_the_version(
    tree: Path, file: str, old: str, new: str
) -> None:
    before = digest(tree)
    replace(tree / file, old, new)
    assert digest(tree) == before


def test_all_packages_that_decide_a_row_are_covered_and_no_other() -> None:
    code = find_row_code(ROOT, ROW_MAKER)
    modules = {path.relative_to(ROOT).as_posix() for path in code.modules}
    assert {"face/render/frame.py", "infra/datasets/split.py", "face/render/kernels.py"} <= modules
    for folder in ("recovery", "accessories", "subjects", "scene"):
        files = {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / "pipeline" / folder).glob("[a-z]*.py")
        }
        assert files <= modules
    assert not [
        name for name in modules if name.startswith(("pipeline/inspection", "infra/cluster"))
    ]
    assert not {"pipeline/job/run.py", "pipeline/job/ledger.py", "pipeline/job/ray.py"} & modules


def test_every_data_file_of_the_pipeline_is_covered() -> None:
    files = [path for path in (ROOT / "pipeline").glob("*/data/*") if path.is_file()]
    assert set(files) <= set(find_row_code(ROOT, ROW_MAKER).data)


def test_a_missing_module_is_an_error() -> None:
    with pytest.raises(FileNotFoundError, match=r"no module dff\.pipeline\.absent"):
        find_row_code(ROOT, "dff.pipeline.absent:make")
