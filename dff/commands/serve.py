"""``dff serve``."""

from __future__ import annotations

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
            help="Copies of the aligner: a number, a range as 2:8 within which Ray Serve adds some "
            "on demand, or auto, for up to one on each core."
        ),
    ] = "1",
    cpus: Annotated[
        int,
        typer.Option(
            help="Cores of each replica. Replicas with one core answer most photos per second.",
            min=1,
        ),
    ] = 1,
    gpus: Annotated[
        float,
        typer.Option(
            help="GPUs of each replica, also a share of one, as 0.5; the network runs there.", min=0
        ),
    ] = 0,
    ray: Annotated[
        bool,
        typer.Option(
            "--ray/--no-ray",
            help="Ray Serve with its replicas, or one process under uvicorn that starts sooner.",
        ),
    ] = True,
    origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Web pages of this origin, as https://example.org, may use the service; * for "
            "all. Repeat it for several. Default: only the service's own page."
        ),
    ] = None,
    root_path: Annotated[
        str,
        typer.Option(help="Prefix under which a proxy shows the service, as /faces."),
    ] = "",
    api_keys: Annotated[
        Path | None,
        typer.Option(
            help="File of API keys, one a line: /v1 and /metrics need one of them. Also "
            "DFF_API_KEYS, separated by commas. Default: everybody may ask."
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
            help="NAME=WEIGHTS: other weights beside --weights, which answer requests with "
            "weights=NAME. Repeat it for several."
        ),
    ] = None,
    poll: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            help="Seconds between questions to MLflow which version the alias of --weights "
            "models:/NAME@ALIAS names; another one is loaded without a restart.",
        ),
    ] = None,
    preset: PresetOption = AlignPreset.balanced,
) -> None:
    """Serve the aligner over HTTP with Ray Serve: a web page at /, the API described at /docs.

    POST /v1/align takes one photo, /v1/align/batch several, /v1/align/person several of one person.

    [dim]Example:[/dim]

    dff serve --port 8000

    curl -F image=@photo.jpg http://127.0.0.1:8000/v1/align
    """
    with require_extra("serve"):
        from dff.aligner.service.front import FrontConfig
        from dff.aligner.service.keys import read_keys
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

    def tell(url: str) -> None:
        typer.echo(f"serving at {url}/ (stop with Ctrl-C)")

    if not ray:
        from dff.aligner.service.uvicorn_server import serve_aligner_with_uvicorn

        if replicas != "1" or address or gpus:
            raise typer.BadParameter("--replicas, --gpus and --address need Ray")
        serve_aligner_with_uvicorn(server, on_ready=tell)
        return
    from dff.aligner.service.ray_serve import serve_aligner
    from dff.infra.crash_report import SERVICE_GONE, reported_crashes

    with reported_crashes(SERVICE_GONE):
        serve_aligner(server, ReplicaConfig(replicas, gpus, address), on_ready=tell)


def parse_named(texts: list[str]) -> dict[str, str]:
    """Weights by name, of texts NAME=WEIGHTS. Raises BadParameter."""
    found = {}
    for text in texts:
        name, _, weights = text.partition("=")
        if not name or not weights or name == "default":
            raise typer.BadParameter(f"--also takes NAME=WEIGHTS, and not {text!r}")
        found[name] = weights
    return found
