"""Environments of their own for programs that ours is compared with."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path


def install(package: str, folder: Path) -> Path | None:
    """The Python of an environment in ``folder`` with a package of PyPI.

    None, with the reason printed, where the package can't be installed.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    try:
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", package],
            check=True,
            capture_output=True,
            text=True,
        )
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"{package} can't be installed, so only this program is measured: {last}")
        return None
    return python
