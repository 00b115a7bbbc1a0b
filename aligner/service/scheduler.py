"""Photos of all requests on one aligner: shortest first, in steps, within deadlines."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from dff.aligner.alignment import Alignment
from dff.aligner.service.face_aligner import FaceAligner, Outcome, Photo
from dff.aligner.service.limits import Limits
from dff.aligner.service.problems import Problem

T = TypeVar("T")
Steps = Generator[None, None, list[list[Alignment]]]
AGEING = 0.5  # seconds of expected work that a second of waiting makes up for
LEARNING = 0.2  # weight of the latest duration in the mean of durations


@dataclass(eq=False)
class QueuedPhoto:
    """A photo that waits for the aligner or is aligned."""

    photo: Photo
    expected: float  # seconds
    arrived: float  # seconds of the clock
    deadline: float  # the same; infinite without one
    outcome: asyncio.Future[Outcome]
    began: float = math.nan  # when its call began


@dataclass(eq=False)
class Call:
    """One call of the aligner, which runs in steps."""

    steps: Generator[None, None, Any]
    jobs: list[QueuedPhoto]  # photos that it aligns; empty for other calls
    outcome: asyncio.Future[Any] | None = None  # what the steps of another call return or raise
    seconds: float = 0.0  # that its steps have taken

    @property
    def share(self) -> float:
        """Seconds for each of its photos."""
        return self.seconds / max(len(self.jobs), 1)

    @property
    def expected(self) -> float:
        """Seconds that its steps will take in all, as far as is known."""
        return sum(job.expected for job in self.jobs)

    @property
    def abandoned(self) -> bool:
        """Whether no request waits for it any more."""
        if self.outcome is not None:
            return self.outcome.cancelled()
        return all(job.outcome.done() for job in self.jobs)


@dataclass(frozen=True)
class Finished:
    """What a call returned after its last step."""

    value: Any


class Durations:
    """How long the aligner takes, learned from what it took: alike for a search and for a face."""

    def __init__(self, first: float = 0.15) -> None:
        self.unit = first  # seconds to search a photo, or to align a face

    def expect(self, photo: Photo) -> float:
        """Seconds of a photo; of one that is searched with one face in it."""
        _, boxes = photo
        return self.unit * (2 if boxes is None else max(len(boxes), 1))

    def learn(self, photos: Sequence[Photo], faces: int, seconds: float) -> None:
        """Take in that ``photos`` with so many ``faces`` took ``seconds`` together."""
        units = max(sum(boxes is None for _, boxes in photos) + faces, 1)
        self.unit += LEARNING * (seconds / units - self.unit)


class Scheduler:
    """Gives photos to an aligner, which runs in one thread.

    Photos that are expected to be short come first, and those that have waited long. As many as a
    batch holds share one call, if they are of similar length. Calls run in steps, and the call
    whose photos have had least time has the next one. So a photo of many faces, which is not known
    before, or a long call of another kind, delays a small photo by at most the small one's own time
    and a step.
    """

    def __init__(
        self,
        aligner: FaceAligner,
        limits: Limits,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.aligner, self._limits, self._clock = aligner, limits, clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="aligner")
        self._queue: list[QueuedPhoto] = []
        self._calls: list[Call] = []
        self._worker: asyncio.Task[None] | None = None
        self.durations = Durations()

    @property
    def waiting(self) -> int:
        """Photos that wait for the aligner."""
        return len(self._queue)

    def expect_wait(self, expected: float) -> float:
        """Seconds until a photo that takes ``expected`` seconds alone is answered."""
        queued = sum(job.expected for job in self._queue if job.expected <= expected)
        running = sum(min(max(c.expected - c.seconds, 0.0), expected) for c in self._calls)
        return queued + running + expected

    async def align(self, photo: Photo, deadline: float = math.inf) -> tuple[Outcome, float]:
        """The faces of a photo, or the exception that it raised, and the seconds that it waited.

        ``deadline``: seconds of the clock. Raises Problem ``deadline`` at once where that
        can't be met, and later when it turns out so before the aligner has begun.
        """
        expected = self.durations.expect(photo)
        self.check_deadline(expected, deadline)
        loop = asyncio.get_running_loop()
        job = QueuedPhoto(photo, expected, self._clock(), deadline, loop.create_future())
        self._queue.append(job)
        self._start_working()
        try:
            return await job.outcome, job.began - job.arrived
        finally:
            if job in self._queue:  # its client went away
                self._queue.remove(job)

    def check_deadline(self, expected: float, deadline: float) -> None:
        """Raises Problem ``deadline`` where a photo of ``expected`` seconds would be late.

        An idle aligner tries any photo. Else durations learned on a machine that was busy for a
        while would refuse all photos from then on.
        """
        wait = self.expect_wait(expected)
        idle = not self._queue and not self._calls
        if self._clock() + (0.0 if idle else wait) > deadline:
            raise refuse_deadline(wait)

    async def run(self, call: Callable[[], T]) -> T:
        """The result of another call of the aligner, in its thread, between two steps."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def run_steps(self, steps: Generator[None, None, T]) -> T:
        """What a generator returns, whose steps have their turns as those of the photos do."""
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._calls.append(Call(steps, [], outcome))
        self._start_working()
        return await outcome

    def _start_working(self) -> None:
        if self._worker is None or self._worker.done():
            self._worker = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        while self._queue or self._calls:
            if jobs := self._take_batch():
                self._calls.append(Call(self._begin(jobs), jobs))
            if self._calls:
                await self._advance(min(self._calls, key=lambda call: call.share))

    def _take_batch(self) -> list[QueuedPhoto]:
        """The most urgent jobs of the queue; those that would be late are refused."""
        now = self._clock()
        alone = len(self._queue) == 1 and not self._calls
        late = [job for job in self._queue if now + job.expected > job.deadline]
        for job in [job for job in late if not alone or now > job.deadline]:
            self._queue.remove(job)
            job.began = now
            _settle(job, refuse_deadline(job.expected))
        self._queue.sort(key=lambda job: job.expected - AGEING * (now - job.arrived))
        if not self._queue:
            return []
        most = 2 * self._queue[0].expected
        batch = [job for job in self._queue if job.expected <= most][: self._limits.batch]
        self._queue = [job for job in self._queue if job not in batch]
        for job in batch:
            job.began = now
        return batch

    def _begin(self, jobs: Sequence[QueuedPhoto]) -> Steps:
        images = [job.photo[0] for job in jobs]
        boxes = [job.photo[1] for job in jobs]
        return self.aligner.align_in_steps(images, boxes, faces=self._limits.step)

    async def _advance(self, call: Call) -> None:
        """Run the next step of a call; end the call after its last one."""
        if call.abandoned:
            self._calls.remove(call)
            call.steps.close()
            return
        started = self._clock()
        result = await self.run(partial(_step, call.steps))
        call.seconds += self._clock() - started
        if result is None:
            return
        self._calls.remove(call)
        if call.outcome is None:
            await self._settle_photos(call, result)
        elif not call.outcome.cancelled():
            if isinstance(result, Finished):
                call.outcome.set_result(result.value)
            else:
                call.outcome.set_exception(result)

    async def _settle_photos(self, call: Call, result: Finished | Exception) -> None:
        if not isinstance(result, Finished):
            await self._align_alone(call.jobs, result)
            return
        found: list[list[Alignment]] = [*result.value]
        self.durations.learn([job.photo for job in call.jobs], sum(map(len, found)), call.seconds)
        for job, faces in zip(call.jobs, found, strict=True):
            _settle(job, faces)

    async def _align_alone(self, jobs: Sequence[QueuedPhoto], error: Exception) -> None:
        """When a batch fails, its photos are aligned one by one: each fails for its own sender."""
        for job in jobs:
            if len(jobs) == 1:
                _settle(job, error)
                return
            image, boxes = job.photo
            try:
                (found,) = await self.run(partial(self.aligner.align_batch, [image], [boxes]))
            except Exception as alone:
                _settle(job, alone)
            else:
                _settle(job, found)


def refuse_deadline(wait: float) -> Problem:
    """The answer to a request that would be late; ``wait``: seconds until it could be answered."""
    return Problem("deadline", headers={"Retry-After": str(max(1, math.ceil(wait)))})


def _settle(job: QueuedPhoto, outcome: Outcome) -> None:
    if not job.outcome.done():
        job.outcome.set_result(outcome)


def _step(steps: Generator[None, None, Any]) -> Finished | Exception | None:
    """The result of the next step; None for more to come."""
    try:
        next(steps)
    except StopIteration as end:
        return Finished(end.value)
    except Exception as error:
        return error
    return None
