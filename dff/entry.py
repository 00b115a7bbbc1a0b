"""The ``dff`` command, from the first import on."""

from __future__ import annotations

import sys

from dff.exit_status import INTERRUPTED


def main() -> None:
    """Run the command; an interrupt is one line on standard error while it is imported, too."""
    try:
        from dff.commands.app import main as run  # takes up to a second

        run()
    except KeyboardInterrupt:
        sys.stderr.write("dff: interrupted\n")
        raise SystemExit(INTERRUPTED) from None
