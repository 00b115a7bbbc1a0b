"""Messages from workers to the driver during a run, and their handling by the driver."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from tqdm import tqdm

from dff.face.arrays import Array, UInt8


@dataclass(frozen=True)
class Started:
    """All workers have begun, or begun again after one was lost."""

    workers: int


@dataclass(frozen=True)
class Measured:
    """Figures at a step."""

    step: int
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Drawn:
    """A picture of the run."""

    name: str
    image: UInt8[Array, "height width 3"]  # RGB


Event = Started | Measured | Drawn


class Recorder(Protocol):
    """Where figures and pictures go."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None: ...

    def picture(self, name: str, image: UInt8[Array, "height width 3"]) -> None: ...


@dataclass(frozen=True)
class Follower:
    """Takes the events of a run: records them, and moves a bar of the steps."""

    recorder: Recorder
    bar: tqdm | None = None  # type: ignore[type-arg]
    on_start: Callable[[], None] = lambda: None  # workers have begun

    def take(self, event: Event) -> None:
        """Record one event."""
        if isinstance(event, Started):
            self.on_start()
        elif isinstance(event, Drawn):
            self.recorder.picture(event.name, event.image)
        else:
            self.recorder.metrics(event.step, event.figures)
            if self.bar is not None and "loss" in event.figures:
                self.bar.set_postfix(
                    loss=f"{event.figures['loss']:.3f}",
                    waiting=f"{event.figures.get('wait_fraction', 0.0):.0%}",
                    refresh=False,
                )
                show_step(self.bar, event.step)


def show_step(bar: tqdm, step: int) -> None:  # type: ignore[type-arg]
    """Move a bar of the steps; a step that is done again moves it back.

    Its rate is that of the steps after the first one shown, since an earlier run may have done
    those before.
    """
    if bar.n == 0:
        bar.initial = bar.n = bar.last_print_n = step
        bar.unpause()
        bar.refresh()
    else:
        bar.update(step - bar.n)
