"""Where the jobs of these tests write, and where their work says what it did."""

from __future__ import annotations

from pathlib import Path

import pytest

from dff.infra.storage import Storage, open_storage


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.mkdir()
    return path


@pytest.fixture
def out(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "out"))
