from __future__ import annotations

import asyncio
import threading

import pytest

from dff.aligner.service.http.worker_threads import run_to_end


def test_a_cancelled_call_is_waited_for() -> None:
    """Else what it holds, as the memory of a photo, would be given to others before its end."""
    began, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        may_end.wait(30)
        ended.set()

    async def run() -> None:
        task = asyncio.create_task(run_to_end(work))
        await asyncio.to_thread(began.wait, 30)
        task.cancel()
        await asyncio.sleep(0.05)
        assert not task.done()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    asyncio.run(run())


def test_a_call_returns_or_raises() -> None:
    def fail() -> None:
        raise ValueError("no such photo")

    assert asyncio.run(run_to_end(lambda: 7)) == 7
    with pytest.raises(ValueError, match="no such photo"):
        asyncio.run(run_to_end(fail))
