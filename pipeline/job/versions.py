"""Versions of what decides the bytes of a row: the project's own code and the numeric libraries.

The code's version is a digest of the modules that the row-making function imports, directly or
through others. Only what the interpreter executes is digested: comments, docstrings and layout are
not, so that editing them leaves an interrupted job resumable, and neither are modules that no row
depends on, such as the inspection of a finished dataset.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

DISTRIBUTION = "deep-face-feature"
PACKAGE = "dff"
ROW_MAKER = "dff.pipeline.synthesis:build_row_maker"
"""The function, ``package.module:function``, whose rows a synthesis job stores."""

LIBRARIES = ("numba", "numpy", "opencv-python-headless", "pillow", "pyarrow", "scipy")
"""Distributions whose arithmetic and encoders decide a row's bytes."""

DATA_SUFFIXES = (".glsl", ".npy", ".png", ".toml")
"""Of the data files that modules read. Models and textures are digested as a plan's assets."""

ROOT = Path(__file__).parents[2]  # the folder that holds the rooms, installed or in a checkout


@cache
def library_versions() -> dict[str, str]:
    """The installed version of each of LIBRARIES."""
    return {name: version(name) for name in LIBRARIES}


@cache
def code_version() -> str:
    """The distribution's version and the digest of the code that makes rows."""
    return f"{version(DISTRIBUTION)}+{find_row_code(ROOT, ROW_MAKER).digest()[:12]}"


@dataclass(frozen=True)
class RowCode:
    """The code and data that a function's results depend on, within this project."""

    root: Path
    entry: tuple[str, ...]  # normalised definitions of the function's module that it refers to
    modules: tuple[Path, ...]  # whole modules that these import, transitively; sorted
    data: tuple[Path, ...]  # files that the modules name; sorted

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the normalised code and of the data files' bytes."""
        total = hashlib.sha256("\n".join(self.entry).encode())
        for path in (*self.modules, *self.data):
            content = path.read_bytes()
            digest = _read(content).digest if path.suffix == ".py" else _digest(content)
            total.update(path.relative_to(self.root).as_posix().encode() + b"\0" + digest)
        return total.hexdigest()


@dataclass(frozen=True)
class _Source:
    """The part of a module's source that can change rows."""

    imports: tuple[ast.Import | ast.ImportFrom, ...]  # also inside functions
    data: frozenset[str]  # names of data files in its strings
    digest: bytes  # of its normalised code


@cache
def _read(content: bytes) -> _Source:
    tree = ast.parse(content)
    return _Source(
        tuple(_import_statements(tree)),
        frozenset(
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node.value.endswith(DATA_SUFFIXES)
        ),
        _digest(normalise(tree).encode()),
    )


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def find_row_code(root: Path, function: str) -> RowCode:
    """Follow the imports of ``package.module:function`` through the modules below ``root``.

    Of the function's own module only the definitions that it refers to count, and of these only the
    imports that they use. Raises FileNotFoundError when there is no such module.
    """
    module, _, name = function.partition(":")
    path = _find_module(root, module)
    if path is None:
        raise FileNotFoundError(f"no module {module} below {root}")
    definitions = _find_definitions(ast.parse(path.read_bytes()), name)
    waiting = [
        found
        for node in definitions
        for statement in _import_statements(node)
        for found in _find_imported(root, statement)
    ]
    modules: set[Path] = set()
    data: set[Path] = set()
    while waiting:
        current = waiting.pop()
        if current in modules:
            continue
        modules.add(current)
        source = _read(current.read_bytes())
        data.update(_find_data(current, source.data))
        for statement in source.imports:
            waiting += _find_imported(root, statement)
    entry = tuple(normalise(node) for node in definitions)
    return RowCode(root, entry, tuple(sorted(modules)), tuple(sorted(data)))


def normalise(node: ast.AST) -> str:
    """The code of a syntax tree without positions, comments and docstrings, as text."""
    return _write(node)


def _write(value: object) -> str:
    if isinstance(value, list):
        return "[" + " ".join(_write(item) for item in value if not _is_text(item)) + "]"
    if not isinstance(value, ast.AST):
        return repr(value)
    fields = (f"{name}={_write(item)}" for name, item in ast.iter_fields(value) if item != [])
    return f"{type(value).__name__}({' '.join(fields)})"


def _is_text(node: object) -> bool:
    """Whether a statement is only a string: a docstring, or one below a constant."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _find_definitions(tree: ast.Module, name: str) -> list[ast.stmt]:
    """The top-level statements that define ``name`` and what it refers to, in their order."""
    defined: dict[str, list[ast.stmt]] = {}
    for statement in tree.body:
        for defined_name in _defined_names(statement):
            defined.setdefault(defined_name, []).append(statement)
    wanted: set[str] = set()
    waiting = [name]
    while waiting:
        current = waiting.pop()
        if current in wanted or current not in defined:
            continue
        wanted.add(current)
        for statement in defined[current]:
            if not isinstance(statement, ast.Import | ast.ImportFrom):
                nodes = ast.walk(statement)
                waiting += [node.id for node in nodes if isinstance(node, ast.Name)]
    chosen: list[ast.stmt] = []
    for statement in tree.body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            names = [alias for alias in statement.names if _bound_name(alias) in wanted]
            if names:
                statement.names = names
                chosen.append(statement)
        elif wanted & set(_defined_names(statement)):
            chosen.append(statement)
    return chosen


def _defined_names(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return [_bound_name(alias) for alias in statement.names]
    return [
        node.id
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    ]


def _bound_name(alias: ast.alias) -> str:
    return alias.asname or alias.name.partition(".")[0]


def _find_imported(root: Path, statement: ast.Import | ast.ImportFrom) -> list[Path]:
    """Modules below ``root`` that a statement imports."""
    if isinstance(statement, ast.Import):
        names = [alias.name for alias in statement.names]
    elif package := statement.module:
        # A name is a module of the package, or defined in the package itself.
        names = [
            inner if _find_module(root, inner := f"{package}.{alias.name}") else package
            for alias in statement.names
        ]
    else:
        return []
    return [path for path in (_find_module(root, name) for name in names) if path is not None]


def _import_statements(node: ast.AST) -> list[ast.Import | ast.ImportFrom]:
    return [each for each in _executed(node) if isinstance(each, ast.Import | ast.ImportFrom)]


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a tree without the bodies of ``if TYPE_CHECKING:``."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and getattr(child.test, "id", "") == "TYPE_CHECKING":
            for other in child.orelse:
                yield from _executed(other)
        else:
            yield from _executed(child)


def _find_module(root: Path, name: str) -> Path | None:
    """The file of a module of this project; None for the module of another project."""
    package, _, rest = name.partition(".")
    if package != PACKAGE or not rest:
        return None
    place = root.joinpath(*rest.split("."))
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            return path
    return None


def _find_data(path: Path, names: Iterable[str]) -> Iterator[Path]:
    """Data files that a module names: beside it, in folders beside it, or in its room's folders."""
    folders = [path.parent, *(f for f in path.parent.iterdir() if f.is_dir())]
    folders.append(path.parents[1] / "data")
    for name in names:
        yield from (folder / name for folder in folders if (folder / name).is_file())
