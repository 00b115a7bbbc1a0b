from __future__ import annotations

import subprocess
from pathlib import Path

from dff.face.render.gl import PACKAGES

SCRIPT = Path(__file__).parents[2] / "scripts" / "install_system_packages.sh"


def test_the_script_installs_what_the_renderer_names() -> None:
    assert f"packages+=({' '.join(PACKAGES)})" in SCRIPT.read_text()


def test_without_the_right_to_install_it_names_the_packages_and_goes_on(tmp_path: Path) -> None:
    """A PATH without apt-get and sudo, and a Python that finds no library: what a bare machine
    looks like.
    """
    python = tmp_path / "python3.11"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    for tool in ("bash", "id", "basename", "readlink"):
        (tmp_path / tool).symlink_to(Path("/usr/bin") / tool)
    done = subprocess.run(
        ["/bin/bash", str(SCRIPT), str(python)],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    for name in (*PACKAGES, "python3.11-venv"):
        assert name in done.stderr
