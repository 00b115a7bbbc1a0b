"""Find the open head's landmark vertices by expectation-maximisation over annotated photos.

    python scripts/fit_landmarks.py --photos FOLDER... --turned FOLDER...

FOLDERs of ``--photos`` hold iBUG ``.pts`` (2D scheme), those of ``--turned``
``reannotated_pts68.npz`` of AFLW2000-3D (3D scheme). The result, scripts/open_head_landmarks.json,
is a table of vertex numbers; nothing of the photos is in it. Expectation: fit pose and shape.
Maximisation: move each pair of landmarks to the mirrored pair of vertices of least error in the
photos, predicted by a fit that did not see that pair. Run scripts/build_open_head.py afterwards.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dff.face.arrays import Bools, Floats, Ints
from dff.face.geometry.mesh import vertex_normals
from dff.face.geometry.transform import angles_from_rotation
from dff.face.io import assets
from dff.face.model.landmarks import (
    INNER,
    JAW,
    LOWER_LIP,
    MIRROR,
    NAMES,
    LandmarkTable,
    contour_lines,
)
from dff.face.model.morphable import MorphableModel
from dff.face.solve.gauss_newton import FaceState, evaluate_shape, initial_pose, project, step
from dff.infra.photos.landmark_files import parse_pts, parse_reannotated

REACH = 0.012  # metres: how far one iteration may move a landmark


def boxes(targets: Floats) -> Floats:
    """(B,) size of each face in pixels: square root of the landmark box's area."""
    extent = targets.max(1) - targets.min(1)
    return np.asarray(np.sqrt(extent.prod(1)))


class Fitter:
    """A model's landmarks, fitted to many annotated faces at once."""

    def __init__(self, model: MorphableModel, identities: int, expressions: int) -> None:
        self.model = model
        self.ids, self.exps = identities, expressions
        self.sd = np.concatenate([np.ones(identities), model.expression_sd[:expressions]])
        every = np.arange(len(model.template))
        self.mean, self.basis = model.basis_of_vertices(every, identities, expressions)

    def vertices(self, state: FaceState, flat: Bools) -> Ints:
        """(B, 68) vertices of each face: the 2D scheme's visible contour where ``flat``."""
        table = self.model.landmarks
        out = np.repeat(table.vertex[None], len(flat), axis=0)
        needed = table.used
        rows = np.flatnonzero(flat)
        if len(rows) == 0:
            return out
        some = FaceState(
            state.scale[rows], state.rotation[rows], state.centre[rows], state.coefficients[rows]
        )
        found = project(
            some, evaluate_shape(self.mean[needed], self.basis[needed], some.coefficients)
        )
        px = np.zeros((len(self.mean), 2))
        for row, face in enumerate(rows):
            px[needed] = found[row]
            out[face] = table.contour_vertices(px, self.model.template)
        return out

    def fit(
        self,
        targets: Floats,
        flat: Bools,
        *,
        noise: float,
        weights: Floats,
        start: FaceState | None = None,
        steps: int,
    ) -> tuple[FaceState, Ints]:
        """Fitted state and its (B, 68) vertices; ``noise`` is a share of the box."""
        table = self.model.landmarks
        pixels = noise * boxes(targets)
        state = start
        if state is None:
            rigid = self.mean[table.vertex]
            state = initial_pose(
                rigid, targets, weights * np.r_[np.full(17, 0.2), np.ones(51)], len(self.sd)
            )
        for _ in range(steps):
            chosen = self.vertices(state, flat)
            mean, basis = self.mean[chosen], self.basis[chosen]
            state = step(
                state,
                mean,
                basis,
                targets,
                weights,
                noise=pixels * 3,
                prior=np.zeros(len(self.sd)),
                prior_sd=self.sd * 3,
            )
        return state, self.vertices(state, flat)

    def predicted(self, state: FaceState, vertices: Ints) -> Floats:
        """(B, N, 2) pixels of (N,) vertices or (B, N) vertices of each face."""
        return project(
            state, evaluate_shape(self.mean[vertices], self.basis[vertices], state.coefficients)
        )


def with_table(model: MorphableModel, vertex: Ints, inner: Ints) -> MorphableModel:
    """The model with other landmarks, and the contour lines that follow from them."""
    return replace(model, landmarks=LandmarkTable(vertex, contour(model, vertex), inner))


def outside(model: MorphableModel) -> Bools:
    """(V,) vertices of the visible skin."""
    out = np.zeros(len(model.template), bool)
    out[model.faces[model.find_triangles("face", "lips", "brows", "ears", "neck")]] = True
    return out


def contour(model: MorphableModel, vertex: Ints) -> Ints:
    """(17, L) candidates of the visible contour on the mean face's visible skin."""
    normals = vertex_normals(model.template.astype(np.float64), model.faces)
    return contour_lines(
        model.template, vertex, model.mirror, outside(model) & (normals[:, 2] > -0.35)
    )


def candidates(model: MorphableModel, number: int, now: int) -> Bools:
    """(V,) vertices on which landmark ``number`` may lie, given the one where it lies ``now``."""
    name = NAMES[number]
    normals = vertex_normals(model.template.astype(np.float64), model.faces)
    allowed = outside(model)
    if "lip" not in name and "mouth" not in name:
        allowed &= normals[:, 2] > (-0.5 if number < 17 else 0.0)
    drop = -model.expression[model.expression_names.index("jawOpen")][:, 1]
    low = drop > 0.5 * drop[model.landmarks.vertex[LOWER_LIP]]
    if "lip_upper" in name:
        allowed &= ~low
    if "lip_lower" in name:
        allowed &= low
    if MIRROR[number] == number:
        allowed &= np.abs(model.template[:, 0]) < 1e-5
    elif "mouth" not in name:
        allowed &= np.abs(model.template[:, 0]) > 1e-4
    reach = 2 * REACH if number < 17 else REACH
    near = np.linalg.norm(model.template - model.template[now], axis=1) < reach
    return np.asarray(allowed & near)


def maximise(
    fitter: Fitter, targets: Floats, flat: Bools, state: FaceState, noise: float
) -> tuple[Ints, Ints]:
    """(68,) vertices of the 3D scheme and (51,) of the 2D scheme after one pass over the pairs."""
    model = fitter.model
    table = model.landmarks
    schemes = [table.vertex.copy(), np.r_[table.vertex[JAW], table.inner]]
    size = boxes(targets)
    yaw = np.array([abs(angles_from_rotation(r)[0]) for r in state.rotation])
    for number in range(68):
        opposite = int(MIRROR[number])
        if opposite < number:
            continue
        weights = np.ones(targets.shape[:2])
        weights[:, [number, opposite]] = 0.0
        unseen, _ = fitter.fit(targets, flat, noise=noise, weights=weights, start=state, steps=1)
        # The 2D scheme determines surface points of the jaw only in frontal views.
        use = ~flat | (yaw < 8) if number < 17 else np.ones(len(flat), bool)
        tolerance = 0.06 if number < 17 else 0.03
        for chosen, own in zip(schemes, (~flat, flat), strict=True):
            rows = np.flatnonzero(candidates(model, number, chosen[number]))
            error = np.zeros(len(rows))
            for landmark, vertices in ((number, rows), (opposite, model.mirror[rows])):
                px = fitter.predicted(unseen[use], vertices)
                distance = (
                    np.linalg.norm(px - targets[use][:, landmark][:, None], axis=-1)
                    / size[use][:, None]
                )
                cost = distance**2 / (distance**2 + tolerance**2)
                # The other scheme's photos settle what its own are too few for; the jaw is one for
                # both.
                error += cost[own[use]].mean(0) + (1.0 if number < 17 else 0.15) * cost[
                    ~own[use]
                ].mean(0)
            taken = set(chosen[:number])
            for best in rows[np.argsort(error, kind="stable")]:
                if best not in taken and model.mirror[best] not in taken:
                    chosen[number], chosen[opposite] = best, model.mirror[best]
                    break
    return schemes[0], schemes[1][INNER]


def report(
    fitter: Fitter, targets: Floats, flat: Bools, noise: float, steps: int = 8
) -> tuple[FaceState, dict[str, float]]:
    """Fit all faces; nme_box in per cent: means in the 3D scheme, medians in the 2D scheme."""
    state, vertices = fitter.fit(
        targets, flat, noise=noise, weights=np.ones(targets.shape[:2]), steps=steps
    )
    distance = np.linalg.norm(fitter.predicted(state, vertices) - targets, axis=-1)
    whole = 100 * distance.mean(1) / boxes(targets)
    inner = 100 * distance[:, INNER].mean(1) / boxes(targets)
    jaw = 100 * distance[:, JAW].mean(1) / boxes(targets)
    return state, {
        "3D scheme, all": float(whole[~flat].mean()),
        "3D scheme, jaw": float(jaw[~flat].mean()),
        "2D scheme, inner 51, median": float(np.median(inner[flat])),
        "2D scheme, jaw, median": float(np.median(jaw[flat])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, nargs="+", required=True)
    parser.add_argument("--turned", type=Path, nargs="+", required=True)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--faces", type=int, default=300, help="photos of the 2D scheme")
    args = parser.parse_args()
    files = sorted((p for f in args.photos for p in f.rglob("*.pts")), key=lambda p: p.name)
    chosen = np.random.default_rng(0).permutation(len(files))[: args.faces]
    still = np.stack([parse_pts(files[i].read_bytes()) for i in chosen])
    turned = np.concatenate([read_turned(folder) for folder in args.turned])
    targets = np.concatenate([still, turned])
    flat = np.r_[np.ones(len(still), bool), np.zeros(len(turned), bool)]
    run(targets, flat, args.rounds)


def read_turned(folder: Path) -> Floats:
    """(N, 68, 2) pixels: the reannotated labels of a folder of AFLW2000-3D."""
    found = parse_reannotated((folder / "reannotated_pts68.npz").read_bytes())
    assert isinstance(found, dict)  # as of an .npz
    return np.stack([found[name] for name in sorted(found)])


def run(targets: Floats, flat: Bools, rounds: int) -> None:
    model = assets.load_model()
    vertex = model.landmarks.vertex.copy()
    numbers = assets.read_arrays(assets.SHIPPED["open-head"])["source_vertex"]
    inner = model.landmarks.inner.copy()
    for number in range(rounds):
        model = with_table(model, vertex, inner)
        fitter = Fitter(model, 40, 52)
        state, figures = report(fitter, targets, flat, 0.02)
        sys.stdout.write(
            f"round {number}: " + ", ".join(f"{k} {v:.3f}" for k, v in figures.items()) + "\n"
        )
        sys.stdout.flush()
        vertex, inner = maximise(fitter, targets, flat, state, 0.02)
        before = model.landmarks
        moved = int((vertex != before.vertex).sum()), int((inner != before.inner).sum())
        sys.stdout.write(
            f"  moved {moved[0]} landmarks of the 3D scheme, {moved[1]} of the 2D scheme\n"
        )
    model = with_table(model, vertex, inner)
    _, figures = report(Fitter(model, 40, 52), targets, flat, 0.01, 12)
    sys.stdout.write("at the end: " + ", ".join(f"{k} {v:.3f}" for k, v in figures.items()) + "\n")
    write(numbers[vertex], numbers[model.landmarks.contour], numbers[inner])


def write(vertex: Ints, contour: Ints, inner: Ints) -> None:
    table: dict[str, str | Sequence[int] | Sequence[Sequence[int]]] = {
        "about": "vertices of the MakeHuman base mesh hm08 (numbers from 0; from 19158 on the "
        "middles of the edges that scripts/build_open_head.py splits): the 68 iBUG points in the "
        "3D scheme; for each jaw point the candidates of the visible contour from the jaw line "
        "inwards; the other 51 in the 2D scheme; found by scripts/fit_landmarks.py",
        "vertex": vertex.tolist(),
        "contour": contour.tolist(),
        "inner": inner.tolist(),
    }
    Path(__file__).with_name("open_head_landmarks.json").write_text(
        json.dumps(table, indent=None) + "\n"
    )


if __name__ == "__main__":
    main()
