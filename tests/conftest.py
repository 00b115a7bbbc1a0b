"""Fixtures that every room's tests share: a toy face, the open head, and the folder of shared
data.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores among them. Read when numpy and torch are imported.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
# torch.compile starts a pool of processes otherwise, each of which imports torch.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
# It would compile programs that try the instructions that the CPU says it has.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")
# Processes that tests start read this program compiled: there are a hundred of them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Ray Train takes reports of workers, which wait for it, this often; its default is 2 seconds.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")

import numpy as np
import pytest
from filelock import FileLock

from tests import shapes

shapes.install()
gc.disable()  # until all is imported: a fifth of that time
sys.dont_write_bytecode = False

from dff.face.arrays import Floats, Ints  # noqa: E402
from dff.face.model.landmarks import NAMES, LandmarkTable  # noqa: E402
from dff.face.model.morphable import MorphableModel  # noqa: E402

if TYPE_CHECKING:
    from tests.s3_server import FaultyS3
    from tests.swift_server import Swift

RINGS, SEGMENTS = 4, 8
"""The toy head is an egg of four rings of eight vertices and two poles: 34 vertices, 64
triangles.
"""

REGIONS = (
    "face",
    "neck",
    "scalp",
    "ears",
    "lips",
    "brows",
    "eyes",
    "lashes",
    "teeth",
    "tongue",
    "mouth",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: nothing long is left for one process at the end.

    Tests that start Ray wait half of their time. Of three neighbours in the order two start it and
    one computes, so that three processes keep two cores busy.
    """
    waiting, computing, short = (
        [path for path in dict.fromkeys(item.path for item in items) if _kind(path) == kind]
        for kind in ("ray", "slow", "")
    )
    order: list[Path] = []
    while waiting or computing:
        order += waiting[:2] + computing[:1]
        del waiting[:2], computing[:1]
    place = {path: number for number, path in enumerate(order + short)}
    items.sort(key=lambda item: place[item.path])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list[Any]) -> None:
    """Fork the workers from a process that has imported the tests."""
    from tests.worker_forks.start import start_server

    command = start_server(config.args)
    for spec in specs:
        spec.python = command


def pytest_collection_finish() -> None:
    """Collect garbage from here on, without looking at what was imported."""
    gc.freeze()
    gc.enable()


@cache
def _kind(path: Path) -> str:
    text = path.read_text()
    return next((mark for mark in ("ray", "slow") if f"pytest.mark.{mark}" in text), "")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of photos and models beside the repository; skips where it is absent."""
    path = Path(__file__).resolve().parents[1].parent / "shared"
    if not (path / "data").is_dir():
        pytest.skip(
            "needs ../shared, a folder of research-only photos and models beside the repository"
        )
    return path


@pytest.fixture(scope="session")
def open_head() -> MorphableModel:
    """The embedded default model."""
    from dff.face.io.assets import load_model

    return load_model()


@pytest.fixture(scope="session")
def toy_model() -> MorphableModel:
    """A closed, convex, mirror-symmetric head of 34 vertices with 4 identity and 3 expression
    modes.
    """
    return make_toy_model()


@pytest.fixture(scope="session")
def s3() -> Iterator[FaultyS3]:
    """An S3 server on this machine, with a bucket "faces" and credentials for it in the
    environment.
    """
    from tests.s3_server import serve_s3

    with serve_s3() as server:
        yield server


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this run of the tests share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def ray_forks(run_folder: Path) -> Path:
    """Where a server listens that forks Ray's workers (``tests.ray_forks.start.forked_from``)."""
    from tests.ray_forks.start import start_server

    owner = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    path = Path(__file__).parents[1] / "build" / f"ray-forks-{owner}"  # seen by separate nodes
    log = run_folder / "ray-forks.log"
    with FileLock(run_folder / "ray-forks.lock"):
        if not log.exists():
            path.parent.mkdir(exist_ok=True)
            path.unlink(missing_ok=True)
            start_server(path, owner, log)
    return path


@pytest.fixture(scope="session")
def mlflow_database(run_folder: Path) -> Path:
    """An empty database of MLflow, for copies: making one runs all its migrations, for seconds."""
    from dff.infra.mlflow import tracking

    folder = run_folder / "mlflow"
    with FileLock(run_folder / "mlflow.lock"):
        if not folder.exists():
            unfinished = run_folder / "mlflow-unfinished"
            tracking.check_server(tracking.local_uri(unfinished))
            unfinished.rename(folder)
    return folder / "mlflow.db"


@pytest.fixture(scope="session")
def exported_net(run_folder: Path) -> Path:
    """The ONNX file of the default weights: writing one takes ten seconds."""
    pytest.importorskip("onnx", reason="optional packages of the extra onnx")
    from dff.infra.networks import onnx_file, weights

    path = run_folder / "onnx" / "dff-open.onnx"
    with FileLock(run_folder / "onnx.lock"):
        if not path.exists():
            with warnings.catch_warnings():
                warnings.simplefilter("error", FutureWarning)  # notices of torch's exporter
                onnx_file.export(weights.load(weights.DEFAULT), path)
    return path


@pytest.fixture
def mlflow_uri(mlflow_database: Path, tmp_path: Path) -> str:
    """The tracking URI of an empty MLflow, in the folder ``ml``."""
    from dff.infra.mlflow import tracking

    uri = tracking.local_uri(tmp_path / "ml")
    shutil.copy(mlflow_database, tmp_path / "ml" / "mlflow.db")
    return uri


@pytest.fixture(scope="session")
def swift_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    """A real S3 server on this machine, with a bucket "faces"; skips where it is not installed."""
    from tests.swift_server import HOME, installed, serve_swift

    home = installed()
    if home is None:
        pytest.skip(f"needs OpenStack Swift in {HOME} (make s3-server) or in $DFF_SWIFT")
    with serve_swift(home, tmp_path_factory.mktemp("swift")) as server:
        yield server


@pytest.fixture(scope="module")
def s3_credentials(request: pytest.FixtureRequest) -> Iterator[None]:
    """Those of the server of ``s3_url``, for processes that are started before the tests."""
    from tests.swift_server import credentials, installed

    if installed() is None:
        request.getfixturevalue("s3")  # which leaves them in the environment
        yield
        return
    with credentials():
        yield


@pytest.fixture
def s3_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """URL of the most real S3 server that is installed, with a bucket "faces" and credentials."""
    from tests.swift_server import credentials, installed

    if installed() is None:
        yield request.getfixturevalue("s3").url
        return
    with credentials():
        yield request.getfixturevalue("swift_server").url


@pytest.fixture
def swift(swift_server: Swift) -> Iterator[Swift]:
    """That server, with credentials for it in the environment."""
    from tests.swift_server import credentials

    with credentials():
        yield swift_server


def make_toy_model() -> MorphableModel:
    """The toy model without its fixture, for processes that a test starts."""
    azimuth = np.deg2rad(
        45.0 * np.arange(-3, 5)
    )  # 0 is the nose, positive to the face's left; the last is the back
    latitude = np.deg2rad([54.0, 18.0, -18.0, -54.0])
    radii = np.array([0.075, 0.115, 0.095])  # metres
    directions = [np.array([0.0, 1.0, 0.0])]
    for lat in latitude:
        for az in azimuth:
            directions.append(
                np.array([np.cos(lat) * np.sin(az), np.sin(lat), np.cos(lat) * np.cos(az)])
            )
    directions.append(np.array([0.0, -1.0, 0.0]))
    unit = np.array(directions)
    nose = np.exp(-((unit - [0.0, -0.3, 0.95]) ** 2).sum(1) / 0.1)
    template = unit * radii + nose[:, None] * [0.0, 0.0, 0.02]

    faces, uv_faces, uv = _egg(azimuth, latitude)
    reflected = template * [-1.0, 1.0, 1.0]
    mirror = np.linalg.norm(reflected[:, None] - template[None], axis=2).argmin(1)

    x, y, z = unit.T
    identity = np.zeros((4, len(unit), 3))
    identity[0, :, 0] = 0.006 * x  # width
    identity[1, :, 1] = 0.008 * y  # length
    identity[2, :, 2] = 0.006 * z  # depth
    identity[3, :, 2] = 0.010 * nose  # nose
    front = np.clip(z, 0.0, None)
    expression = np.zeros((3, len(unit), 3))
    expression[0, :, 1] = -0.020 * front * (y < -0.2)  # jaw drops
    expression[1, :, 0] = 0.010 * x * front * (y < 0)  # mouth widens
    expression[2, :, 1] = 0.010 * front * (y > 0.2)  # brows rise

    centre = template[faces].mean(1)
    facing = (centre[:, 2] > 0) & (centre[:, 1] < 0.07)
    region = np.where(facing, REGIONS.index("face"), REGIONS.index("scalp"))
    region[centre[:, 1] < -0.08] = REGIONS.index("neck")
    return MorphableModel(
        name="toy",
        licence="CC0-1.0",
        provenance="made in code for tests",
        template=template.astype(np.float32),
        identity=identity.astype(np.float32),
        expression=expression.astype(np.float32),
        expression_names=("jawOpen", "mouthStretch", "browUp"),
        expression_sd=np.array([0.5, 0.5, 0.5], dtype=np.float32),
        faces=faces,
        uv=uv.astype(np.float32),
        uv_faces=uv_faces,
        region=region.astype(np.uint8),
        region_names=REGIONS,
        landmarks=_landmarks(unit),
        mirror=mirror,
    )


def _egg(azimuth: Floats, latitude: Floats) -> tuple[Ints, Ints, Floats]:
    """Triangles, uv triangles and uv of rings between two poles, counter-clockwise from outside."""

    def vertex(ring: int, segment: int) -> int:
        return 1 + ring * SEGMENTS + segment % SEGMENTS

    last = 1 + RINGS * SEGMENTS
    columns = SEGMENTS + 1  # the seam runs down the back: its column is there twice

    def place(ring: int, segment: int) -> int:
        return ring * columns + segment

    uv = []
    for lat in latitude:
        for segment in range(columns):
            # The first vertex of a ring lies at -135 degrees: the seam's left copy is one segment
            # before it.
            uv.append([segment / SEGMENTS, 0.5 - lat / np.pi])
    poles = len(uv)
    for v in (0.0, 1.0):
        for segment in range(SEGMENTS):
            uv.append([(segment + 0.5) / SEGMENTS, v])
    faces, uv_faces = [], []
    for column in range(SEGMENTS):
        s, t = column - 1, column  # vertices left and right of the column; -1 is the back
        faces.append([0, vertex(0, s), vertex(0, t)])
        uv_faces.append([poles + column, place(0, column), place(0, column + 1)])
        for ring in range(RINGS - 1):
            faces.append([vertex(ring, s), vertex(ring + 1, s), vertex(ring + 1, t)])
            faces.append([vertex(ring, s), vertex(ring + 1, t), vertex(ring, t)])
            upper, lower = place(ring, column), place(ring + 1, column)
            uv_faces.append([upper, lower, lower + 1])
            uv_faces.append([upper, lower + 1, upper + 1])
        faces.append([vertex(RINGS - 1, s), last, vertex(RINGS - 1, t)])
        bottom = place(RINGS - 1, column)
        uv_faces.append([bottom, poles + SEGMENTS + column, bottom + 1])
    return np.array(faces, dtype=np.int32), np.array(uv_faces, dtype=np.int32), np.array(uv)


def _landmarks(unit: Floats) -> LandmarkTable:
    """Each landmark at the vertex nearest to where a face has it: degrees to the face's left,
    degrees up.
    """

    def nearest(left: float, up: float) -> int:
        a, e = np.deg2rad([left, up])
        return int((unit @ [np.cos(e) * np.sin(a), np.sin(e), np.cos(e) * np.cos(a)]).argmax())

    where = {"chin": (0, -60)}
    for i in range(1, 9):
        where[f"jaw_left_{i}"] = (11.25 * i, -60 + 8.0 * i)
    for i, name in enumerate(["inner", "inner_mid", "mid", "outer_mid", "outer"]):
        where[f"brow_left_{name}"] = (12 + 10 * i, 38)
    for i in range(4):
        where[["nose_bridge_1", "nose_bridge_2", "nose_bridge_3", "nose_tip"][i]] = (0, 18 - 10 * i)
    for name in NAMES:
        if name.startswith("nostril_left") or name == "nose_base":
            where[name] = (0, -18)
        elif name.startswith("eye_left"):
            where[name] = (60 if "outer" in name else 30, 18)
        elif name.startswith(("mouth", "lip")) and "right" not in name:
            where[name] = (0 if "middle" in name else 30, -30)
    for name in NAMES:
        if "right" in name:
            left, up = where[name.replace("right", "left")]
            where[name] = (-left, up)
    vertex = np.array([nearest(*where[name]) for name in NAMES])
    contour = np.array(
        [[nearest(a * s, e) for s in (1.0, 0.75, 0.5)] for a, e in (where[n] for n in NAMES[:17])]
    )
    return LandmarkTable(vertex, contour)
