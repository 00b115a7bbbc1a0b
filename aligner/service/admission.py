"""Admission control: how many requests a server holds; further ones are told when to try again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dff.aligner.service.limits import Limits
from dff.aligner.service.problems import RETRY_AFTER, Problem


class AdmissionControl:
    """Bounds the requests that have arrived, and among them those whose photos are decoded.

    A waiting request keeps its photos encoded, large ones on disk; decoded ones take memory. It is
    the only such control, under uvicorn as under Ray Serve. Requests count once their bytes have
    arrived, so slow senders do not take the places of others.
    """

    def __init__(self, limits: Limits) -> None:
        self._limit, self._held = limits.requests, 0
        self._decoding = asyncio.Semaphore(limits.decoded)
        self._person = asyncio.Semaphore(1)  # all photos of one person are decoded at once

    @asynccontextmanager
    async def admit(self, *, person: bool = False) -> AsyncIterator[None]:
        """Hold a request for the length of a ``with`` block, which may decode its photos.

        ``person``: the photos of one person; one such request is decoded at a time. Raises Problem
        ``busy`` when the server holds as many requests as it may.
        """
        if self._held >= self._limit:
            raise Problem("busy", headers={"Retry-After": str(RETRY_AFTER)})
        self._held += 1
        try:
            if person:
                async with self._person, self._decoding:
                    yield
            else:
                async with self._decoding:
                    yield
        finally:
            self._held -= 1
