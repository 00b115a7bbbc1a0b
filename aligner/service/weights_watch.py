"""Weights that follow an alias of MLflow's registry while the service runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from dff.aligner.service.align_service import AlignService
from dff.aligner.service.face_aligner import FaceAligner
from dff.face.errors import DffError


def find_version(address: str) -> str:
    """The version that an alias names now. Raises BadWeights."""
    from dff.infra.mlflow.tracking import find_registered_version  # imports MLflow

    return find_registered_version(address)


@dataclass
class WeightsWatch:
    """Asks every ``interval`` seconds which version ``address`` names, and loads another one.

    Requests in flight are answered by the weights that they began with. While MLflow does not
    answer, or a version can't be loaded, the service keeps its weights.
    """

    address: str
    load: Callable[[], FaceAligner]  # of the version that the alias names now, warmed up
    interval: float
    version: str | None = None  # that is served
    find: Callable[[str], str] = find_version

    async def run(self, service: AlignService) -> None:
        """Watch until cancelled. The first version found counts as the one that is served."""
        log = logging.getLogger(__name__)
        while True:
            try:
                found = await asyncio.to_thread(self.find, self.address)
                if self.version not in (None, found):
                    service.replace_aligner(await asyncio.to_thread(self.load))
                    log.warning("weights: %s is version %s now", self.address, found)
                self.version = found
            except DffError as error:
                log.warning("the weights are kept: %s", error)
            await asyncio.sleep(self.interval)
