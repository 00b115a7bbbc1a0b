"""The datasets of a training: the face model that they share, and their name."""

from __future__ import annotations

from collections.abc import Sequence

from dff.face.errors import BadDataset, BadModel
from dff.face.io.assets import load_model
from dff.face.model.morphable import MorphableModel
from dff.infra.datasets.dataset import Dataset


def load_dataset_model(dataset: Dataset, model: str | None = None) -> MorphableModel:
    """The face model that a dataset was made with.

    ``model``: its name or file, as ``load_model`` takes it; by default the model that the dataset's
    rows name. Raises BadDataset when the rows are of another model, of several, or of one that has
    no file under its name, and BadModel for a file that can't be read.
    """
    names = sorted(dataset.manifest.counts.get("model", {}))
    if not names:  # datasets of other programs may lack these counts
        names = sorted(set(dataset.columns(0, ["model"])["model"]))
    where = dataset.storage.uri
    if len(names) != 1:
        raise BadDataset(f"{where} shows several face models: {', '.join(names)}")
    if model is not None:
        loaded = load_model(model)
        if loaded.name != names[0]:
            raise BadDataset(f"{where} shows the face model {names[0]!r}, not {loaded.name!r}")
        return loaded
    try:
        loaded = load_model(names[0])
    except BadModel as error:
        raise BadDataset(
            f"{where} shows the face model {names[0]!r}, which has no file here: give it (--model)"
        ) from error
    return loaded


def load_common_model(
    datasets: Sequence[Dataset], model: MorphableModel | str | None = None
) -> MorphableModel:
    """The face model that all datasets were made with, as ``load_dataset_model``.

    Raises BadDataset when they show different models.
    """
    if isinstance(model, MorphableModel):
        return model
    loaded = [load_dataset_model(dataset, model) for dataset in datasets]
    for dataset, other in zip(datasets, loaded, strict=True):
        if other.name != loaded[0].name:
            raise BadDataset(
                f"{dataset.storage.uri} shows the face model {other.name!r}, "
                f"{datasets[0].storage.uri} {loaded[0].name!r}"
            )
    return loaded[0]


def name_datasets(datasets: Sequence[Dataset]) -> str:
    """The fingerprint of the data, for the card of weights: of one dataset its own."""
    return " ".join(dataset.manifest.fingerprint for dataset in datasets)
