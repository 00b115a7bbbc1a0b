"""Photos of all requests on one aligner: the shortest first, in steps, within deadlines."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from dff.aligner.alignment import Alignment
from dff.aligner.face_request import FaceRequest, Steps
from dff.aligner.service.face_aligner import FaceAligner, Outcome, Photo
from dff.aligner.service.http.limits import Limits
from dff.aligner.service.http.measures import Measures, get_measures
from dff.aligner.service.http.problems import Problem

T = TypeVar("T")
# Seconds of expected work that waiting makes up for, by its seconds squared: as good as nothing
# within a second or two, in which photos of many faces would hold small ones with their last steps,
# and all of a large photo within the 10 seconds after which it would be late.
AGEING = 0.004
LEARNING = 0.2  # weight of the latest duration in the mean of durations
# Waiting photos from which on another one is searched so that its faces share the step of the last
# one. The faces of two photos take 10 % less time in one step than in two, four as two.
DEEP = 2
CROWDED = (
    "the photo may show {faces} faces: without the header `Deadline` it is refused when photos "
    "that take less time would delay it much. Send that header with the seconds that you can wait, "
    "or try again after the seconds in the header `Retry-After`"
)
SEARCH_PIXELS = 4e6  # pixels of a photo whose search takes as long as another face


@dataclass(eq=False)
class QueuedPhoto:
    """A photo that waits for the aligner or is aligned."""

    photo: Photo
    expected: float  # seconds
    arrived: float  # seconds of the clock
    deadline: float  # the same; infinite without one
    slowdown: float  # how many times as long as alone it may take
    outcome: asyncio.Future[Outcome]
    measures: Measures
    began: float = math.nan  # when its call began


@dataclass(eq=False)
class Call:
    """One call of an aligner, which runs in steps."""

    aligner: FaceAligner
    steps: Steps[Any]
    arrived: float  # seconds of the clock
    measures: Measures
    job: QueuedPhoto | None = None  # the photo that it aligns; None for a call of another kind
    expected: float = 0.0  # seconds; 0 where they are not known
    outcome: asyncio.Future[Any] | None = None  # what the steps of another call return
    began: float = math.nan  # when its first step began
    begun: bool = False  # whether its first step has ended
    request: FaceRequest | None = None  # the faces that its next step aligns
    waited: bool = False  # whether these faces have waited for another search
    seconds: float = 0.0  # that its steps have taken

    @property
    def faces(self) -> int:
        """Faces of its next step."""
        return 0 if self.request is None else len(self.request.detections)

    @property
    def ends(self) -> bool:
        """Whether its next step aligns the last of its faces."""
        return self.request is not None and self.request.left == 0

    def expect(self, unit: float) -> float:
        """Seconds that it still takes, where a face takes ``unit``.

        A call of unknown length, or one that has taken longer than expected, is expected to take as
        long again as it has taken.
        """
        if self.job is not None and self.request is not None:
            return unit * (self.faces + self.request.left)
        if self.seconds < self.expected:
            return max(self.expected - self.seconds, unit)
        return max(self.seconds, unit)

    @property
    def abandoned(self) -> bool:
        """Whether no request waits for it any more."""
        if self.job is not None:
            return self.job.outcome.done()
        return self.outcome is None or self.outcome.cancelled()


@dataclass(frozen=True)
class Finished:
    """The value that a call returned after its last step."""

    value: Any


StepResult = FaceRequest | Finished | Exception | None


class Durations:
    """Expected durations of the aligner, learned from past ones: alike for a search and a face."""

    def __init__(self, first: float = 0.15) -> None:
        self.unit = first  # seconds to search a small photo, or to align a face

    def expect(self, photo: Photo) -> float:
        """Seconds of a photo; of one that is searched with one face in it."""
        return self.unit * count_units(photo, faces=1)

    def learn(self, photo: Photo, faces: int, seconds: float) -> None:
        """Learn from a photo with ``faces`` faces that took ``seconds``."""
        unit = seconds / max(count_units(photo, faces), 1.0)
        self.unit += LEARNING * (unit - self.unit)


def count_units(photo: Photo, faces: int) -> float:
    """The work for a photo, in units of a face; ``faces``: of a photo that is searched."""
    image, boxes = photo
    if boxes is not None:
        return max(len(boxes), 1)
    return 1.0 + image.shape[0] * image.shape[1] / SEARCH_PIXELS + faces


class Scheduler:
    """Gives photos to an aligner, which runs in one thread.

    That thread chooses its next step itself, so that it never waits for the event loop, which is
    busy with other requests. Both share what is queued, under a lock.

    Photos are aligned in steps. The next step is of the photo that is expected to be finished
    soonest: before and during its search by its size, then by the number of its faces; long waiting
    makes up for some of this. So photos of many faces, of which the number is not known before,
    large ones and long calls of another kind delay a small photo by a step. Shorter steps than a
    face takes are run together until another photo or call comes. The last faces of several photos
    share a step, for which they wait only where further photos do.
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
        self._lock = threading.RLock()  # of the queue, the calls and the next attributes
        self._working = False
        self._came = 0  # photos and other calls so far
        self.durations = Durations()

    @property
    def waiting(self) -> int:
        """Photos and other calls that wait for the aligner to begin with them."""
        with self._lock:
            return len(self._queue) + sum(math.isnan(call.began) for call in self._calls)

    @property
    def busy(self) -> bool:
        """Whether the aligner has anything to do."""
        return bool(self._queue or self._calls)

    def expect_wait(self, expected: float) -> float:
        """Seconds until a photo that takes ``expected`` seconds alone is answered."""
        with self._lock:
            unit = self.durations.unit
            queued = sum(job.expected for job in self._queue if job.expected <= expected)
            running = sum(min(call.expect(unit), expected) for call in self._calls)
        return queued + running + expected

    async def align(
        self, photo: Photo, deadline: float = math.inf, *, slowdown: float = math.inf
    ) -> Outcome:
        """The faces of a photo, or the exception that it raised. Measures the request.

        ``deadline``: seconds of the clock. Raises Problem ``deadline`` at once where that
        can't be met, and later when it turns out so before the aligner has begun.
        ``slowdown``: a photo of many faces may take so many times as long as alone; the outcome is
        Problem ``deadline`` if it would take longer when its faces are counted.
        """
        expected = self.durations.expect(photo)
        self.check_deadline(expected, deadline)
        job = QueuedPhoto(
            photo,
            expected,
            self._clock(),
            deadline,
            slowdown,
            asyncio.get_running_loop().create_future(),
            get_measures(),
        )
        with self._lock:
            self._queue.append(job)
            self._came += 1
            self._start_working()
        try:
            outcome = await job.outcome
        finally:
            with self._lock:
                if job in self._queue:  # its client went away
                    self._queue.remove(job)
        self._measure(job)
        return outcome

    def check_deadline(self, expected: float, deadline: float) -> None:
        """Raises Problem ``deadline`` where a photo of ``expected`` seconds would be late.

        An idle aligner tries any photo. Else durations learned on a machine that was busy for a
        while would refuse all photos from then on.
        """
        wait = self.expect_wait(expected)
        if self._clock() + (wait if self.busy else 0.0) > deadline:
            raise refuse_deadline(wait)

    async def run(self, call: Callable[[], T]) -> T:
        """The result of another call of the aligner, in its thread, between two steps."""
        return await self.run_steps(_as_one_step(call), self.aligner)

    async def run_steps(
        self, steps: Steps[T], aligner: FaceAligner, *, like: Photo | None = None
    ) -> T:
        """Run a call in steps beside those of photos; returns or raises what the call does.

        ``aligner`` answers its requests. ``like``: a photo that takes as long; None where that is
        not known. Measures the request.
        """
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        expected = 0.0 if like is None else self.durations.expect(like)
        call = Call(
            aligner, steps, self._clock(), get_measures(), expected=expected, outcome=outcome
        )
        with self._lock:
            self._calls.append(call)
            self._came += 1
            self._start_working()
        try:
            return await outcome
        finally:
            if call.begun:
                self._measure(call)

    def _measure(self, ended: QueuedPhoto | Call) -> None:
        """Count how long a photo or a call has waited and, from then on, been aligned."""
        ended.measures.count("queue", ended.began - ended.arrived)
        ended.measures.count("align", self._clock() - ended.began)

    def _start_working(self) -> None:
        if not self._working:
            self._working = True
            self._start()

    def _start(self) -> None:
        self._thread.submit(self._work)

    def _work(self) -> None:
        """Run steps until nothing is left to do."""
        try:
            while calls := self._take():
                self._advance(calls)
        except Exception:
            logging.getLogger(__name__).exception("the aligner's scheduler failed")
            with self._lock:
                self._working = False  # the next request starts it again

    def _take(self) -> list[Call]:
        """The calls that have the next step; none when nothing is left to do."""
        with self._lock:
            while self.busy:
                self._refuse_late()
                self._drop_abandoned()
                if calls := self._choose_calls():
                    return calls
            self._working = False
            return []

    def _refuse_late(self) -> None:
        """Refuse the photos of the queue that would be late; a single one is tried."""
        now = self._clock()
        alone = len(self._queue) == 1 and not self._calls
        late = [job for job in self._queue if now + job.expected > job.deadline]
        for job in [job for job in late if not alone or now > job.deadline]:
            self._queue.remove(job)
            job.began = now
            _settle(job.outcome, refuse_deadline(job.expected))

    def _drop_abandoned(self) -> None:
        for call in [call for call in self._calls if call.abandoned]:
            self._calls.remove(call)
            call.steps.close()

    def _choose_calls(self) -> list[Call]:
        """The call that has the next step, and others whose faces share it."""
        now, unit = self._clock(), self.durations.unit

        def rank(call: Call) -> float:
            return call.expect(unit) - AGEING * (now - call.arrived) ** 2

        def rank_queued(job: QueuedPhoto) -> float:
            return job.expected - AGEING * (now - job.arrived) ** 2

        job = min(self._queue, key=rank_queued, default=None)
        if not self._calls:
            return [] if job is None else [self._begin(job)]
        first, *others = sorted(self._calls, key=rank)
        if job is not None and rank_queued(job) < rank(first):
            return [self._begin(job)]
        if not first.ends:
            return [first]
        chosen, room = [first], self._limits.shared_step - first.faces
        for call in others:
            if call.aligner is first.aligner and call.ends and call.faces <= room:
                chosen.append(call)
                room -= call.faces
        if job is not None and room > 0 and not first.waited and len(self._queue) >= DEEP:
            first.waited = True
            return [self._begin(job)]
        return chosen

    def _begin(self, job: QueuedPhoto) -> Call:
        """Take a photo from the queue."""
        self._queue.remove(job)
        job.began = self._clock()
        image, boxes = job.photo
        steps = self.aligner.align_in_steps([image], [boxes], faces=self._limits.step)
        call = Call(self.aligner, steps, job.arrived, job.measures, job, job.expected)
        self._calls.append(call)
        return call

    def _advance(self, calls: Sequence[Call]) -> None:
        """Run the next step of a call, or of several that share it; end those that are done."""
        started, came = self._clock(), self._came
        for call in calls:
            call.began = started if math.isnan(call.began) else call.began
        if faces := sum(call.faces for call in calls):
            calls[0].measures.steps.append(faces)
        results = _step(calls)
        while (
            results == [None]
            and came == self._came
            and self._clock() - started < self.durations.unit
        ):
            results = [_send(calls[0].steps, None)]
        share = (self._clock() - started) / len(calls)
        with self._lock:
            for call, result in zip(calls, results, strict=True):
                self._note(call, result, share)

    def _note(self, call: Call, result: StepResult, seconds: float) -> None:
        """Record the result of a step that took ``seconds``."""
        call.seconds += seconds
        call.begun = True
        if result is None or isinstance(result, FaceRequest):
            counted = call.request is None and result is not None
            call.request = result
            if counted:
                self._refuse_slow(call)
        else:
            self._calls.remove(call)
            self._end(call, result)

    def _refuse_slow(self, call: Call) -> None:
        """Refuse a photo of several faces, now counted, that would exceed its ``slowdown``.

        It has the last turn. So at high load it would wait for many others, however long. Brief
        waits are no reason: a few clients with photos that take equally long share the time.
        """
        job, request = call.job, call.request
        if job is None or request is None or request.left == 0:
            return
        rest = call.expect(self.durations.unit)
        until_end = self.expect_wait(rest) - rest  # which counts its own steps twice
        longest = max(job.slowdown * (call.seconds + rest), self._limits.brief)
        if self._clock() - job.arrived + until_end > longest:
            call.steps.close()
            self._calls.remove(call)
            faces = len(request.detections) + request.left
            _settle(job.outcome, refuse_deadline(until_end - rest, CROWDED.format(faces=faces)))

    def _end(self, call: Call, result: Finished | Exception) -> None:
        job, outcome = call.job, call.outcome
        if job is not None and isinstance(result, Finished):
            (found,) = result.value
            self.durations.learn(job.photo, len(found), call.seconds)
            _settle(job.outcome, found)
        elif job is not None and isinstance(result, Exception):
            _settle(job.outcome, result)
        elif outcome is not None:
            if isinstance(result, Finished):
                _settle(outcome, result.value)
            else:
                _settle(outcome, error=result)


def refuse_deadline(wait: float, detail: str = "") -> Problem:
    """The answer to a request that would be late; ``wait``: seconds until it could be answered."""
    return Problem("deadline", detail, {"Retry-After": str(max(1, math.ceil(wait)))})


def _as_one_step(call: Callable[[], T]) -> Steps[T]:
    return call()
    yield None  # makes this function a generator


def _settle(future: asyncio.Future[Any], value: Any = None, error: Exception | None = None) -> None:
    """Give a future of an event loop, from any thread, its result, unless it has been given up."""

    def settle() -> None:
        if future.done():
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    with suppress(RuntimeError):  # the loop is closed: the server ends
        future.get_loop().call_soon_threadsafe(settle)


def _step(calls: Sequence[Call]) -> list[StepResult]:
    """The next result of each call: what its steps yield, return or raise."""
    return [
        answer if isinstance(answer, Exception) else _send(call.steps, answer)
        for call, answer in zip(calls, _answer(calls), strict=True)
    ]


def _answer(calls: Sequence[Call]) -> list[list[Alignment] | Exception | None]:
    """The alignments that each call asks for; None for a call that asks for none.

    When a batch of several calls fails, each is tried alone: each fails for its own sender.
    """
    requests = [call.request for call in calls if call.request is not None]
    if not requests:
        return [None for _ in calls]
    try:
        return [*calls[0].aligner.align_requests(requests)]
    except Exception as error:
        return [error] if len(calls) == 1 else [_answer([call])[0] for call in calls]


def _send(steps: Steps[Any], answer: list[Alignment] | None) -> StepResult:
    try:
        return steps.send(answer)
    except StopIteration as end:
        return Finished(end.value)
    except Exception as error:
        return error
