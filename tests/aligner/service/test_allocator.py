"""Memory that a server keeps: of photos that were decoded in threads, and of what it imports."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from dff.aligner.service.allocator import find_unchanged

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

CODE = """
import llvmlite.binding
import numpy as np
import psutil

from dff.aligner.service.allocator import drop_code

a = np.random.default_rng(0).random((50, 50))
llvmlite.binding.initialize_native_target()
roots = np.linalg.svd(a)
before = psutil.Process().memory_info().rss
drop_code()
print((before - psutil.Process().memory_info().rss) / (1 << 20))
assert all((one == other).all() for one, other in zip(roots, np.linalg.svd(a)))
assert llvmlite.binding.parse_assembly("define i32 @f() { ret i32 1 }").get_function("f")
"""


@pytest.mark.skipif(not psutil.LINUX, reason="of Linux")
def test_code_is_dropped_and_comes_back() -> None:
    dropped = float(subprocess.check_output([sys.executable, "-c", CODE], text=True))
    assert dropped > 10


def mapping(number: int, permissions: str, file: str, *, changed: int = 0) -> str:
    """A mapping as Linux tells it, of 4 kB from page ``number`` on; ``changed`` kB."""
    return (
        f"{number:x}000-{number + 1:x}000 {permissions} 00002000 fe:00 5440614    {file}\n"
        f"Rss:                   4 kB\nPrivate_Dirty: {changed:12} kB\n"
        f"Anonymous: {changed:12} kB\nVmFlags: rd mr mw me\n"
    )


def test_pages_that_were_changed_are_not_dropped() -> None:
    """They would come back as they are in the file."""
    mappings = [
        mapping(0x10, "r-xp", "/lib/liba.so.1.2"),
        mapping(0x20, "r--p", "/lib/liba.so.1.2", changed=4),  # relocated
        mapping(0x30, "rw-p", "/lib/liba.so.1.2"),
        mapping(0x40, "r-xp", ""),  # compiled here
        mapping(0x50, "r-xp", "/lib/libb.so (deleted)"),
        mapping(0x60, "r--p", "/lib/of py/c.cpython-311-x86_64-linux-gnu.so"),
    ]
    found = [*find_unchanged("".join(mappings))]
    assert found == [(0x10000, 0x11000), (0x60000, 0x61000)]


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
