"""Frames of a film held back until the numbers of their tracks are final.

A person who comes into view again is a new track until enough of the face is seen. For a recording
it is therefore decided some frames later whose the faces of the first ones are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from dff.aligner.tracking.tracker import Tracked, Tracker
from dff.face.arrays import Bytes

Kept = TypeVar("Kept")


@dataclass
class SettledFrame(Generic[Kept]):
    """The faces of a frame, with what the caller keeps of it."""

    kept: Kept
    faces: list[Tracked]


class SettlingTracker(Generic[Kept]):
    """A tracker's frames, each given when no later one can rename its tracks."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.held = deque[SettledFrame[Kept]]()

    def step(self, frame: Bytes, time: float, kept: Kept) -> Iterator[SettledFrame[Kept]]:
        """Track the faces of the next frame as ``Tracker.step``; the frames that are final now."""
        self.held.append(SettledFrame(kept, self.tracker.step(frame, time)))
        if renamed := self.tracker.renamed:
            for one in self.held:
                faces = [
                    replace(each, track=renamed.get(each.track, each.track)) for each in one.faces
                ]
                one.faces = sorted(faces, key=lambda each: each.track)
        unsettled = self.tracker.unsettled()
        while self.held and unsettled.isdisjoint(each.track for each in self.held[0].faces):
            yield self.held.popleft()

    def finish(self) -> Iterator[SettledFrame[Kept]]:
        """The frames that are held back after the last one."""
        while self.held:
            yield self.held.popleft()
