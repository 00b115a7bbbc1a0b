"""Figures as lines of text."""

from __future__ import annotations

from collections.abc import Mapping

import typer


def echo_figures(figures: Mapping[str, object]) -> None:
    """Print figures by name, one on each line; a figure of several values is a mapping."""
    for name, value in figures.items():
        shown = (
            ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else value
        )
        typer.echo(f"  {name}: {shown}")
