"""The command says what it does, refuses what is wrong with one line, and does what the API
does.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import pytest
import typer.main
from mlflow import MlflowClient
from rich.text import Text
from typer.testing import CliRunner

from dff.commands.app import app, describe_error, main
from dff.demo.photograph import write_photograph
from dff.face.errors import BadPhoto, ServiceError
from dff.infra.datasets.split import assign_split, default_group
from dff.infra.networks import weights
from dff.infra.photos.images import read_image
from dff.infra.photos.landmark_files import format_pts, parse_pts
from tests.dff.command_runner import run_command
from tests.dff.films import moving_edge, write_film

COMMANDS = (
    "label", "synthesize", "inspect", "train", "calibrate", "fit-expressions",
    "fit-landmark-offsets", "train-cascade", "train-detector",
    "align", "match", "evaluate", "serve", "submit", "jobs", "status", "export", "models", "demo",
)  # fmt: skip
WIDE = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("the box is\n empty"), "the box is empty"),
        (FileNotFoundError(2, "No such file", "a b"), "a b: No such file"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (MemoryError(), "not enough memory"),
        (BadPhoto("a.jpg: damaged"), "BadPhoto: a.jpg: damaged"),
        (
            ServiceError(401, "unauthorized", "Send a key."),
            "ServiceError: Send a key. Give it by --key or DFF_API_KEY.",
        ),
    ],
)
def test_an_error_is_one_line_without_python_s_names(error: Exception, text: str) -> None:
    assert describe_error(error) == text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_with_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"], env=WIDE)
    assert result.exit_code == 0
    assert "Example" in result.output
    assert f"dff {command}" in result.output


def test_no_help_of_an_option_is_taken_for_markup() -> None:
    for command in typer.main.get_command(app).commands.values():  # type: ignore[attr-defined]
        for parameter in command.params:
            text = getattr(parameter, "help", None) or ""
            assert Text.from_markup(text).plain == text.replace("\\[", "["), parameter.name


def test_every_command_is_listed() -> None:
    result = CliRunner().invoke(app, ["--help"], env=WIDE)
    assert all(command in result.output for command in COMMANDS)


def test_the_version_is_the_packages() -> None:
    result = CliRunner().invoke(app, ["--version"], env=WIDE)
    assert (result.exit_code, result.output) == (0, f"dff {version('deep-face-feature')}\n")


def test_help_is_quick_because_heavy_libraries_are_not_imported() -> None:
    heavy = ("torch", "ray", "mlflow", "pyarrow", "numba", "cv2", "scipy", "fastapi")
    code = f"import sys, dff.commands.app; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


FAILURES = [
    (("inspect", "nowhere"), "nowhere is not a finished dataset"),
    (("align", "nowhere.png"), "nowhere.png is neither a file nor a folder"),
    (("align", "pipe.jpg"), "pipe.jpg is neither a file nor a folder"),
    (("train", "nowhere", "--out", "w"), "nowhere is not a finished dataset"),
    (("synthesize", "nowhere", "out", "--identities", "3"), "there is no folder "),
    (("synthesize", "empty", "out", "--identities", "3"), "no photo (.apng, .avif, .heic, "),
    (("status", "nowhere"), "nowhere: there is no such folder"),
    (("inspect", "empty"), "it has no MANIFEST.json; run the command"),
    (("label", "nowhere"), "there is no folder "),
    (("evaluate", "300w", "nowhere"), "there is no folder "),
    (
        ("align", "p.png", "--method", "cascade", "--cascade", "nowhere"),
        "there is no cascade nowhere",
    ),
    (("align", "p.png", "--boxes", "nowhere.json"), "dff: nowhere.json: No such file or directory"),
    (("serve", "--no-ray", "--api-keys", "nowhere"), "dff: nowhere: No such file or directory"),
    (("inspect", "file"), "file is a file, not a folder"),
    (("train", "d", "--out", "file/w"), "file is a file, not a folder"),
    (("evaluate", "300w", "d", "--pictures", "file"), "file is a file, not a folder"),
    (("evaluate", "300w", "d", "--tracking", "http://u:pw@127.0.0.1:1"), "***@127.0.0.1:1"),
    (("synthesize", "nowhere", "file/out"), "a part of the path is a file"),
    (("demo", "--out", "file"), "file is a file, not a folder"),
    (("align", "file", "--weights", "nowhere.safetensors"), "no weights file nowhere.safetensors"),
    (("align", "file", "--weights", "https://h/w"), "no weights file https://h/w; known by name"),
    (
        ("synthesize", "none", "out", "--identities", "2", "--model", "s3://b/m.npz"),
        "s3://b/m.npz is an address: a face model is a file",
    ),
]
"""Commands that are right, but fail: exit status 1."""
MISTAKES = [
    (("train", "d", "--out", "w", "--preset", "best"), "no preset 'best'; there are open"),
    (("train", "d", "--out", "w", "--preset", "research"), "needs --photos"),
    (("train", "d", "--out", "w", "--workers", "3:x"), "LEAST:MOST, not '3:x'"),
    (("train", "d", "--out", "w", "--workers", "3:2"), "LEAST:MOST, not '3:2'"),
    (("train", "d", "--out", "w", "--workers", "3"), "does not split over 3 workers"),
    (("train", "d", "--out", "w", "--start", "nothing"), "there is no weights file nothing"),
    (("serve", "--poll", "5"), "NAME@ALIAS"),
    (("train", "d", "--out", "w", "--size", "5"), "no positive multiple of 32"),
    (("train", "d", "--out", "w", "--where", "foo("), "the filter 'foo(' can't be read"),
    (("train", "d", "--out", "w", "--gpu"), "torch finds 0 on this machine"),
    (("train", "d", "--out", "w", "--gpu", "--workers", "0"), "torch finds 0 on this machine"),
    (("train", "d", "--out", "."), ". is a folder: name a file in it"),
    (("train", "d", "--out", "w", "--name", "a/b", "--workers", "0"), "name of a folder, without"),
    (("train", "d", "--out", "w", "--learning-rate", "inf"), "learning_rate must be positive"),
    (("train-cascade", "d", "--out", "."), ". is a folder"),
    (("train-cascade", "d", "--out", "w", "--weights", "nope"), "no weights file nope"),
    (("train-detector", "d", "--out", "."), ". is a folder"),
    (("calibrate", "dff-open", "d", "--out", "."), ". is a folder"),
    (("calibrate", "dff-open", "d", "--picture", "a.jpg"), "a.jpg should be a file that ends in"),
    (("fit-expressions", "dff-open", "d", "--out", "."), ". is a folder"),
    (("fit-landmark-offsets", "dff-open", "d", "--source", "us", "--out", "."), "is a folder"),
    (("export", "."), ". is a folder"),
    (("export", "a.png"), "a.png should be a file that ends in .onnx"),
    (("inspect", "d", "--html", "."), ". is a folder"),
    (("status", "d", "--picture", "a.png"), "a.png should be a file that ends in .jpg"),
    (("evaluate", "300w", "d", "--json", "."), ". is a folder"),
    (("evaluate", "300w", "d", "--tracking", "nonsense"), "MLflow server looks like http://host"),
    (("evaluate", "300w", "d", "--weights", "nope"), "no weights file nope; known by name"),
    (("synthesize", "none", "out"), "neither photos nor identities"),
    (("synthesize", "none", "s3://", "--identities", "2"), "a bucket is s3://bucket/prefix"),
    (("synthesize", "none", "S3://b/p", "--identities", "2"), "a bucket is s3://bucket/prefix"),
    (("synthesize", "none", "out", "--identities", "2", "--model", "nope"), "neither a model's"),
    (("synthesize", "none", "out", "--identities", "2", "--renderer", "nope"), "zbuffer, pyrender"),
    (("align", "file", "--json", "."), ". is a folder"),
    (("align", "file", "--json", "s3://bucket/a.json"), "s3://bucket/a.json is an address: only"),
    (
        ("align", "file", "s3://bucket/a.jpg"),
        "s3://bucket/a.jpg is an address: only a file on this",
    ),
    (("align", "https://h/a.jpg"), "https://h/a.jpg is an address"),
    (("align", "file", "--boxes", "https://h/b"), "https://h/b is an address"),
    (("align", "file", "--draw", "S3://b/a.png"), "S3://b/a.png is an address"),
    (("match", "file", "https://h/a.jpg"), "https://h/a.jpg is an address"),
    (("serve", "--no-ray", "--api-keys", "s3://b/keys"), "s3://b/keys is an address"),
    (("train", "d", "--out", "w", "--evaluate-on", "s3://b/p"), "s3://b/p is an address"),
    (("align", "file", "--json", "file"), "file is one of the input files"),
    (("align", "file", "--json", "-"), "- is no file: name one, such as /dev/stdout"),
    (("match", "file", "p.png", "--points", "1,1", "--json", "-"), "- is no file"),
    (("align", "file", "--json", "a", "--csv", "a"), "a is named for two outputs"),
    (("align", "p.png", "--json", "a", "--draw", "a"), "a is named for two outputs"),
    (("align", "p.png", "--draw", "q.png", "--mask", "q.png"), "q.png is named for two outputs"),
    (("align", "file", "--csv", "a.json"), "a.json should end in .csv"),
    (("align", "file", "--json", "a.csv"), "a.csv should end in .json or .jsonl"),
    (("align", "file", "--csv", "zz.txt"), "zz.txt should end in .csv"),
    (("align", "file", "--json", "a.json.gz"), "a.json.gz should end in .json or .jsonl"),
    (("align", "film.mp4", "--csv", "zz.txt"), "zz.txt should end in .csv"),
    (("align", "film.mp4", "--draw", "zz.txt"), "zz.txt should end in .mp4"),
    (("align", "film.mp4", "--mesh", "a.obj"), "a.obj should be a file that ends in .glb"),
    (("align", "p.png", "p.png", "--same-person", "--mesh", "a.txt"), "that ends in .glb or .obj"),
    (("align", "file", "--crops", "zz.txt"), "zz.txt should end in .png, or be a folder"),
    (("match", "p.png", "p.png", "--json", "zz.txt"), "zz.txt should end in .json"),
    (("match", "p.png", "p.png", "--dense", "zz.txt"), "zz.txt should be a file that ends in .npy"),
    (("train", "d", "--out", "a.txt"), "a.txt should end in .safetensors"),
    (("match", "p.png", "p.png", "--json", "a.png"), "a.png should end in .json"),
    (("evaluate", "300w", "d", "--json", "a.csv"), "a.csv should end in .json"),
    (("inspect", "d", "--html", "a.json"), "a.json should end in .html or .htm"),
    (("train", "d", "--out", "a.onnx"), "a.onnx should end in .safetensors"),
    (("train-cascade", "d", "--out", "a.json"), "a.json should end in .safetensors"),
    (("train-detector", "d", "--out", "a.npz"), "a.npz should end in .safetensors"),
    (("calibrate", "dff-open", "d", "--out", "a.json"), "a.json should end in .safetensors"),
    (("calibrate", "dff-open", "d", "--json", "a.csv"), "a.csv should end in .json"),
    (("align", "file", "--draw", "x.xyz"), "x.xyz should end in .png or .jpg or .jpeg, or be a"),
    (("align", "file", "--mesh", "x.stl"), "x.stl should end in .glb or .obj"),
    (("align", "file", "--crops", "photo.jpg"), "photo.jpg should end in .png, or be a folder"),
    (("align", "file", "--mask", "photo.jpg"), "photo.jpg should end in .png, or be a folder"),
    (("align", "file", "--boxes", "file"), "file is not a file of boxes"),
    (
        ("align", "file", "--weights", "nope"),
        "no weights file nope; known by name: dff-open, dff-research; others by their path, "
        "s3://bucket/key or models:/NAME@ALIAS",
    ),
    (("align", "p.png", "--weights", "nope", "--json", "a.jsonl"), "no weights file nope; known"),
    (("align", "file", "--weights", "models:/a"), "say models:/NAME@ALIAS"),
    (("train", "d", "--out", "models:/a/1"), "say models:/NAME or models:/NAME@ALIAS"),
    (("train", "d", "--out", "models:/a", "--workers", "0"), "trains without MLflow"),
    (("train", "d", "--out", "models:/a", "--address", "auto"), "add --tracking"),
    (("match", "p.png", "p.png", "--landmarks", "nose"), "names are like nose_tip"),
    (("match", "p.png", "p.png", "--vertices", "9999999"), "the face model has no vertex"),
    (("match", "p.png", "p.png", "--points=-5,5"), "lies outside the first photo"),
    (("match", "p.png", "p.png", "--points", "5,5", "--draw", "a.x"), "a.x should be a file that"),
    (("label", ".", "--weights", "nope"), "no weights file nope"),
    (("serve", "--no-ray", "--weights", "nope"), "no weights file nope"),
    (("serve", "--replicas", "x"), "write 4, 2:8 or auto"),
    (("serve", "--no-ray", "--origin", "nonsense"), "write it as https://example.org"),
    (("serve", "--no-ray", "--api-keys", "file"), "file holds no API keys"),
    (("serve", "--address", "nonsense"), "a Ray address is host:port"),
    (("submit", "train", "/d", "--out", "/w", "--address", "nonsense"), "http://host:8265"),
    (("submit", "train", "/d", "--out", "w", "--address", "nonsense"), "--out w is a relative"),
    (("jobs", "--address", "nonsense"), "http://host:8265"),
]
"""Commands that no machine could run: exit status 2."""


@pytest.mark.parametrize(
    ("arguments", "says", "status"),
    [(*failure, 1) for failure in FAILURES] + [(*mistake, 2) for mistake in MISTAKES],
)
def test_a_mistake_is_one_line_that_names_the_thing(
    arguments: tuple[str, ...],
    says: str,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """In this process: a hundred processes would take half a minute."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    cv2.imwrite("p.png", np.zeros((64, 64, 3), np.uint8))
    if "film.mp4" in arguments:
        write_film(Path("film.mp4"), moving_edge(4))
    there = set(Path().iterdir())
    monkeypatch.setattr(sys, "argv", ["dff", *arguments])
    monkeypatch.setattr(logging.root, "handlers", [])
    with patch.dict(os.environ), pytest.raises(SystemExit) as ending:
        main()
    out, err = capfd.readouterr()
    assert says in err
    assert ending.value.code == status
    assert "Traceback" not in err + out
    assert len(err.strip().splitlines()) == 1
    assert set(Path().iterdir()) == there


STOPPED = """
import os, signal, sys, time
import ray
from dff.commands import app
from dff.infra.clusters.cluster import connected
from dff.infra.clusters.crash_report import CLUSTER_GONE, reported_crashes

def work(prog_name):
    with reported_crashes(CLUSTER_GONE), connected(None, workers=1):
        ray.get(ray.remote(lambda: os.kill(driver, signal.SIGTERM) or time.sleep(60)).remote())

driver = os.getpid()
app.app = work
app.main()
"""


CRASHING = """
import atexit, os, signal, sys, types
import typer
from dff.commands import app

class Thread:  # stands for one of Ray, which aborts while the interpreter ends
    def __del__(self):
        os.abort()

command = typer.Typer()

@command.command()
def work(number: int):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in shells' background jobs
    sys.modules["ray"] = types.SimpleNamespace(thread=Thread())
    atexit.register(print, "Ray ended")
    os.kill(os.getpid(), number)

app.app = command
app.main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_crash_of_ray_in_the_end_does_not_change_how_a_command_ends(number: int) -> None:
    command = [sys.executable, "-c", CRASHING, str(int(number))]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 128 + number
    assert ended.stdout == "Ray ended\n"
    told = {signal.SIGTERM: "dff: stopped by SIGTERM", signal.SIGINT: "dff: interrupted"}
    assert ended.stderr.strip() == told[signal.Signals(number)]


IMPORTING = """
import signal, sys
from dff import entry

class Interrupting:  # the first import of the commands
    def find_spec(self, name, path=None, target=None):
        if name == "dff.commands.app":
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in shells' background jobs
sys.meta_path.insert(0, Interrupting())
entry.main()
"""


def test_an_interrupt_of_the_imports_is_told_in_a_line() -> None:
    command = [sys.executable, "-c", IMPORTING]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.stderr == "dff: interrupted\n"
    assert ended.returncode == 128 + signal.SIGINT


def test_the_program_imports_nothing_before_it_handles_interrupts() -> None:
    text = (
        "import sys; from dff import entry; print('typer' in sys.modules, 'numpy' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert ended.stdout == "False False\n"


ABORTED = """
import os, sys
from dff.commands.app import main
from dff.demo import run

run.run_demo = lambda *_, **__: os.abort()
sys.argv = ["dff", "demo", "--out", sys.argv[1]]
main()
"""


def test_an_aborted_demo_is_told_in_a_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ABORTED, str(tmp_path / "demo")]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGABRT
    *_, line = ended.stderr.strip().splitlines()
    assert line.startswith("dff: ClusterError: the demo was aborted: its Ray is gone")
    assert "Fatal Python error" not in ended.stderr


@pytest.mark.ray
def test_a_command_that_is_terminated_says_so_in_a_line() -> None:
    ended = subprocess.run([sys.executable, "-c", STOPPED], capture_output=True, text=True)
    assert ended.stderr.strip() == "dff: stopped by SIGTERM"
    assert ended.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--server", "http://"), "http://HOST:PORT"),
        (("--server", "http://host:99999"), "http://HOST:PORT"),
        (("--server", "nonsense"), "http://HOST:PORT"),
        (("--focal", "inf"), "--focal is a number of pixels"),
        (("--landmarks", "nose", "--json", "a.json"), "blendshapes"),
        (("--landmarks", ",", "--json", "a.json"), "',' names nothing"),
        (("--box", "1,2,3"), "--box takes four numbers"),
        (("--crop-size", "64"), "--crop-size goes with --crops"),
    ],
)
def test_a_wrong_value_is_shown_with_the_usage(arguments: tuple[str, ...], says: str) -> None:
    result = CliRunner().invoke(app, ["align", "a.png", *arguments], env=WIDE)
    assert result.exit_code == 2
    assert says in result.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("train", "d", "--out", "w", "--photos", "p"), "--photos goes with --preset"),
        (("train", "d", "--out", "w", "--gpus-per-worker", "2"), "goes with --gpu"),
        (("calibrate", "dff-open", "d"), "dff-open comes with the program"),
        (("fit-expressions", "dff-open", "d"), "dff-open comes with the program"),
        (("fit-landmark-offsets", "dff-open", "d", "--source", "us"), "comes with the program"),
        (("fit-landmark-offsets", "w", "d", "--source", "us", "--refine"), "--photo-licence go"),
        (("fit-landmark-offsets", "w", "d", "--source", " "), "--source is empty"),
        (
            (
                *("fit-landmark-offsets", "w", "d", "--source", "us"),
                *("--poses", "p", "--pose-labels", "nowhere.npz"),
            ),
            "there is no file nowhere.npz",
        ),
        (("match", "a", "b", "--vertices", "1", "--box-second", "1,2"), "--box-second takes four"),
        (("serve", "--no-ray", "--also", "a=b", "--also", "a=c"), "--also names 'a' twice"),
        (("serve", "--gpus", "inf"), "--gpus is a number of GPUs"),
        (("evaluate", "aflw21", "d", "--labels", "l.npz"), "not --labels"),
        (("evaluate", "matching", "d", "--box", "detector"), "not --box detector"),
        (("evaluate", "aflw21", "d", "--all"), "without --all"),
    ],
)
def test_wrong_options_of_other_commands_are_shown_with_the_usage(
    arguments: tuple[str, ...], says: str
) -> None:
    result = CliRunner().invoke(app, arguments, env=WIDE)
    assert result.exit_code == 2
    assert says in result.output


@pytest.mark.parametrize(
    "arguments", [("300w", "photos", "--box", "detector"), ("matching", "data")]
)
def test_robustness_needs_boxes_of_landmarks(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, ["evaluate", *arguments, "--robustness"], env=WIDE)
    assert result.exit_code == 2
    assert "--robustness moves the boxes of landmarks" in result.output


@pytest.mark.parametrize(
    "command",
    [
        ("label", "{file}"),
        ("inspect", "{file}"),
        ("status", "{file}"),
        ("synthesize", "{file}", "out", "--dry-run"),
        ("synthesize", "none", "{file}", "--identities", "3"),
        ("train", "{file}", "--out", "w.safetensors"),
    ],
)
def test_a_file_in_the_place_of_a_folder_is_named(command: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "photo.jpg"
    file.write_bytes(b"")
    code, _, said = run_command(*(part.format(file=file) for part in command))
    assert code == 1
    assert f"{file} is a file, not a folder" in said


def test_a_dry_run_asks_the_tracking_server_as_the_run_would(tmp_path: Path) -> None:
    code, _, said = run_command(
        *("synthesize", "none", str(tmp_path / "data"), "--identities", "3", "--dry-run"),
        *("--tracking", "http://127.0.0.1:9"),
    )
    assert code == 1
    assert "http://127.0.0.1:9" in said


def test_a_dry_run_counts_and_makes_nothing(tmp_path: Path) -> None:
    target = tmp_path / "data"
    code, out, _ = run_command(
        "synthesize",
        "none",
        str(target),
        "--identities",
        "70",
        "--views",
        "3",
        "--shard-faces",
        "30",
        "--dry-run",
    )
    assert code == 0
    assert "0 photos and 70 sampled identities in 3 shards" in out
    assert "210 views" in out
    assert not target.exists()


def test_every_command_that_reads_data_of_an_endpoint_reads_public_buckets_too() -> None:
    group = typer.main.get_command(app)
    found = 0
    for command in group.commands.values():  # type: ignore[attr-defined]
        options = {option for parameter in command.params for option in parameter.opts}
        if "--endpoint-url" in options:
            found += 1
            assert {"--anonymous", "--request-payer"} <= options, command.name
    assert found >= 14


def test_synthesize_then_inspect(mlflow_uri: str, tmp_path: Path) -> None:
    target, page = tmp_path / "data", tmp_path / "new" / "gallery.html"
    options = ("--identities", "2", "--views", "3", "--size", "96", "--tracking", mlflow_uri)
    code, out, err = run_command("synthesize", "none", str(target), *options)
    assert code == 0, err
    assert "6 views of 2 faces" in out
    client = MlflowClient(mlflow_uri)
    experiment = client.get_experiment_by_name("dff-synthesis")
    assert experiment
    (kept,) = client.search_runs([experiment.experiment_id])
    assert kept.data.metrics["rows"] == 6
    assert kept.data.params["identities"] == "2"
    lasted = (kept.info.end_time - kept.info.start_time) / 1e3
    assert lasted >= kept.data.metrics["seconds"] - 0.01
    pictures = [found.path for found in client.list_artifacts(kept.info.run_id, "pictures")]
    assert pictures == ["pictures/views.png"]
    code, out, err = run_command("status", str(target), "--picture", str(tmp_path / "views.jpg"))
    assert code == 0, err
    assert "finished, 100%" in out
    assert read_image(tmp_path / "views.jpg").shape[2] == 3
    code, out, err = run_command("inspect", str(target), "--html", str(page), "--verify")
    assert code == 0, err
    assert "6 views of 2 identities" in out
    assert "verified: all hashes" in out
    assert page.stat().st_size > 10_000


def test_fitted_landmark_offsets_are_stored_with_the_weights(tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "w.safetensors"
    write_photograph(photos)
    image = read_image(photos / "astronaut.png")
    points = parse_pts((photos / "astronaut.pts").read_bytes())
    for split, margin in (("train", 60), ("dev", 300)):  # near-duplicates would share their split
        name = next(
            f"{split}{i}" for i in range(100) if assign_split(default_group(f"{split}{i}")) == split
        )
        padded = np.pad(image, ((margin, 0), (margin, 0), (0, 0)), constant_values=128)
        cv2.imwrite(str(photos / f"{name}.png"), padded[..., ::-1])
        (photos / f"{name}.pts").write_bytes(format_pts(points + margin))
    for suffix in (".png", ".pts"):
        (photos / f"astronaut{suffix}").unlink()
    code, said, _ = run_command(
        *("fit-landmark-offsets", "dff-open", str(photos), "--source", "us", "--refine"),
        *("--photo-licence", "LicenseRef-ours", "--out", str(out)),
    )
    assert code == 0
    assert "no refinement lowers the error" in said  # one photo can't tell
    before, after = (
        float(number) for number in re.findall(r"nme_iod_51 ([\d.]+) .*, ([\d.]+) with", said)[0]
    )
    assert after < 0.8 * before, "the photo that judges is the one that was measured"
    shipped, measured = weights.load("dff-open"), weights.load(out)
    assert measured.landmark_offsets is not None
    assert not measured.landmark_offsets.none
    assert measured.landmark_offsets_source == "us"
    assert measured.landmark_refinement is None
    assert measured.calibration == shipped.calibration
    assert measured.card == shipped.card


def test_an_evaluation_is_logged_as_it_is_written(mlflow_uri: str, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    write_photograph(photos)
    figures = tmp_path / "figures.json"
    arguments = [
        "evaluate",
        "300w",
        str(photos),
        "--all",
        "--json",
        str(figures),
        "--tracking",
        mlflow_uri,
    ]
    result = CliRunner().invoke(app, arguments, env=WIDE)
    assert result.exit_code == 0, result.output
    client = MlflowClient(mlflow_uri)
    experiment = client.get_experiment_by_name("dff-evaluation")
    assert experiment is not None
    (logged,) = client.search_runs([experiment.experiment_id])
    written = json.loads(figures.read_text())
    assert logged.data.metrics["nme_iod_51.mean"] == written["nme_iod_51"]["mean"]
    assert logged.data.params["protocol"] == written["protocol"]
    assert {f.path for f in client.list_artifacts(logged.info.run_id, "pictures")} == {
        "pictures/ced.png",
        "pictures/worst.jpg",
    }
