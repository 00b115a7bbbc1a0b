"""Memory that a server keeps: of photos that were decoded in threads, and of what it imports."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

PROGRAM = """
import sys
from concurrent.futures import ThreadPoolExecutor

import psutil

from dff.aligner.service.allocator import LARGE, return_freed_memory

if sys.argv[1] == "returned":
    return_freed_memory()
with ThreadPoolExecutor(8) as threads:
    before = psutil.Process().memory_info().rss
    for size in (4 * LARGE // 3, LARGE):  # the first that is freed tells glibc what to keep
        kept = []
        for _ in range(3):
            photos = list(threads.map(lambda n: (bytearray(n), bytearray(50_000)), [size] * 8))
            kept.append([small for _, small in photos])
            del photos
    print((psutil.Process().memory_info().rss - before) / (1 << 20))
"""

HOLES = """
import asyncio
from contextlib import suppress

import psutil

from dff.aligner.service.allocator import keep_trimming

process = psutil.Process()
blocks = [bytearray(100_000) for _ in range(1000)]
blocks[::2] = [None] * 500
before = process.memory_info().rss


async def wait() -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(keep_trimming(0.01), 0.5)


asyncio.run(wait())
print((before - process.memory_info().rss) / (1 << 20))
"""


@pytest.mark.skipif(not psutil.LINUX, reason="of glibc")
def test_memory_between_used_blocks_is_returned() -> None:
    returned = float(subprocess.check_output([sys.executable, "-c", HOLES], text=True))
    assert returned > 30  # of 50 MB


@pytest.mark.skipif(not psutil.LINUX, reason="of glibc")
def test_memory_of_photos_is_returned() -> None:
    kept = {
        mode: float(subprocess.check_output([sys.executable, "-c", PROGRAM, mode], text=True))
        for mode in ("kept", "returned")
    }
    assert kept["returned"] < 16
    assert kept["returned"] < kept["kept"]


def imported(module: str, *names: str) -> list[str]:
    """Those of ``names`` that are imported with ``module``."""
    program = f"import sys; import {module}; print(*(n for n in {names} if n in sys.modules))"
    return subprocess.check_output([sys.executable, "-c", program], text=True).split()


def test_the_process_that_starts_replicas_imports_no_network() -> None:
    module = "dff.aligner.service.ray_serve"
    assert not imported(module, "torch", "numba", "cv2", "scipy", "mlflow")


@pytest.mark.parametrize("module", ["ray_serve", "serve_imports"])
def test_processes_of_ray_serve_import_no_tables(module: str) -> None:
    """60 MB in each of the launcher, the controller, the proxies and the replicas."""
    assert not imported(f"dff.aligner.service.{module}", "pandas", "pyarrow")


def test_replicas_import_no_client_of_clusters() -> None:
    assert not imported("dff.aligner.service.ray_serve", "aiohttp", "ray.job_submission")


def test_what_is_hidden_can_be_imported_later() -> None:
    program = "import dff.aligner.service.serve_imports, pandas; print(len(pandas.Series([1])))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "1"
