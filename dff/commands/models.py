"""``dff models`` and its subcommands."""

from __future__ import annotations

from typing import Annotated

import typer

from dff.face.extras import require_extra

models = typer.Typer(invoke_without_command=True, rich_markup_mode="rich")


@models.callback()
def list_models(context: typer.Context) -> None:
    """List face models and weights: licence, size, whether installed, where to get the others.

    [dim]Example:[/dim] dff models
    """
    if context.invoked_subcommand is not None:
        return
    from dff.catalogue import list_assets

    rows = [("name", "kind", "licence", "size", "description"), *list_assets()]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        columns = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        typer.echo("  ".join([*columns, row[4]]))


@models.command()
def promote(
    source: Annotated[str, typer.Argument(help="Alias of the version to promote.")],
    target: Annotated[str, typer.Argument(help="Alias to give it.")],
    tracking: Annotated[
        str | None,
        typer.Option(
            envvar="MLFLOW_TRACKING_URI",
            help="MLflow tracking URI. Default: runs/mlflow.db in the current folder, as of "
            "`dff train`.",
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="Name of the registered model.")] = "dff-descriptor",
    unevaluated: Annotated[
        bool, typer.Option("--unevaluated", help="Promote a version without any evaluation.")
    ] = False,
) -> None:
    """Give a registered version another alias in MLflow, after `dff evaluate`.

    Servers that load models:/dff-descriptor@champion then load this version.

    [dim]Example:[/dim]

    dff evaluate 300w photos/ --weights models:/dff-descriptor@candidate --tracking http://mlflow

    dff models promote candidate champion --tracking http://mlflow
    """
    with require_extra("train"):
        from dff.infra.mlflow import tracking as runs

    done = runs.promote(model, source, target, tracking_uri=tracking, unevaluated=unevaluated)
    before = f", before: version {done.before}" if done.before else ""
    typer.echo(f"{model} version {done.version} is {target}{before}")
    for protocol in sorted(done.evaluations | done.evaluations_before):
        now, then = (
            table.get(protocol, "not evaluated")
            for table in (done.evaluations, done.evaluations_before)
        )
        typer.echo(f"  {protocol}: {now}" + (f", before: {then}" if done.before else ""))
