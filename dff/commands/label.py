"""``dff label``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dff.commands.options import (
    AnonymousOption,
    EndpointOption,
    RequestPayerOption,
    WeightsOption,
)

if TYPE_CHECKING:
    from dff.infra.storage import Storage
    from dff.pipeline.recovery.photos import PhotoListing


def label(
    photos: Annotated[
        str, typer.Argument(help="Folder or s3://bucket/prefix of images, with any subfolders.")
    ],
    confidence: Annotated[
        float,
        typer.Option(help="Lowest face confidence at which landmarks are written.", min=0, max=1),
    ] = 0.8,
    workers: Annotated[
        int,
        typer.Option(help="Photos in parallel: some are read while others are aligned.", min=1),
    ] = 1,
    card: Annotated[
        bool,
        typer.Option(
            "--card",
            help="Also write README.md (a Hugging Face card) and croissant.json beside the photos, "
            "if they are missing.",
        ),
    ] = False,
    weights: WeightsOption = None,
    endpoint_url: EndpointOption = None,
    anonymous: AnonymousOption = False,
    request_payer: RequestPayerOption = False,
) -> None:
    """Label photos: write a .pts file of landmarks beside each, for `dff synthesize`.

    The face with the highest confidence is labelled, with a warning if a photo shows several.
    Photos that have a .pts or .mat file are skipped, so an interrupted command can be run again.
    Near-duplicates among the photos are reported at the end.

    Exit status: 0 if every photo was read, whether or not a face was found; 1 if a photo could not
    be read or the command failed; 2 for arguments that no machine could run.

    [dim]Examples:[/dim]

    dff label photos/

    dff label s3://faces/raw --confidence 0.9 --workers 4
    """
    import torch
    from tqdm import tqdm

    from dff.aligner.load import load_aligner
    from dff.aligner.threads import use_threads
    from dff.files.labels import LabelCounts, find_duplicate_photos, label_photos
    from dff.infra.datasets.near_duplicates import describe_near_duplicates
    from dff.infra.printing import printable
    from dff.infra.storage import S3Access, open_storage
    from dff.pipeline.recovery.photos import find_photos

    storage = open_storage(
        photos, endpoint_url=endpoint_url, access=S3Access(anonymous, request_payer)
    )
    storage.check_writable()
    aligner = load_aligner(weights, endpoint_url=endpoint_url)
    listing = find_photos(storage)
    use_threads(max(1, torch.get_num_threads() // workers))  # workers share the cores
    counts = LabelCounts(before=sum(ref.landmark_key is not None for ref in listing.photos))
    hashes = {}
    for photo in label_photos(
        storage,
        aligner,
        confidence=confidence,
        workers=workers,
        listing=listing,
        progress=True,
    ):
        if photo.hash is not None:
            hashes[photo.key] = photo.hash
        counts.add(photo)
        if photo.reason:
            tqdm.write(printable(f"{photo.key}: {photo.reason}"))
        if photo.warning:
            tqdm.write(printable(f"{photo.key}: labelled, but {photo.warning}"))
    if card:
        write_card(storage, listing, counts.before + counts.labelled, confidence, aligner.card)
    typer.echo(printable(counts.describe(storage.uri)))
    if duplicates := find_duplicate_photos(storage, hashes, listing=listing):
        typer.echo(describe_near_duplicates(duplicates))
    if counts.refused:
        raise typer.Exit(1)


def write_card(
    storage: Storage,
    listing: PhotoListing,
    labelled: int,
    confidence: float,
    weights: Mapping[str, Any],
) -> None:
    """Describe the photos beside them. ``labelled``: photos that have landmarks now."""
    from dff.infra.photos.label_card import LabelledPhotos, write_label_cards

    keys = [photo.image_key for photo in listing.photos]
    write_label_cards(storage, LabelledPhotos(keys, labelled, confidence, weights))
