"""``dff serve``."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Annotated

import typer

from dff.aligner.preset import AlignPreset
from dff.commands.options import (
    AddressOption,
    AnonymousOption,
    EndpointOption,
    PresetOption,
    RequestPayerOption,
    WeightsOption,
)
from dff.face.extras import require_extra


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    replicas: Annotated[
        str,
        typer.Option(
            help="Copies of the aligner: a number; a range such as 2:8, within which Ray Serve "
            "follows the load; or auto, for up to one per core."
        ),
    ] = "1",
    cpus: Annotated[
        int,
        typer.Option(
            help="Cores per replica. One core gives the highest throughput per core.",
            min=1,
        ),
    ] = 1,
    gpus: Annotated[
        float,
        typer.Option(help="GPUs per replica, or a fraction such as 0.5, for the network.", min=0),
    ] = 0,
    ray: Annotated[
        bool,
        typer.Option(
            "--ray/--no-ray",
            help="Use Ray Serve with replicas, or one process under uvicorn, which starts sooner.",
        ),
    ] = True,
    origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Allow web pages of this origin, such as https://example.org; * allows all; "
            "repeatable. Default: only the page of the service."
        ),
    ] = None,
    root_path: Annotated[
        str,
        typer.Option(help="Prefix under which a proxy exposes the service, such as /faces."),
    ] = "",
    api_keys: Annotated[
        Path | None,
        typer.Option(
            help="File of API keys, one per line, one of which /v1 and /metrics require. Also "
            "DFF_API_KEYS, separated by commas. Default: no key is required."
        ),
    ] = None,
    address: AddressOption = None,
    weights: WeightsOption = None,
    endpoint_url: EndpointOption = None,
    anonymous: AnonymousOption = False,
    request_payer: RequestPayerOption = False,
    also: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=WEIGHTS: additional weights, which serve requests with weights=NAME; "
            "repeatable."
        ),
    ] = None,
    poll: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            help="With --weights models:/NAME@ALIAS: seconds between checks whether the alias "
            "names another version in MLflow, which is then loaded without a restart.",
        ),
    ] = None,
    preset: PresetOption = AlignPreset.balanced,
) -> None:
    """Serve the aligner over HTTP with Ray Serve: a web page at /, the API documentation at /docs.

    POST /v1/align takes one photo, /v1/align/batch several, /v1/align/person several of one person.

    [dim]Example:[/dim]

    dff serve --port 8000

    curl -F image=@photo.jpg http://127.0.0.1:8000/v1/align
    """
    with require_extra("serve"):
        from dff.aligner.service.http.front import FrontConfig
        from dff.aligner.service.http.keys import read_keys
        from dff.aligner.service.server_config import ReplicaConfig, ServerConfig
    from dff.infra.storage import S3Access

    server = ServerConfig(
        weights=weights,
        also=parse_named(also or []),
        preset=preset,
        poll=poll,
        endpoint_url=endpoint_url,
        access=S3Access(anonymous, request_payer),
        host=host,
        port=port,
        front=FrontConfig(
            origins=tuple(origin or ()), root_path=root_path, keys=read_keys(api_keys)
        ),
        cpus=cpus,
    )

    if not isfinite(gpus):
        raise typer.BadParameter("--gpus is a number of GPUs")

    def tell(url: str) -> None:
        typer.echo(f"serving at {url}/ (stop with Ctrl-C)")

    if not ray:
        from dff.aligner.service.uvicorn_server import serve_aligner_with_uvicorn

        if replicas != "1" or address or gpus:
            raise typer.BadParameter("--replicas, --gpus and --address need Ray")
        serve_aligner_with_uvicorn(server, on_ready=tell)
        return
    from dff.aligner.service.ray_serve import serve_aligner
    from dff.infra.clusters.crash_report import SERVICE_GONE, reported_crashes

    with reported_crashes(SERVICE_GONE):
        serve_aligner(server, ReplicaConfig(replicas, gpus, address), on_ready=tell)


def parse_named(texts: list[str]) -> dict[str, str]:
    """Weights by name, of texts NAME=WEIGHTS. Raises BadParameter."""
    found: dict[str, str] = {}
    for text in texts:
        name, _, weights = text.partition("=")
        if not name or not weights or name == "default":
            raise typer.BadParameter(f"--also takes NAME=WEIGHTS, and not {text!r}")
        if name in found:
            raise typer.BadParameter(f"--also names {name!r} twice")
        found[name] = weights
    return found
