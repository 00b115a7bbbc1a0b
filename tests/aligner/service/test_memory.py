"""Memory for decoded photos."""

from __future__ import annotations

import asyncio

from dff.aligner.service.memory import DecodingMemory


def test_what_is_held_never_exceeds_the_total() -> None:
    memory = DecodingMemory(100, small=40)
    most = 0

    async def use(count: int) -> None:
        nonlocal most
        async with memory.hold(count) as holding:
            most = max(most, memory.held)
            await asyncio.sleep(0)
            holding.shrink(count // 3)
            await asyncio.sleep(0)

    async def run() -> None:
        await asyncio.gather(*(use(count) for count in (5, 10, 11, 60, 1000, 30, 3) * 20))

    asyncio.run(run())
    assert 60 < most <= 100
    assert memory.held == 0


def test_small_photos_do_not_wait_for_large_ones() -> None:
    memory = DecodingMemory(100, small=40)

    async def run() -> None:
        async with memory.hold(60):
            large = asyncio.create_task(memory.hold(50).__aenter__())
            await asyncio.sleep(0)
            async with asyncio.timeout(1), memory.hold(10):
                assert not large.done()
        await large

    asyncio.run(run())


def test_one_that_stops_waiting_holds_nothing() -> None:
    memory = DecodingMemory(100, small=40)

    async def run() -> None:
        async with memory.hold(60):
            waiting = [asyncio.create_task(memory.hold(60).__aenter__()) for _ in range(2)]
            await asyncio.sleep(0)
            waiting[0].cancel()
        await waiting[1]
        assert memory.held == 60

    asyncio.run(run())
