"""Compiled code is kept where it can be, and a user without a home can run everything."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numba
import pytest
from numba.core import config, event
from PIL import Image
from skimage.data import astronaut

from dff.face import numba_cache
from dff.face.private_folder import (
    make_private_folder,
    set_missing_home,
    set_missing_temporary_folder,
)
from tests.compiled_kernels import ROOT, give_to_folder

FOREIGN = ("setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups")


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The temporary folder of a user who can write to none of numba's usual folders."""
    monkeypatch.setattr(numba_cache, "user_cache_dir", lambda name: f"~/.cache/{name}")
    monkeypatch.setattr(config, "CACHE_DIR", "")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_without_a_cache_folder_a_private_temporary_one_is_used(nowhere: Path) -> None:
    assert numba_cache.choose_cache_folder()
    folder = Path(config.CACHE_DIR)
    assert folder.parent == nowhere
    assert folder.stat().st_mode & 0o777 == 0o700
    assert numba_cache.choose_cache_folder()  # the next process uses it again


@pytest.mark.parametrize("mode", [0o777, 0o720])
def test_a_folder_that_others_can_write_is_never_used(
    nowhere: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    make_private_folder("numba").chmod(mode)
    assert not numba_cache.choose_cache_folder()
    assert "compiles again: set NUMBA_CACHE_DIR" in caplog.text
    assert config.CACHE_DIR == ""


def test_a_linked_folder_is_never_used(nowhere: Path, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (nowhere / f"dff-numba-{os.getuid()}").symlink_to(tmp_path / "target")
    with pytest.raises(PermissionError):
        make_private_folder("numba")


def test_usual_cache_folders_stay(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba_cache, "user_cache_dir", lambda name: str(nowhere / "a" / name))
    assert numba_cache.choose_cache_folder()
    assert config.CACHE_DIR == ""
    mine = str(nowhere / "mine")
    monkeypatch.setattr(config, "CACHE_DIR", mine)
    assert numba_cache.choose_cache_folder()
    assert mine == config.CACHE_DIR
    assert not any(nowhere.iterdir())


def test_only_a_missing_home_is_set(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/nonexistent")
    set_missing_home()
    assert os.environ["HOME"] == "/nonexistent"

    def no_home(cls: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", classmethod(no_home))
    set_missing_home()
    assert Path(os.environ["HOME"]) == nowhere / f"dff-home-{os.getuid()}"


def test_only_a_missing_temporary_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = tempfile.gettempdir()
    set_missing_temporary_folder()
    assert tempfile.gettempdir() == usual

    def no_folder() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "tempdir", None)
    with monkeypatch.context() as nothing_writable:
        nothing_writable.setattr(tempfile, "_get_default_tempdir", no_folder)
        set_missing_temporary_folder()
        assert tempfile.gettempdir() == "/dev/shm"
        nothing_writable.setattr(os, "access", lambda path, mode: False)
        tempfile.tempdir = None
        set_missing_temporary_folder()
        assert tempfile.gettempdir() == "/tmp"


def test_every_kernel_asks_whether_there_is_a_cache() -> None:
    for room in ("face", "infra", "pipeline", "trainer", "aligner"):
        for path in (ROOT / room).rglob("*.py"):
            assert "jit(cache=True" not in path.read_text("utf-8"), path


def as_foreign_user(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command under a user id that has no account, home or folder but ``folder``."""
    env = {"PATH": os.environ["PATH"], "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*FOREIGN, *command],
        env=env,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def foreign_folder() -> Iterator[Path]:
    """A folder of the foreign user; the test is skipped where none can be played."""
    if os.getuid() or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv")
    folder = Path(os.path.realpath("/tmp")) / f"dff-foreign-{os.getpid()}"
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    try:
        if as_foreign_user(folder, sys.executable, "-c", "import numpy").returncode:
            pytest.skip("another user can't run this Python")
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.mark.slow
def test_a_foreign_user_without_a_home_can_run_commands(foreign_folder: Path) -> None:
    photo = foreign_folder / "photo.png"
    Image.fromarray(astronaut()).save(photo)
    photo.chmod(0o644)
    kernels = foreign_folder / "dff-numba-12345"
    give_to_folder(kernels)
    for path in kernels.rglob("visibility.*"):  # to be compiled by this user
        path.unlink()
    for path in (kernels, *kernels.rglob("*")):
        os.chown(path, 12345, 12345)
    kernels.chmod(0o700)
    models = as_foreign_user(foreign_folder, sys.executable, "-m", "dff", "models")
    assert models.returncode == 0, models.stderr
    assert "dff-open" in models.stdout
    assert "Traceback" not in models.stderr
    aligned = as_foreign_user(foreign_folder, sys.executable, "-m", "dff", "align", str(photo))
    assert aligned.returncode == 0, aligned.stderr
    assert "confidence" in aligned.stdout
    assert list(kernels.rglob("visibility.*.nbi"))
    tracking = as_foreign_user(
        foreign_folder, sys.executable, "-c", "import dff.infra.mlflow.tracking"
    )
    assert tracking.returncode == 0, tracking.stderr


@pytest.mark.parametrize(
    ("kept", "often"), [(True, "once for each installation"), (False, "in each process")]
)
def test_the_first_compilation_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, kept: bool, often: str
) -> None:
    def add_one(x: float) -> float:
        return x + 1

    assert numba.njit(add_one)(1) == 2  # the process's own listener has logged its first
    monkeypatch.setattr(numba_cache, "CACHE", kept)
    caplog.set_level(logging.INFO, numba_cache.__name__)
    caplog.clear()
    with event.install_listener("numba:compile", numba_cache.CompilationLog()):
        kernel = numba.njit(add_one)
        assert kernel(1.0) == 2.0
        assert kernel(1) == 2  # another compilation
    assert caplog.text.count(f"compiling kernels for this CPU: {often}") == 1
