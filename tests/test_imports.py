"""The tree keeps its order: imports point one way, and each library has one address."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
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
        "infra/clusters/cluster.py",
        "pipeline/job/ray.py",
        "trainer/launch.py",
        "trainer/process_group.py",
        "trainer/worker.py",
        "aligner/service/ray_serve.py",
        "aligner/service/serve_imports.py",
    },
    "pyarrow": {"infra/"},
    "mlflow": {"infra/mlflow/tracking.py", "infra/mlflow/signature.py"},
    "boto3": {"infra/storage/s3.py"},
    "botocore": {"infra/storage/s3.py"},
    "fastapi": {"aligner/"},
    "pyrender": {"face/render/"},
    "typer": {"dff/commands/"},
    "av": {"dff/files/video_io.py"},
}
FILES = sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))


def module_of(path: Path) -> str:
    """The name that a file is imported by."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] == "dff" else ("dff", *parts))


@cache
def parse(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text())


def imports(path: Path) -> Iterator[str]:
    """Dotted names of all that a file imports, also inside functions."""
    for node in _import_statements(path):
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


@cache
def _import_statements(path: Path) -> list[ast.Import | ast.ImportFrom]:
    return [n for n in ast.walk(parse(path)) if isinstance(n, ast.Import | ast.ImportFrom)]


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


NAMESAKES = re.compile(
    r"dff/commands/|aligner/service/routes/|.*/kernels\.py|face/render/gl\.py|pipeline/job/ray\.py"
)
"""Files whose functions may have the name of another one, since they do its job: commands, routes,
compiled kernels, the other renderer, and the job on Ray.
"""


def find_repeated(names: Iterator[tuple[str, str]]) -> dict[str, list[str]]:
    """The names that come more than once, with the files that they come from."""
    places: dict[str, list[str]] = {}
    for name, place in names:
        places.setdefault(name, []).append(place)
    assert len(places) > 100
    return {name: files for name, files in places.items() if len(files) > 1}


def test_a_class_name_has_one_meaning() -> None:
    assert not find_repeated(
        (node.name, path.relative_to(ROOT).as_posix())
        for path in FILES
        for node in ast.walk(parse(path))
        if isinstance(node, ast.ClassDef)
    )


def test_a_public_function_name_has_one_meaning() -> None:
    assert not find_repeated(
        (node.name, place)
        for path in FILES
        if not NAMESAKES.match(place := path.relative_to(ROOT).as_posix())
        for node in parse(path).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and not node.name.startswith("_")
    )


def test_only_assets_opens_files_in_face() -> None:
    for path in sorted((ROOT / "face").rglob("*.py")):
        if path.name in (
            "assets.py",
            "gram.py",
            "int16.py",
            "simd.py",
        ):  # the last three: LLVM's "load" reads a register's worth of memory
            continue
        calls = [n.func for n in ast.walk(parse(path)) if isinstance(n, ast.Call)]
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

PLACES = {
    "aligner/service/": "serve",
    "face/render/id_renderer.py": "gl",
    "dff/demo/": "all",
    "dff/files/video_io.py": "video",
}
"""Extras of whole packages and modules: whoever enters one of these is asked for the extra."""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def extra_imports(path: Path) -> Iterator[tuple[str, str]]:
    """The libraries that a file imports when it runs, each with the extra it is imported under ("":
    none): by its place, or by the ``with require_extra(...)`` around it.
    """
    place = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    usual = next((extra for start, extra in PLACES.items() if place.startswith(start)), "")

    def visit(node: ast.AST, extra: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, ast.With):
            for item in node.items:
                match item.context_expr:
                    case ast.Call(func=ast.Name("require_extra"), args=[ast.Constant(str(name))]):
                        extra = name
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], extra) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module).split(".")[0], extra
        for child in ast.iter_child_nodes(node):
            yield from visit(child, extra)

    for library, extra in visit(parse(path), usual):
        if library not in sys.stdlib_module_names | {"dff", "tests", "benchmarks", "scripts"}:
            yield library, extra


@cache
def declared(extra: str) -> set[str]:
    """The distributions that ``deep-face-feature[extra]`` demands; "" is without an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = set()
    for line in project["optional-dependencies"][extra] if extra else project["dependencies"]:
        name, extras = re.match(r"([\w.-]+)(?:\[(.*)\])?", line).groups()  # type: ignore[union-attr]
        if name == project["name"]:
            names |= {one for extra in extras.split(",") for one in declared(extra)}
        names.add(canonical(name))
    return names | (declared("") if extra else set())


owners = cache(packages_distributions)
"""The distributions that each library can come from."""


def undeclared(path: Path, extra: str | None = None) -> set[str]:
    """What a file imports although the extra that it is imported under does not demand it. With
    ``extra`` given, all of the file is under that one.
    """
    return {
        f"{library} [{under}]"
        for library, under in extra_imports(path)
        if library not in APART
        and not {canonical(dist) for dist in owners().get(library, [library])}
        & declared(under if extra is None else extra)
    }


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_is_imported_is_asked_for(path: Path) -> None:
    """A library that comes only because another one needs it goes when that one changes its mind.

    What an extra does not demand is not imported under it; what needs no extra imports only what
    the distribution always demands.
    """
    assert not undeclared(path)


def test_what_tests_and_tools_import_is_asked_for() -> None:
    """The extra ``dev`` is what they are run with."""
    paths = [*(ROOT / "tests").rglob("*.py"), ROOT / "setup.py"]
    tools = [path for folder in ("benchmarks", "scripts") for path in (ROOT / folder).rglob("*.py")]
    assert tools
    beside = {f"{path.stem} []" for path in tools}  # scripts import each other
    assert not {name for path in [*paths, *tools] for name in undeclared(path, "dev")} - beside


def test_an_import_without_its_extra_is_found(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("""
import numpy
import boto3
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import matplotlib
with require_extra("s3"):
    import botocore
with require_extra("onnx"):
    import pyarrow
def f():
    import ray.train
""")
    assert undeclared(bad) == {"boto3 []", "pyarrow [onnx]", "ray []"}


def test_the_extras_together_are_all() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert declared("all") == {
        name for extra in set(groups) - {"all", "dev"} for name in declared(extra)
    } | {"deep-face-feature"}
    used = {extra for path in FILES for _, extra in extra_imports(path)}
    assert used - {""} <= set(groups) - {"dev"}
