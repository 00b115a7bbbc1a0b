"""Options and arguments that several commands share."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dff.aligner.preset import AlignPreset

if TYPE_CHECKING:
    from dff.aligner.align import Aligner
    from dff.infra.storage import S3Access


_SHARE = re.compile(r"[0-9]*\.?[0-9]+")


class Method(StrEnum):
    """How a face is fitted."""

    dense = "dense"
    cascade = "cascade"


DatasetArgument = Annotated[
    str, typer.Argument(help="Folder or s3://bucket/prefix of a finished dataset.")
]
WeightsArgument = Annotated[
    str,
    typer.Argument(
        help="Weights: a .safetensors file, also s3://bucket/key, or a name from `dff models`."
    ),
]
EndpointOption = Annotated[
    str | None,
    typer.Option(
        "--endpoint-url",
        envvar="AWS_ENDPOINT_URL",
        help="Address of an S3 server other than AWS.",
    ),
]
AnonymousOption = Annotated[
    bool,
    typer.Option("--anonymous", help="Read public S3 buckets without credentials."),
]
RequestPayerOption = Annotated[
    bool,
    typer.Option("--request-payer", help="Accept the charges of a requester-pays bucket."),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="Ray cluster: host:port of its head, ray://host:port, or auto. Default: this machine.",
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights",
        "-w",
        help="Weights: a .safetensors file, also s3://bucket/key, a name from `dff models`, or "
        "models:/NAME@ALIAS of MLflow (MLFLOW_TRACKING_URI, or runs/mlflow.db here). Default: the "
        "shipped dff-open.",
    ),
]
MethodOption = Annotated[
    Method,
    typer.Option(
        "--method",
        help="dense: fit the face model to soft correspondences of all pixels. cascade: linear "
        "regressors on the descriptors at the landmarks, as in the paper.",
    ),
]
CascadeOption = Annotated[
    Path | None,
    typer.Option(
        "--cascade",
        help="With --method cascade: a file of `dff train-cascade`. Default: the shipped one.",
    ),
]
PresetOption = Annotated[
    AlignPreset,
    typer.Option(
        "--preset",
        help="fast: one iteration, and no search for small or turned faces. balanced: at most two "
        "iterations. best: at most five iterations on more pixels.",
    ),
]
JsonOption = Annotated[
    Path | None, typer.Option("--json", help="Write all figures to this JSON file.")
]
RewriteOption = Annotated[
    str | None,
    typer.Option(
        "--out",
        help="The weights file to write, also s3://bucket/key. Default: WEIGHTS itself, unless it "
        "is a name of shipped ones.",
    ),
]
TrackingOption = Annotated[
    str | None, typer.Option("--tracking", help="MLflow tracking URI to log the run to.")
]


def choose_destination(weights: str, out: str | None) -> str:
    """Where weights are rewritten to. Raises BadParameter where that would be a shipped file."""
    from dff.infra.networks.weights_names import NAMED

    if out is None and weights in NAMED:
        raise typer.BadParameter(f"{weights} comes with the program: give --out for the new file")
    return out or weights


def parse_bytes(text: str | int) -> int:
    """Bytes of a size such as 20GB, 500MB or 1.5TB. Raises BadParameter for anything else."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kMGT]?)i?B?\s*", str(text), re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise typer.BadParameter(f"{text!r} is no size such as 20GB or 500MB")
    power = ("", "k", "m", "g", "t").index(match[2].lower())
    return int(float(match[1]) * 1000**power)


def split_share(text: str) -> tuple[str, float]:
    """A dataset and its share: ``data/:0.7``; 1 without a share. Raises BadParameter."""
    place, colon, share = text.rpartition(":")
    if not colon or not place or not _SHARE.fullmatch(share) or Path(text).exists():
        return text, 1.0
    if float(share) <= 0:
        raise typer.BadParameter(f"{text}: the share of a dataset must be positive")
    return place, float(share)


def load_aligner_for(
    weights: str | None,
    method: Method,
    cascade: Path | None,
    preset: AlignPreset,
    endpoint_url: str | None,
    access: S3Access,
) -> Aligner:
    """The aligner that fits by ``method``; libraries compute with one thread from then on.

    Raises BadParameter for options that exclude each other, BadWeights as
    ``dff.aligner.load.load_aligner``.
    """
    from dff.aligner.threads import use_threads

    # More threads gain nothing for single photos, and spin where other programs take the cores:
    # three photos of one person took 12 to 33 s instead of 5.5.
    use_threads(1)
    if method is Method.dense:
        from dff.aligner.load import load_aligner

        if cascade:
            raise typer.BadParameter("--cascade needs --method cascade")
        return load_aligner(weights, preset=preset, endpoint_url=endpoint_url, access=access)
    from dff.aligner.cascade.io import load_cascade_aligner

    return load_cascade_aligner(
        weights, cascade, preset=preset, endpoint_url=endpoint_url, access=access
    )
