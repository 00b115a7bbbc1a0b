"""A small job on the toy model, with faults on demand, importable by worker processes."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import numpy as np

from dff.face.errors import BadFit, TransientStorageError
from dff.infra.datasets.shards import ViewRow, make_sample_id
from dff.pipeline.job.plan import Plan, make_plan
from dff.pipeline.job.work import (
    Failure,
    MakeRows,
    ShardPlan,
    ShardResult,
    WorkSpec,
    derive_seed,
)
from dff.pipeline.recovery.photos import PhotoRef
from tests.conftest import make_toy_model
from tests.infra.rows import toy_view

SEED = 7
VIEWS = 3


def toy_plan(
    subjects: int = 12, *, seed: int = SEED, shard_subjects: int = 3, views: int = VIEWS
) -> Plan:
    """Half photos (which the toy job never reads), half sampled identities."""
    photos = [
        PhotoRef(f"afw/ünï {i}_1", f"afw/ünï {i}_1.jpg", f"afw/ünï {i}_1.pts")
        for i in range(subjects // 2)
    ]
    return make_plan(
        photos,
        identities=subjects - len(photos),
        seed=seed,
        options={"views": views, "size": 32},
        assets={"toy": "0" * 64},
        renderer="numba",
        shard_subjects=shard_subjects,
    )


def factory(
    log: str,
    *,
    bad: int = 0,
    seconds: float = 0.0,
    views: int = VIEWS,
    together: int = 1,
    fault: str = "",
    shard: int = -1,
    seed: int = SEED,
) -> MakeRows:
    """Rows of every subject but the first ``bad`` of each shard, which fail.

    Leaves marks in the folder ``log``: ``built-PID``, and ``begin-`` and ``end-SHARD-COUNT`` for
    each call, with the time in them. No shard is done before ``together`` shards have begun.
    ``fault`` befalls ``shard``: "transient once", "crash once", "crash", "hang once", "wrong".
    """
    folder = Path(log)
    model = make_toy_model()
    (folder / f"built-{os.getpid()}-{time.monotonic_ns()}").touch()

    def make_rows(plan: ShardPlan) -> ShardResult:
        calls = len(list(folder.glob(f"begin-{plan.index}-*")))
        (folder / f"begin-{plan.index}-{calls}").write_text(str(time.monotonic()))
        time.sleep(seconds)
        while len(list(folder.glob("begin-*"))) < together:
            time.sleep(0.01)
        if plan.index == shard and (calls == 0 or not fault.endswith("once")):
            if fault.startswith("crash"):
                os._exit(3)
            if fault.startswith("hang"):
                time.sleep(1000)
            if fault.startswith("transient"):
                raise TransientStorageError("the photo did not come")
            if fault.startswith("wrong"):
                raise ZeroDivisionError("a mistake of ours")
        rows: list[ViewRow] = []
        failures = []
        for position, subject in enumerate(plan.subjects):
            if position < bad:
                failures.append(Failure(subject.id, BadFit.__name__, "no fit"))
                continue
            for view in range(views):
                rng = np.random.default_rng(derive_seed(seed, make_sample_id(subject.id, view)))
                rows.append(toy_view(model, subject.id, view, size=32, rng=rng)[0])
        (folder / f"end-{plan.index}-{calls}").write_text(str(time.monotonic()))
        return ShardResult(tuple(rows), tuple(failures))

    return make_rows


def toy_work(log: Path, **faults: str | int | float) -> WorkSpec:
    return WorkSpec.create("tests.pipeline.job.toy_work:factory", log=str(log), **faults)


def made(log: Path) -> Counter[int]:
    """How often each shard was begun."""
    return Counter(int(path.name.split("-")[1]) for path in log.glob("begin-*"))


def most_at_once(log: Path) -> int:
    """The greatest number of shards that were in the making at one time."""
    spans = []
    for begin in log.glob("begin-*"):
        spans.append((float(begin.read_text()), 1))
        spans.append((float((log / begin.name.replace("begin", "end")).read_text()), -1))
    running = np.cumsum([change for _, change in sorted(spans)])
    return int(running.max())
