"""``dff export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dff.commands.options import (
    AnonymousOption,
    EndpointOption,
    RequestPayerOption,
    WeightsOption,
)
from dff.face.extras import require_extra


def export(
    out: Annotated[Path, typer.Argument(help="The .onnx file to write.")],
    weights: WeightsOption = None,
    endpoint_url: EndpointOption = None,
    anonymous: AnonymousOption = False,
    request_payer: RequestPayerOption = False,
) -> None:
    """Export the descriptor network as an ONNX file, for programs without torch.

    [dim]Example:[/dim] dff export dff-open.onnx
    """
    from dff.files.outputs import check_suffix
    from dff.infra.files import check_output_file
    from dff.infra.networks import weights as weights_files
    from dff.infra.storage import S3Access

    check_output_file(out)
    check_suffix(out, (".onnx",))
    loaded = weights_files.load(
        weights or weights_files.DEFAULT,
        endpoint_url=endpoint_url,
        access=S3Access(anonymous, request_payer),
    )
    with require_extra("onnx"):
        from dff.infra.networks import onnx_file

        onnx_file.export(loaded, out)
    typer.echo(
        f"{out.resolve()}: image (B, 3, H, W) in 0..1 to descriptor and face_logit at half the size"
    )
