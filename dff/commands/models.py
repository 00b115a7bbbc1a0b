"""``dff models``."""

from __future__ import annotations

import typer


def models() -> None:
    """List face models and weights: licence, size, what is installed, and where to get the rest.

    [dim]Example:[/dim] dff models
    """
    from dff.catalogue import list_assets

    rows = [("name", "kind", "licence", "size", "description"), *list_assets()]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        columns = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        typer.echo("  ".join([*columns, row[4]]))
