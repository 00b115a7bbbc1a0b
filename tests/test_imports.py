"""The tree keeps its order: imports point one way, and each library has one address."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {
    "face": set[str](),
    "infra": {"face"},
    "pipeline": {"face", "infra"},
    "trainer": {"face", "infra"},
    "aligner": {"face", "infra"},
    "dff": {"face", "infra", "pipeline", "trainer", "aligner"},
}
ADDRESSES = {
    "ray": {
        "infra/cluster.py",
        "pipeline/job/ray.py",
        "trainer/launch.py",
        "trainer/worker.py",
        "aligner/service/ray_serve.py",
    },
    "pyarrow": {"infra/"},
    "mlflow": {"infra/tracking.py"},
    "boto3": {"infra/storage/s3.py"},
    "botocore": {"infra/storage/s3.py"},
    "fastapi": {"aligner/"},
    "pyrender": {"face/render/"},
    "typer": {"dff/cli.py"},
}
FILES = sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))


def module_of(path: Path) -> str:
    """The name that a file is imported by."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] == "dff" else ("dff", *parts))


def imports(path: Path) -> Iterator[str]:
    """Dotted names of all that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_one_way(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    names = {name for name in imports(path)}
    bare = {name for name in names if name.split(".")[0] in set(ROOMS) - {"dff"}}
    assert not bare, f"{path} imports {bare}: rooms are imported as dff.ROOM"
    used = {name.split(".")[1] for name in names if name.startswith("dff.")} & set(ROOMS)
    assert used <= ROOMS[room] | {room}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_each_library_has_its_address(path: Path) -> None:
    place = path.relative_to(ROOT).as_posix()
    for name in {name.split(".")[0] for name in imports(path)} & set(ADDRESSES):
        assert any(place.startswith(address) for address in ADDRESSES[name]), (
            f"{place} imports {name}"
        )


def test_no_import_cycles() -> None:
    modules = {module_of(p): p for p in FILES}
    graph = {
        name: {used for used in imports(path) if used in modules} for name, path in modules.items()
    }
    order = list(TopologicalSorter(graph).static_order())
    assert set(modules) <= set(order)


def sub_room_of(path: Path) -> str:
    """The folder within its room that a file lies in; of a file beside these, its own name."""
    return path.relative_to(ROOT).with_suffix("").parts[1]


@pytest.mark.parametrize("room", ROOMS)
def test_sub_rooms_import_one_way(room: str) -> None:
    modules = {module_of(path): path for path in FILES if path.is_relative_to(ROOT / room)}
    graph: dict[str, set[str]] = {}
    for path in modules.values():
        used = {sub_room_of(modules[name]) for name in imports(path) if name in modules}
        graph.setdefault(sub_room_of(path), set()).update(used - {sub_room_of(path)})
    graph.pop("__init__", None)  # the front door names what lies in all of them
    assert set(TopologicalSorter(graph).static_order()) >= set(graph)


def test_only_assets_opens_files_in_face() -> None:
    for path in sorted((ROOT / "face").rglob("*.py")):
        if path.name in (
            "assets.py",
            "simd.py",
        ):  # simd: LLVM's "load" reads a register's worth of memory
            continue
        calls = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        names = {f.id for f in calls if isinstance(f, ast.Name)} | {
            f.attr for f in calls if isinstance(f, ast.Attribute)
        }
        assert not names & {
            "open",
            "read_bytes",
            "read_text",
            "write_bytes",
            "write_text",
            "load",
            "imread",
        }, path


def test_the_check_finds_what_it_forbids(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    import ray.data\n    from dff.aligner import align\n")
    assert {"ray.data", "dff.aligner", "dff.aligner.align"} <= set(imports(bad))


APART = {"pyrender"}
"""Installed without what it asks for, since that is too old: see the Dockerfile."""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_what_is_imported_is_asked_for() -> None:
    """A library that comes only because another one needs it goes when that one changes its
    mind.
    """
    text = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = text["project"]["optional-dependencies"]
    always = {canonical(re.split(r"[<>=\[]", line)[0]) for line in text["project"]["dependencies"]}
    optional, dev = (
        {canonical(re.split(r"[<>=\[]", line)[0]) for name in names for line in groups[name]}
        for names in (("models", "onnx"), ("dev",))
    )
    built_with = {"setuptools"}
    owners = packages_distributions()
    tests = sorted((ROOT / "tests").rglob("*.py"))
    tools = sorted(
        path for folder in ("benchmarks", "scripts") for path in (ROOT / folder).rglob("*.py")
    )
    assert tools
    for files, declared in (
        (FILES, always | optional),
        (tests, always | dev | built_with),
        (tools, always | dev),
    ):
        used = {name.split(".")[0] for path in files for name in imports(path)}
        used -= (
            set(sys.stdlib_module_names) | set(ROOMS) | {"tests", "benchmarks", "scripts"} | APART
        )
        missing = {
            name
            for name in used
            if not {canonical(dist) for dist in owners.get(name, [name])} & declared
        }
        assert not missing
