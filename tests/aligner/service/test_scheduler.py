"""The order in which photos of several requests have the aligner."""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import pytest

from dff.aligner.alignment import Alignment
from dff.aligner.detection import Detection
from dff.aligner.face_request import FaceRequest, Steps
from dff.aligner.service.face_aligner import Boxes
from dff.aligner.service.http.limits import Limits
from dff.aligner.service.http.measures import Measures, measuring
from dff.aligner.service.http.problems import Problem
from dff.aligner.service.scheduler import Durations, Scheduler
from dff.face.arrays import Bytes
from dff.face.geometry.camera import Box
from dff.face.model.morphable import MorphableModel
from tests.aligner.image_files import pixels
from tests.aligner.known_aligner import KnownAligner

T = TypeVar("T")
STEP = 0.02  # seconds
SMALL, CROWD, LARGE = pixels(100, 100), pixels(101, 100), np.zeros((3000, 4000, 3), np.uint8)
FACES = {SMALL.shape: 1, CROWD.shape: 900, LARGE.shape: 2}


class Stepping(KnownAligner):
    """Takes a step to search a photo and to align up to two faces; has a clock of its own."""

    def __init__(self, model: MorphableModel) -> None:
        super().__init__(model)
        self.now = 0.0
        self.crowd_steps = 0
        self.batches: list[int] = []  # faces that were aligned in one step
        self.pace = 1.0  # times STEP that a step takes
        self.faces = FACES  # by shape of the photo
        self.searches: dict[tuple[int, ...], int] = {}  # steps of a search, where not one

    def align_in_steps(
        self, images: Sequence[Bytes], boxes: Sequence[Boxes] | None = None, *, faces: int
    ) -> Steps[list[list[Alignment]]]:
        (image,) = images
        number = self.faces[image.shape]
        for _ in range(self.searches.get(image.shape, 1) - 1):
            self.spend(image)
            yield None
        self.spend(image)
        face = Detection(Box(1, 1, 50, 50), 1.0)
        for begin in range(0, number, faces):
            some = min(faces, number - begin)
            answer = yield FaceRequest(
                [image] * some, [face] * some, number - begin - some, [False] * some
            )
            assert answer is not None
            assert len(answer) == some
        return self.align_batch(images, boxes)

    def align_requests(self, requests: Sequence[FaceRequest]) -> list[list[Alignment]]:
        self.spend(requests[0].images[0])
        self.batches.append(sum(len(request.detections) for request in requests))
        return super().align_requests(requests)

    def spend(self, image: Bytes) -> None:
        """The time of a step."""
        self.now += self.pace * STEP
        self.crowd_steps += image.shape == CROWD.shape


class InLoop(Scheduler):
    """Runs its steps in the event loop; between them others go on until they wait for a step."""

    task: asyncio.Task[None]

    def _start(self) -> None:
        self.task = asyncio.get_running_loop().create_task(self._run_in_loop())

    async def _run_in_loop(self) -> None:
        try:
            while calls := self._take():
                await settle()
                self._advance(calls)
                self.after_step()
                await settle()
        finally:  # also at the end of the loop
            self._working = False

    def after_step(self) -> None:
        """Of tests."""


async def settle() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


def make(model: MorphableModel, **limits: int) -> tuple[Stepping, InLoop]:
    aligner = Stepping(model)
    return aligner, InLoop(aligner, Limits(**limits), clock=lambda: aligner.now)


def test_steps_and_times_are_measured_for_each_request(toy_model: MorphableModel) -> None:
    """A step that photos share counts once; waiting and aligning are measured apart."""
    aligner, scheduler = make(toy_model)
    every: list[Measures] = []

    async def align(photo: Bytes) -> None:
        with measuring() as measures:
            every.append(measures)
            await scheduler.align((photo, None))

    async def call() -> None:
        with measuring() as measures:
            every.append(measures)
            await scheduler.run(lambda: aligner.spend(SMALL))

    async def run() -> None:
        tasks = [asyncio.create_task(align(SMALL)) for _ in range(6)]
        tasks.append(asyncio.create_task(call()))
        while not scheduler.waiting:
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert sorted(faces for one in every for faces in one.steps) == sorted(aligner.batches)
    assert sum(aligner.batches) == 6
    assert max(aligner.batches) > 1
    assert min(one.queue for one in every) == 0.0
    assert max(one.queue for one in every) > 3 * STEP
    assert all(0 < one.align + one.queue <= aligner.now + 1e-9 for one in every)


def test_a_crowd_holds_no_small_photo(toy_model: MorphableModel) -> None:
    """A small photo waits for the step that runs, and the crowds are aligned as well."""
    aligner, scheduler = make(toy_model, batch=1)

    async def run() -> None:
        crowds = [asyncio.create_task(scheduler.align((CROWD, None))) for _ in range(3)]
        while aligner.crowd_steps < 30:
            await asyncio.sleep(0)
        for _ in range(5):
            before = aligner.crowd_steps
            outcome = await scheduler.align((SMALL, None))
            assert isinstance(outcome, list)
            assert aligner.crowd_steps - before <= 2
        assert not any(crowd.done() for crowd in crowds)
        assert all(isinstance(outcome, list) for outcome in await asyncio.gather(*crowds))

    asyncio.run(run())


def test_the_last_steps_of_a_crowd_do_not_come_before_a_small_photo(
    toy_model: MorphableModel,
) -> None:
    """Though the crowd has waited for a second or two, which small photos have not."""
    aligner, scheduler = make(toy_model)
    aligner.faces = {SMALL.shape: 1, CROWD.shape: 100}
    steps = 1 + 100 // Limits().step

    async def run(left: int) -> int:
        aligner.crowd_steps, aligner.now = 0, 0.0
        scheduler.durations.unit = STEP / 2
        crowd = asyncio.create_task(scheduler.align((CROWD, None)))
        while aligner.crowd_steps < steps - left:
            await asyncio.sleep(0)
        before = aligner.crowd_steps
        await scheduler.align((SMALL, None))
        passed = aligner.crowd_steps - before
        await crowd
        return passed

    # the step that runs, or the last one, which takes no longer than the small photo
    assert max(asyncio.run(run(left)) for left in range(1, 8)) == 1


def test_faces_of_waiting_photos_share_steps(toy_model: MorphableModel) -> None:
    aligner, scheduler = make(toy_model, step=2)

    async def run(photos: int) -> None:
        await asyncio.gather(*(scheduler.align((SMALL, None)) for _ in range(photos)))

    asyncio.run(run(2))
    assert aligner.batches == [1, 1], "a photo does not wait for the only other one"
    aligner.batches.clear()
    asyncio.run(run(3))
    assert aligner.batches == [2, 1]
    aligner.batches.clear()
    asyncio.run(run(9))
    assert sum(aligner.batches) == 9
    assert aligner.batches[:2] == [2, 2]


def test_faces_share_steps_after_searches_in_short_steps(toy_model: MorphableModel) -> None:
    """Such steps are run together: a photo's face would not wait for another search in several."""
    aligner, scheduler = make(toy_model, step=2)
    aligner.searches = {SMALL.shape: 4}
    scheduler.durations.unit = 6 * STEP

    async def run() -> None:
        await asyncio.gather(*(scheduler.align((SMALL, None)) for _ in range(9)))

    asyncio.run(run())
    assert sum(aligner.batches) == 9
    assert aligner.batches[:2] == [2, 2]


@pytest.mark.parametrize(("unit", "photos"), [(0.5, 8), (1.5, 8), (6.0, 1)])
def test_the_search_of_a_large_photo_holds_no_small_one(
    toy_model: MorphableModel, unit: float, photos: int
) -> None:
    """Whether it takes more or less time than its size lets expect. ``unit``: in steps."""
    aligner, scheduler = make(toy_model)
    aligner.faces = {SMALL.shape: 1, LARGE.shape: 0}
    aligner.searches = {LARGE.shape: 40}

    async def run() -> list[float]:
        scheduler.durations.unit = unit * STEP
        large = asyncio.create_task(scheduler.align((LARGE, None)))
        waited = []
        for _ in range(photos):
            before = aligner.now
            while aligner.now == before:
                await asyncio.sleep(0)
            scheduler.durations.unit, before = unit * STEP, aligner.now
            await scheduler.align((SMALL, None))
            waited.append((aligner.now - before) / STEP)
        assert not large.done()
        assert await large == []
        return waited

    # steps of the search that are run together, then its own two
    assert max(asyncio.run(run())) < math.ceil(unit) + 2.5


def test_photos_of_two_faces_share_steps_and_crowds_do_not(toy_model: MorphableModel) -> None:
    """Only the last faces of a photo: a share of a crowd would delay the small photo beside it."""
    aligner, scheduler = make(toy_model, step=2, shared_step=4)
    aligner.faces = {SMALL.shape: 2, CROWD.shape: 20}

    async def run(*photos: Bytes) -> None:
        await asyncio.gather(*(scheduler.align((photo, None)) for photo in photos))

    asyncio.run(run(SMALL, SMALL, SMALL))
    assert aligner.batches == [4, 2]
    aligner.batches.clear()
    asyncio.run(run(CROWD, SMALL))
    assert max(aligner.batches) == 2


def test_faces_do_not_wait_for_one_photo_without_faces_after_another(
    toy_model: MorphableModel,
) -> None:
    aligner, scheduler = make(toy_model, step=2)
    empty = pixels(90, 100)
    aligner.faces = {SMALL.shape: 1, empty.shape: 0}
    scheduler.durations.unit = STEP / 2

    async def send_many() -> None:
        for _ in range(20):
            await scheduler.align((empty, None))

    async def run() -> float:
        others = [asyncio.create_task(send_many()) for _ in range(8)]
        await scheduler.align((SMALL, None))
        waited = aligner.now
        await asyncio.gather(*others)
        return waited

    assert asyncio.run(run()) <= 14 * STEP  # the others take 160


def test_a_bad_photo_of_a_batch_fails_alone(toy_model: MorphableModel) -> None:
    class Strict(Stepping):
        def align_requests(self, requests: Sequence[FaceRequest]) -> list[list[Alignment]]:
            found = super().align_requests(requests)
            if any(image.max() == 7 for request in requests for image in request.images):
                raise ValueError("no such image")
            return found

    aligner = Strict(toy_model)
    scheduler = Scheduler(aligner, Limits(step=2))
    bad = np.full_like(SMALL, 7)

    async def run() -> list[Any]:
        photos = [(image, None) for image in (SMALL, bad, *[SMALL] * 6)]
        return [*await asyncio.gather(*map(scheduler.align, photos))]

    first, second, *others = asyncio.run(run())
    assert max(aligner.batches) == 2
    assert isinstance(second, ValueError)
    assert all(len(found) == 1 for found in (first, *others))


def test_photos_that_would_miss_their_deadline_are_refused(toy_model: MorphableModel) -> None:
    """Refused at once by what waits before; given up when the aligner turns out slower."""
    aligner, scheduler = make(toy_model, batch=1)

    async def run() -> None:
        scheduler.durations.unit = STEP
        photos = [asyncio.create_task(scheduler.align((SMALL, None))) for _ in range(10)]
        await asyncio.sleep(0)
        with pytest.raises(Problem, match="Not in time") as refused:
            await scheduler.align((SMALL, None), aligner.now + 5 * STEP)
        assert refused.value.kind == "deadline"
        assert all(isinstance(outcome, list) for outcome in await asyncio.gather(*photos))
        scheduler.durations.unit, aligner.pace = STEP, 10.0
        photos = [asyncio.create_task(scheduler.align((SMALL, None))) for _ in range(4)]
        await asyncio.sleep(0)
        outcome = await scheduler.align((SMALL, None), aligner.now + 15 * STEP)
        assert isinstance(outcome, Problem)
        assert outcome.kind == "deadline"
        assert all(isinstance(outcome, list) for outcome in await asyncio.gather(*photos))
        assert scheduler.waiting == 0

    asyncio.run(run())


def test_many_faces_that_would_wait_long_are_refused_when_they_are_counted(
    toy_model: MorphableModel,
) -> None:
    aligner, scheduler = make(toy_model)
    scheduler.durations.unit = STEP / 2  # a step aligns two faces

    async def ask(image: Bytes, slowdown: float) -> tuple[Any, int]:
        outcome = await scheduler.align((image, None), slowdown=slowdown)
        return outcome, aligner.crowd_steps

    async def run() -> list[tuple[Any, int]]:
        asked = [(CROWD, 3.5)] * 4 + [(CROWD, math.inf), (SMALL, 1.0)]
        return list(await asyncio.gather(*(ask(*each) for each in asked)))

    *crowds, refused, patient, small = asyncio.run(run())
    assert all(len(outcome) == 1 for outcome, _ in [*crowds, patient, small])
    problem, steps = refused
    assert isinstance(problem, Problem)
    assert problem.kind == "deadline"
    assert "may show 900 faces" in problem.detail
    assert "header `Deadline`" in problem.detail
    assert int((problem.headers or {})["Retry-After"]) == pytest.approx(3 * 450 * STEP, rel=0.3)
    assert steps <= 5, "searches only"


@pytest.mark.parametrize(("faces", "refuses"), [(4, False), (60, True)])
def test_clients_that_wait_briefly_for_each_other_are_all_answered(
    toy_model: MorphableModel, faces: int, refuses: bool
) -> None:
    """Three that send again when they are answered, each with a photo that takes equally long.

    Alone one of four faces takes 0.06 s, one of 60 faces 0.62 s.
    """
    aligner, scheduler = make(toy_model)
    aligner.faces = {CROWD.shape: faces}
    scheduler.durations.unit = STEP / 2
    outcomes: list[Any] = []

    async def send() -> None:
        for _ in range(30):
            deadline = aligner.now + 10.0
            outcomes.append(
                await scheduler.align((CROWD, None), deadline, slowdown=Limits().slowdown)
            )

    async def run() -> None:
        await asyncio.gather(*(send() for _ in range(3)))

    asyncio.run(run())
    problems = [o.detail for o in outcomes if isinstance(o, Problem)]
    assert bool(problems) == refuses, problems


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
    assert aligner.crowd_steps < 450
    assert len(aligner.seen) == 1


def test_durations_follow_the_aligner() -> None:
    durations = Durations(first=1.0)
    searched, boxed = (SMALL, None), (SMALL, [Box(0, 0, 9, 9)] * 5)
    for _ in range(40):
        durations.learn(searched, 2, 0.3)  # a search and two faces
    assert durations.expect(searched) == pytest.approx(0.2, rel=0.01)
    assert durations.expect(boxed) == pytest.approx(0.5, rel=0.01)
    assert durations.expect((LARGE, None)) == pytest.approx(0.5, rel=0.01), "12 megapixels"
    assert math.isfinite(Durations().expect((SMALL, [])))


def test_a_long_call_of_another_kind_holds_no_small_photo(toy_model: MorphableModel) -> None:
    """A small photo waits for the step that runs; then its two steps come first."""
    aligner, scheduler = make(toy_model, batch=1)
    done = 0

    def steps() -> Steps[str]:
        nonlocal done
        for _ in range(3000):
            aligner.now += STEP
            done += 1
            yield None
        return "result"

    async def run() -> str:
        long = asyncio.create_task(scheduler.run_steps(steps(), aligner))
        while done < 30:
            await asyncio.sleep(0)
        for _ in range(5):
            before = done
            outcome = await scheduler.align((SMALL, None))
            assert isinstance(outcome, list)
            assert done - before <= 2
        assert done < 3000
        return await long

    assert asyncio.run(run()) == "result"
    assert done == 3000


def test_steps_that_are_run_together_end_when_a_photo_comes(
    toy_model: MorphableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are far shorter than a face takes, so all of them would be run together."""
    aligner = KnownAligner(toy_model)
    scheduler = Scheduler(aligner, Limits())
    scheduler.durations.unit = 10.0
    begun, done, done_before = threading.Event(), 0, 0
    align = aligner.align_in_steps

    def note(*args: Any, **settings: Any) -> Steps[list[list[Alignment]]]:
        nonlocal done_before
        done_before = done
        return align(*args, **settings)

    monkeypatch.setattr(aligner, "align_in_steps", note)

    def steps() -> Steps[None]:
        nonlocal done
        begun.set()
        while not scheduler.waiting:
            time.sleep(0.001)
        for _ in range(1000):
            done += 1
            yield None

    async def run() -> None:
        long = asyncio.create_task(scheduler.run_steps(steps(), aligner, like=(LARGE, None)))
        await asyncio.to_thread(begun.wait)
        await scheduler.align((SMALL, None))
        await long

    asyncio.run(run())
    assert (done_before, done) == (1, 1000)


def test_frames_of_videos_do_not_always_come_before_photos(toy_model: MorphableModel) -> None:
    """Though each of two sessions sends its next frame as soon as it has an answer."""
    aligner, scheduler = make(toy_model)
    scheduler.durations.unit = 2 * STEP
    frames = 0

    def frame() -> Steps[None]:
        nonlocal frames
        for _ in range(3):
            aligner.spend(LARGE)
            yield None
        frames += 1

    async def send() -> None:
        for _ in range(50):
            await scheduler.run_steps(frame(), aligner, like=(LARGE, None))

    async def run() -> int:
        sessions = [asyncio.create_task(send()) for _ in range(2)]
        while frames < 4:
            await asyncio.sleep(0)
        before = frames
        await scheduler.align((SMALL, None))
        waited = frames - before
        await asyncio.gather(*sessions)
        return waited

    assert asyncio.run(run()) <= 2


def test_a_call_of_another_kind_raises_its_error_and_ends_with_its_client(
    toy_model: MorphableModel,
) -> None:
    aligner, scheduler = make(toy_model)
    closed = []

    def fail() -> Steps[str]:
        yield None
        raise ValueError("outside the photo")

    def endless() -> Steps[str]:
        try:
            while True:
                aligner.now += STEP
                yield None
        finally:
            closed.append(True)

    async def run() -> None:
        with pytest.raises(ValueError, match="outside the photo"):
            await scheduler.run_steps(fail(), aligner)
        leaving = asyncio.create_task(scheduler.run_steps(endless(), aligner))
        await scheduler.align((SMALL, None))
        leaving.cancel()
        await scheduler.align((SMALL, None))

    asyncio.run(run())
    assert closed == [True]


def test_the_aligner_does_not_wait_for_the_event_loop(toy_model: MorphableModel) -> None:
    aligner = Stepping(toy_model)
    scheduler = Scheduler(aligner, Limits())

    def fail() -> None:
        raise ValueError("no such photo")

    async def run() -> None:
        photos = [asyncio.create_task(scheduler.align((SMALL, None))) for _ in range(20)]
        await asyncio.sleep(0)
        patience = time.monotonic() + 30
        while len(aligner.seen) < 20 and time.monotonic() < patience:
            time.sleep(0.01)  # the loop does nothing else
        assert len(aligner.seen) == 20
        assert all(isinstance(outcome, list) for outcome in await asyncio.gather(*photos))
        with pytest.raises(ValueError, match="no such photo"):
            await scheduler.run(fail)
        assert await scheduler.run(lambda: "again") == "again"
        assert not scheduler.busy

    asyncio.run(run())


def test_an_idle_aligner_tries_what_it_expects_to_be_late(toy_model: MorphableModel) -> None:
    """The machine was slow for a while; now it is not, and the scheduler finds out."""
    aligner, scheduler = make(toy_model)
    scheduler.durations.unit = 50.0

    async def run() -> None:
        for _ in range(30):
            outcome = await scheduler.align((SMALL, None), aligner.now + 10.0)
            assert isinstance(outcome, list)
        assert scheduler.durations.unit < 1.0
        with pytest.raises(Problem):
            await scheduler.align((SMALL, None), aligner.now - 1.0)

    asyncio.run(run())


def test_small_photos_are_answered_soon_under_load(toy_model: MorphableModel) -> None:
    """At 70 % of the capacity, beside photos of 12 megapixels and of 20 faces, in counted time."""
    aligner, scheduler = make(toy_model)
    aligner.faces = {SMALL.shape: 1, CROWD.shape: 20, LARGE.shape: 2}
    scheduler.durations.unit = STEP
    rng = random.Random(0)
    work = 0.8 * 2 + 0.1 * 2 + 0.1 * 11  # steps of a photo in the mean
    arrivals, now = [], 0.0
    for _ in range(800):
        now += rng.expovariate(0.7 / (work * STEP))
        arrivals.append((now, rng.choices([SMALL, LARGE, CROWD], [0.8, 0.1, 0.1])[0]))
    waited: dict[int, list[float]] = {1: [], 2: [], 20: []}
    tasks: list[asyncio.Task[None]] = []

    async def ask(arrived: float, image: Bytes) -> None:
        await scheduler.align((image, None))
        waited[aligner.faces[image.shape]].append((aligner.now - arrived) / STEP)

    def release() -> None:
        while arrivals and arrivals[0][0] <= aligner.now:
            tasks.append(asyncio.create_task(ask(*arrivals.pop(0))))

    async def run() -> None:
        while arrivals:
            await settle()
            if not scheduler.busy:
                aligner.now = max(aligner.now, arrivals[0][0])
            release()
        await asyncio.gather(*tasks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "after_step", release)
        asyncio.run(run())
    small, large, crowd = (np.array(each) for each in waited.values())
    assert sum(map(len, waited.values())) == 800
    assert np.percentile(small, 99) < 4 * np.median(small)
    assert np.percentile(large, 99) < 6 * np.median(large)
    assert np.percentile(crowd, 99) < 6 * np.median(crowd)
