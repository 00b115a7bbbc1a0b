"""Where compiled kernels are kept: they are declared with ``@numba.njit(cache=CACHE)``.

The first process of an installation compiles them, which it logs at level INFO.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from numba.core import config, event
from numba.misc.appdirs import user_cache_dir

from dff.face.private_folder import make_private_folder

_log = logging.getLogger(__name__)


def choose_cache_folder() -> bool:
    """Give numba a cache folder that can be written; False where there is none.

    numba writes to ``NUMBA_CACHE_DIR``, beside the source, or to the user's cache folder, and fails
    where it can write to none of them, for example in a container with a read-only root. Then the
    cache lies in the temporary folder, closed to other users because numba executes what it reads.
    Warns where that can't be written either.
    """
    home = Path(user_cache_dir("numba"))  # begins with "~" for a user who has no home
    if config.CACHE_DIR and _is_writable(Path(config.CACHE_DIR)):
        return True
    if home.is_absolute() and _is_writable(home):
        return True
    try:
        config.CACHE_DIR = str(make_private_folder("numba"))
    except OSError as error:
        _log.warning(
            "compiled code can't be kept (%s), so each process compiles again: set NUMBA_CACHE_DIR "
            "or TMPDIR to a folder that can be written",
            error,
        )
        return False
    return True


def _is_writable(folder: Path) -> bool:
    """Whether files can be made in ``folder``, which may not exist yet."""
    existing = folder.absolute()
    while not os.path.exists(existing):
        existing = existing.parent
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


class CompilationLog(event.Listener):
    """Logs the first compilation of the process; kernels that are read from the cache are none."""

    logged = False

    def on_start(self, event: event.Event) -> None:
        if not self.logged:
            self.logged = True
            often = "once for each installation" if CACHE else "in each process"
            _log.info("compiling kernels for this CPU: %s, up to a minute", often)

    def on_end(self, event: event.Event) -> None:
        pass


event.register("numba:compile", CompilationLog())
CACHE = choose_cache_folder()
