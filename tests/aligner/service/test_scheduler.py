"""The order in which photos of several requests have the aligner."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Generator, Sequence
from typing import Any

import pytest

from dff.aligner.alignment import Alignment
from dff.aligner.service.face_aligner import Boxes
from dff.aligner.service.limits import Limits
from dff.aligner.service.problems import Problem
from dff.aligner.service.scheduler import Durations, Scheduler
from dff.face.arrays import Bytes
from dff.face.geometry.camera import Box
from dff.face.model.morphable import MorphableModel
from tests.aligner.image_files import pixels
from tests.aligner.known_aligner import KnownAligner

STEP = 0.02  # seconds
SMALL, CROWD = pixels(100, 100), pixels(101, 100)
LONG = 3000  # steps of a photo like CROWD


class Stepping(KnownAligner):
    """Takes ``LONG`` steps for a photo like CROWD and two for any other; has a clock of its own."""

    def __init__(self, model: MorphableModel) -> None:
        super().__init__(model)
        self.calls: list[int] = []
        self.now = 0.0
        self.crowd_steps = 0
        self.pace = 1.0  # times STEP that a step takes

    def align_in_steps(
        self, images: Sequence[Bytes], boxes: Sequence[Boxes] | None = None, *, faces: int
    ) -> Generator[None, None, list[list[Alignment]]]:
        self.calls.append(len(images))
        for image in images:
            crowd = image.shape == CROWD.shape
            for _ in range(LONG if crowd else 2):
                self.now += self.pace * STEP
                self.crowd_steps += crowd
                yield
        return self.align_batch(images, boxes)


def make(model: MorphableModel, **limits: int) -> tuple[Stepping, Scheduler]:
    aligner = Stepping(model)
    return aligner, Scheduler(aligner, Limits(**limits), clock=lambda: aligner.now)


def test_a_crowd_holds_no_small_photo(toy_model: MorphableModel) -> None:
    """A small photo waits for the step that runs, and the crowds are aligned as well."""
    aligner, scheduler = make(toy_model, batch=1)

    async def run() -> None:
        crowds = [asyncio.create_task(scheduler.align((CROWD, None))) for _ in range(3)]
        while aligner.crowd_steps < 30:
            await asyncio.sleep(0)
        for _ in range(5):
            before = aligner.crowd_steps
            outcome, _ = await scheduler.align((SMALL, None))
            assert isinstance(outcome, list)
            assert aligner.crowd_steps - before <= 2
        assert not any(crowd.done() for crowd in crowds)
        assert all(isinstance(outcome, list) for outcome, _ in await asyncio.gather(*crowds))

    asyncio.run(run())


def test_similar_photos_share_a_call(toy_model: MorphableModel) -> None:
    aligner, scheduler = make(toy_model, batch=4)

    async def run() -> None:
        many = [[Box(1, 1, 50, 50)] * 9]
        photos = [(SMALL, None)] * 6 + [(SMALL, boxes) for boxes in many]
        await asyncio.gather(*(scheduler.align(photo) for photo in photos))

    asyncio.run(run())
    assert aligner.calls == [4, 2, 1]  # the nine boxes come last and alone


def test_a_bad_photo_of_a_batch_fails_alone(toy_model: MorphableModel) -> None:
    class Strict(KnownAligner):
        def align_batch(self, images: Any, boxes: Any = None) -> Any:
            for some in boxes:
                if some and some[0].x0 > 100:
                    raise ValueError("beside the image")
            return super().align_batch(images, boxes)

    scheduler = Scheduler(Strict(toy_model), Limits())
    good, bad = [Box(1, 1, 50, 50)], [Box(101, 1, 150, 50)]

    async def run() -> list[Any]:
        photos = [(pixels(), boxes) for boxes in (good, bad, None)]
        return [each for each, _ in await asyncio.gather(*map(scheduler.align, photos))]

    first, second, third = asyncio.run(run())
    assert first[0].box == good[0]
    assert isinstance(second, ValueError)
    assert len(third) == 1


def test_deadlines(toy_model: MorphableModel) -> None:
    """Refused at once by what waits before; given up when the aligner turns out slower."""
    aligner, scheduler = make(toy_model, batch=1)

    async def run() -> None:
        scheduler.durations.unit = STEP
        photos = [asyncio.create_task(scheduler.align((SMALL, None))) for _ in range(10)]
        await asyncio.sleep(0)
        with pytest.raises(Problem, match="Not in time") as refused:
            await scheduler.align((SMALL, None), aligner.now + 5 * STEP)
        assert refused.value.kind == "deadline"
        assert all(isinstance(outcome, list) for outcome, _ in await asyncio.gather(*photos))
        scheduler.durations.unit, aligner.pace = STEP, 10.0
        photos = [asyncio.create_task(scheduler.align((SMALL, None))) for _ in range(4)]
        await asyncio.sleep(0)
        outcome, _ = await scheduler.align((SMALL, None), aligner.now + 15 * STEP)
        assert isinstance(outcome, Problem)
        assert outcome.kind == "deadline"
        assert all(isinstance(outcome, list) for outcome, _ in await asyncio.gather(*photos))
        assert scheduler.waiting == 0

    asyncio.run(run())


def test_work_for_clients_that_left_is_dropped(toy_model: MorphableModel) -> None:
    aligner, scheduler = make(toy_model, batch=1)

    async def run() -> None:
        tasks = [asyncio.create_task(scheduler.align((CROWD, None))) for _ in range(2)]
        while aligner.crowd_steps < 10:
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await scheduler.align((SMALL, None))

    asyncio.run(run())
    assert aligner.crowd_steps < LONG
    assert len(aligner.seen) == 1


def test_durations_follow_the_aligner() -> None:
    durations = Durations(first=1.0)
    searched, boxed = (SMALL, None), (SMALL, [Box(0, 0, 9, 9)] * 5)
    for _ in range(40):
        durations.learn([searched] * 2, 4, 0.6)  # two searches and four faces
    assert durations.expect(searched) == pytest.approx(0.2, rel=0.01)
    assert durations.expect(boxed) == pytest.approx(0.5, rel=0.01)
    assert math.isfinite(Durations().expect((SMALL, [])))


def test_a_long_call_of_another_kind_holds_no_small_photo(toy_model: MorphableModel) -> None:
    """A small photo waits for the step that runs; then its two steps come first."""
    aligner, scheduler = make(toy_model, batch=1)
    done = 0

    def steps() -> Generator[None, None, str]:
        nonlocal done
        for _ in range(LONG):
            aligner.now += STEP
            done += 1
            yield
        return "result"

    async def run() -> str:
        long = asyncio.create_task(scheduler.run_steps(steps()))
        while done < 30:
            await asyncio.sleep(0)
        for _ in range(5):
            before = done
            outcome, _ = await scheduler.align((SMALL, None))
            assert isinstance(outcome, list)
            assert done - before <= 2
        assert done < LONG
        return await long

    assert asyncio.run(run()) == "result"
    assert done == LONG


def test_a_call_of_another_kind_raises_its_error_and_ends_with_its_client(
    toy_model: MorphableModel,
) -> None:
    aligner, scheduler = make(toy_model)
    closed = []

    def fail() -> Generator[None, None, str]:
        yield
        raise ValueError("outside the photo")

    def endless() -> Generator[None, None, str]:
        try:
            while True:
                aligner.now += STEP
                yield
        finally:
            closed.append(True)

    async def run() -> None:
        with pytest.raises(ValueError, match="outside the photo"):
            await scheduler.run_steps(fail())
        leaving = asyncio.create_task(scheduler.run_steps(endless()))
        await scheduler.align((SMALL, None))
        leaving.cancel()
        await scheduler.align((SMALL, None))

    asyncio.run(run())
    assert closed == [True]


def test_an_idle_aligner_tries_what_it_expects_to_be_late(toy_model: MorphableModel) -> None:
    """The machine was slow for a while; now it is not, and the scheduler finds out."""
    aligner, scheduler = make(toy_model)
    scheduler.durations.unit = 50.0

    async def run() -> None:
        for _ in range(30):
            outcome, _ = await scheduler.align((SMALL, None), aligner.now + 10.0)
            assert isinstance(outcome, list)
        assert scheduler.durations.unit < 1.0
        with pytest.raises(Problem):
            await scheduler.align((SMALL, None), aligner.now - 1.0)

    asyncio.run(run())
