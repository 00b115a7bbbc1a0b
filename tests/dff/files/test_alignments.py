"""Files in, alignments out: batched, in order, with bad files named."""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from dff.aligner.align import Aligner
from dff.aligner.face_description import FaceDescriber
from dff.commands.app import app
from dff.face.errors import BadPhoto, StorageError
from dff.face.geometry.camera import Box
from dff.face.model.morphable import MorphableModel
from dff.files.alignments import (
    BATCH,
    DRAWINGS,
    MISSING,
    AlignmentWriter,
    ImageOutputs,
    ImageResult,
    align_files,
    align_person_files,
    assign_boxes,
    describe_face,
    encode_drawing,
    read_boxes,
    read_finished,
    to_json,
)
from dff.files.images import find_images, unique_names
from dff.files.outputs import assign_outputs
from dff.files.photo_bar import LARGE
from dff.infra.files import append_file, write_file
from dff.infra.photos.image_listing import describe_passed_over
from tests.aligner.image_files import encoded
from tests.aligner.known_aligner import KnownAligner, known_alignment


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(BATCH + 3):
        Image.fromarray(np.full((40, 40 + i, 3), 90, np.uint8)).save(tmp_path / f"{i:03d}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def test_a_folder_is_aligned_in_the_order_of_its_names(
    folder: Path, toy_model: MorphableModel
) -> None:
    results = list(align_files(KnownAligner(toy_model), find_images([folder]).images))  # type: ignore[arg-type]
    assert [r.path.name for r in results] == [f"{i:03d}.png" for i in range(BATCH + 3)]
    # The known aligner's box is the middle half of each image: answers belong to their own files.
    assert [r.faces[0].box.width for r in results] == [(40 + i) / 2 for i in range(BATCH + 3)]


def test_a_bad_file_is_named_and_stops_nothing(folder: Path, toy_model: MorphableModel) -> None:
    (folder / "004.png").write_bytes((folder / "004.png").read_bytes()[:60])
    (folder / "005.png").write_bytes(b"")
    paths = find_images([folder]).images
    results = {r.path.name: r for r in align_files(KnownAligner(toy_model), paths)}  # type: ignore[arg-type]
    assert [name for name, r in results.items() if r.error] == ["004.png", "005.png"]
    assert all(len(r.faces) == 1 for name, r in results.items() if not r.error)
    assert to_json(results.values(), FaceDescriber(toy_model))["004.png"] == {
        "error": results["004.png"].error
    }


def test_a_bad_photo_of_a_person_is_left_out_by_name(
    folder: Path, tmp_path: Path, toy_model: MorphableModel
) -> None:
    aligner: Aligner = KnownAligner(toy_model)  # type: ignore[assignment]
    bad = {"004.png": b"", "005.png": encoded(np.zeros((5, 5, 3), np.uint8), "PNG")}
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    paths = [folder / f"{i:03d}.png" for i in range(3, 8)]
    drawings = {path: tmp_path / f"{path.stem}.jpg" for path in paths[:-1]}
    person, lines, unread = align_person_files(
        aligner, paths, boxes={paths[3]: [Box(900, 0, 950, 50)]}, drawings=drawings
    )
    assert [face is None for face in person.faces] == [False, True, True, True, False]
    assert list(person.left_out) == [1, 2, 3]
    assert unread == 3
    assert [path.name for path in tmp_path.glob("*.jpg")] == ["003.jpg"]  # of those that were read
    drawn = np.asarray(Image.open(tmp_path / "003.jpg")).astype(int)
    assert np.abs(drawn - np.asarray(Image.open(paths[0]).convert("RGB"))).max() > 60
    for line, path in zip(lines, paths, strict=True):
        assert line.startswith(f"{path}: ")
    for number, why in ((1, "is empty"), (2, "too small"), (3, "outside the image")):
        assert "left out: " in lines[number]
        assert why in lines[number]
    with pytest.raises(BadPhoto, match=r"004\.png: .*; .*005\.png: "):
        align_person_files(aligner, paths[1:3])


@pytest.mark.parametrize(
    ("photos", "doubtful", "says"),
    [(3, (0, 1, 2), True), (3, (1,), False), (2, (0, 1), True), (1, (0,), False)],
)
def test_photos_that_all_disagree_are_said_to_show_no_person_in_common(
    folder: Path, toy_model: MorphableModel, photos: int, doubtful: tuple[int, ...], says: bool
) -> None:
    class Strangers(KnownAligner):
        def align_person(self, images, boxes=None):  # type: ignore[no-untyped-def]
            doubts = dict.fromkeys(doubtful, "may show someone else")
            return replace(super().align_person(images, boxes), doubts=doubts)

    aligner: Aligner = Strangers(toy_model)  # type: ignore[assignment]
    paths = [folder / f"{i:03d}.png" for i in range(photos)]
    person, lines, _ = align_person_files(aligner, paths)
    assert person.in_doubt is says
    assert any("no person in common" in line for line in lines) is says


def test_an_unsure_face_is_called_so(toy_model: MorphableModel) -> None:
    face = known_alignment(toy_model, Box(0, 0, 50, 50))
    assert describe_face(replace(face, face_confidence=0.64)).endswith("confidence 0.64, unsure")
    assert describe_face(replace(face, face_confidence=0.9)).endswith("confidence 0.90")


def test_boxes_go_to_their_files(folder: Path, tmp_path: Path, toy_model: MorphableModel) -> None:
    file = tmp_path / "boxes.json"
    file.write_text(
        json.dumps({"003.png": [[1, 2, 30, 31], [5, 5, 20, 20]], "absent.png": [[0, 0, 1, 1]]})
    )
    paths = find_images([folder]).images[:5]
    boxes, unmatched = assign_boxes(read_boxes(file), paths)
    assert unmatched == ["absent.png"]
    results = {
        r.path.name: r
        for r in align_files(KnownAligner(toy_model), paths, boxes=boxes)  # type: ignore[arg-type]
    }
    assert [face.box for face in results["003.png"].faces] == [Box(1, 2, 30, 31), Box(5, 5, 20, 20)]
    assert len(results["002.png"].faces) == 1


def test_boxes_of_one_file_name_in_two_folders_are_told_by_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    a, b, c = Path("a/one.png"), Path("b/one.png"), tmp_path / "c" / "two.png"
    first, second, third = [Box(0, 0, 1, 1)], [Box(0, 0, 2, 2)], [Box(0, 0, 3, 3)]
    file = tmp_path / "boxes.json"
    file.write_bytes(
        codecs.BOM_UTF8
        + json.dumps(
            {
                "a/one.png": [[0, 0, 1, 1]],
                str(tmp_path / "b" / "one.png"): [[0, 0, 2, 2]],
                "two.png": [[0, 0, 3, 3]],
                "three.png": [],
            }
        ).encode()
    )
    assert assign_boxes(read_boxes(file), [a, b, c]) == (
        {a: first, b: second, c: third},
        ["three.png"],
    )
    with pytest.raises(ValueError, match=r"'one.png': 2 images have that name.*give paths"):
        assign_boxes({"one.png": first}, [a, b, c])
    with pytest.raises(ValueError, match=r"'two.png' and 'c/two.png': both are"):
        assign_boxes({"two.png": first, "c/two.png": first}, [a, b, c])
    # a path itself comes before paths that end so
    same = [Path("one.png"), a]
    assert assign_boxes({"one.png": first}, same) == ({same[0]: first}, [])


def test_large_images_are_not_held_together(
    folder: Path, toy_model: MorphableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dff.files.alignments.BATCH_BYTES", 3 * 40 * 45 * 3)
    sizes = []

    class Counting(KnownAligner):
        def align_batch(self, images, boxes=None):  # type: ignore[no-untyped-def]
            sizes.append(len(images))
            return super().align_batch(images, boxes)

    paths = find_images([folder]).images
    results = list(align_files(Counting(toy_model), paths))  # type: ignore[arg-type]
    assert tuple(r.path for r in results) == paths
    assert max(sizes) <= 4
    assert sum(sizes) == len(paths)


def test_a_truncated_jpeg_is_aligned_with_a_warning(
    tmp_path: Path, toy_model: MorphableModel
) -> None:
    jpeg = encoded(np.full((40, 60, 3), 90, np.uint8), "JPEG")
    (tmp_path / "a.jpg").write_bytes(jpeg[:-2])
    (result,) = align_files(KnownAligner(toy_model), [tmp_path / "a.jpg"])  # type: ignore[arg-type]
    assert result.faces
    assert "is truncated or damaged: " in result.warning


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", ""),
        ("{", ""),
        ('{"a.png": [], "b.png": [[1, 2, 3]]}', "'b.png': "),
        ('{"a.png": [], "b.png": [[5, 5, 1, 1]]}', "'b.png': "),
        ('{"a.png": [], "b.png": null}', "'b.png': "),
    ],
)
def test_a_bad_box_file_is_refused_by_name(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "boxes.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"boxes\.json.*{told}"):
        read_boxes(file)
    with pytest.raises(FileNotFoundError):  # told as other missing files
        read_boxes(tmp_path / "nowhere.json")


def test_missing_and_empty_places_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadPhoto, match="nowhere"):
        find_images([tmp_path / "nowhere"])
    with pytest.raises(BadPhoto, match="no image"):
        find_images([tmp_path])


def test_a_mistyped_path_stops_no_other_image(folder: Path, toy_model: MorphableModel) -> None:
    paths = find_images(
        [folder / "typo.png", *find_images([folder]).images[:2], folder / "no_folder"]
    ).images
    results = [*align_files(KnownAligner(toy_model), paths)]  # type: ignore[arg-type]
    assert [one.error for one in results] == [MISSING, "", "", MISSING]


def test_a_file_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    write_file(tmp_path / "new" / "deep" / "a.bin", b"abc")
    assert (tmp_path / "new" / "deep" / "a.bin").read_bytes() == b"abc"
    with pytest.raises(StorageError, match="can't write /dev/full: No space left on device"):
        write_file(Path("/dev/full"), b"abc")
    with pytest.raises(StorageError, match=r"can't write .*new: Is a directory"):
        write_file(tmp_path / "new", b"abc")


def test_a_drawing_has_the_format_of_its_suffix(toy_model: MorphableModel) -> None:
    image = np.full((40, 40, 3), 90, np.uint8)
    files = {
        suffix: encode_drawing(image, [], toy_model, suffix)
        for suffix in (".png", ".jpg", ".JPEG", "")
    }
    kinds = {suffix: Image.open(io.BytesIO(data)).format for suffix, data in files.items()}
    assert kinds == {".png": "PNG", ".jpg": "JPEG", ".JPEG": "JPEG", "": "PNG"}


def test_images_of_one_name_in_two_folders_are_kept_apart(
    tmp_path: Path, toy_model: MorphableModel
) -> None:
    paths = [tmp_path / "a" / "one.png", tmp_path / "b" / "one.png", tmp_path / "b" / "two.png"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(path)
    assert unique_names(paths) == [str(paths[0]), str(paths[1]), "two.png"]
    results = align_files(KnownAligner(toy_model), paths)  # type: ignore[arg-type]
    answers = to_json(results, FaceDescriber(toy_model))
    assert [len(faces) for faces in answers.values()] == [1, 1, 1]


def test_each_image_has_an_output_of_its_own_that_is_no_input(tmp_path: Path) -> None:
    files = [
        tmp_path / "a.jpg",
        tmp_path / "b.webp",
        tmp_path / "in" / "c.png",
        tmp_path / "in" / "a.png",
    ]
    made = assign_outputs(tmp_path / "out", files, DRAWINGS)
    assert [made[files[1]].name, made[files[2]].name] == ["b.png", "c.png"]
    assert len(set(made.values())) == 4
    assert all(path.parent == tmp_path / "out" for path in made.values())
    same = [tmp_path / name for name in ("p1/a.jpg", "p2/a.jpg", "p2/a.png", "p1_a.png", "c.jpg")]
    names = [path.name for path in assign_outputs(tmp_path / "out", same, (".glb",)).values()]
    assert names == ["p1_a_jpg.glb", "p2_a_jpg.glb", "p2_a_png.glb", "p1_a_png.glb", "c.glb"]
    assert assign_outputs(tmp_path / "d.JPG", files[:1], DRAWINGS) == {files[0]: tmp_path / "d.JPG"}
    for place, some, says in (
        ("d.png", files, "4 images: name a folder"),
        ("d.bmp", files[:1], "d.bmp should end in .png or .jpg or .jpeg"),
        ("a.jpg", files[:1], "a.jpg is one of the input files"),
        (".", files[:2], "a.jpg is one of the input files"),
    ):
        with pytest.raises(ValueError, match=says):
            assign_outputs(tmp_path / place, some, DRAWINGS)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("photo", "--json", "photo"), "photo"),
        (("a.png", "--same-person", "--mesh", "../photos/a.png"), "../photos/a.png"),
        (("a.png", "--same-person", "--draw", "../photos/a.png"), "../photos/a.png"),
        (("a.png", "--same-person", "--draw", "x", "--json", "x"), "x"),
        (("a.png", "--boxes", "boxes.json", "--json", "boxes.json"), "boxes.json"),
        (("film.mp4", "--draw", "film.mp4"), "film.mp4"),
        (("a.png", "--json", "x", "--csv", "x"), "x"),
    ],
)
def test_no_input_file_is_overwritten(
    arguments: tuple[str, ...], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path / "photos")
    for name in ("a.png", "photo", "boxes.json", "film.mp4"):
        Path(name).write_bytes(b"mine")
    result = CliRunner().invoke(app, ["align", *arguments])
    assert str(result.exception).startswith(f"{named} is ")
    assert "name another place" in str(result.exception)
    assert not Path("x").exists()
    assert all(Path(name).read_bytes() == b"mine" for name in ("a.png", "photo", "film.mp4"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--same-person", "--focal", "900"),
        ("--same-person", "--landmarks", "5", "--json", "x.json"),
        ("--landmarks", "5"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    photo = tmp_path / "a.png"
    Image.new("RGB", (90, 90)).save(photo)
    result = CliRunner().invoke(app, ["align", str(photo), *arguments, "--weights", "none"])
    assert result.exit_code == 2
    assert "goes with --" in result.output


@pytest.mark.parametrize("choice", [("--preset", "fast"), ("--cascade", "c.npz")])
def test_a_server_is_told_neither_preset_nor_method(
    choice: tuple[str, str], tmp_path: Path
) -> None:
    photo = tmp_path / "a.png"
    Image.new("RGB", (90, 90)).save(photo)
    result = CliRunner().invoke(
        app, ["align", str(photo), "--server", "http://127.0.0.1:1", *choice]
    )
    assert result.exit_code == 2
    assert "its own weights, method and" in result.output


@pytest.mark.parametrize("more", [(), ("--same-person",)])
@pytest.mark.parametrize("place", ["face.ply", "face.obj.gz", "face.stl"])
def test_other_mesh_formats_are_refused_before_the_work(
    place: str, more: tuple[str, ...], tmp_path: Path
) -> None:
    photo = tmp_path / "a.png"
    Image.new("RGB", (90, 90)).save(photo)
    # the weights do not exist: they would be missed if anything were loaded first
    arguments = ["align", str(photo), *more, "--mesh", str(tmp_path / place), "--weights", "none"]
    error = str(CliRunner().invoke(app, arguments).exception)
    assert place in error
    assert ".glb or .obj" in error


def test_a_mesh_has_the_format_of_its_suffix_and_the_photo_s_texture(
    tmp_path: Path, toy_model: MorphableModel
) -> None:
    photo = tmp_path / "a.png"
    Image.new("RGB", (90, 90), (0, 255, 51)).save(photo)
    place = tmp_path / "out" / "face.OBJ"
    outputs = ImageOutputs(meshes={photo: place})
    writer = AlignmentWriter(FaceDescriber(toy_model), {photo: "a.png"}, outputs)
    for result in align_files(KnownAligner(toy_model), [photo]):  # type: ignore[arg-type]
        writer.write(result)
    assert "mtllib face.mtl" in place.read_text()
    assert {path.name for path in place.parent.iterdir()} == {"face.OBJ", "face.mtl", "face.jpg"}


def test_a_stopped_folder_is_resumed(
    folder: Path, tmp_path: Path, toy_model: MorphableModel
) -> None:
    lines = tmp_path / "out.jsonl"
    files = find_images([folder]).images[:3]
    describer = FaceDescriber(toy_model)
    whole = [
        r.to_json_line(r.path.name, describer)
        for r in align_files(KnownAligner(toy_model), files)  # type: ignore[arg-type]
    ]
    lines.write_text("".join(whole)[:-20])  # killed within the third line
    assert read_finished(lines) == {"000.png", "001.png"}
    append_file(lines, whole[2].encode())
    assert lines.read_text() == "".join(whole)
    assert (
        ImageResult(files[0], None, (), "why").to_json_line("x", describer)
        == '{"image": "x", "faces": [], "error": "why"}\n'
    )
    lines.write_text("[]\n")
    with pytest.raises(ValueError, match=r"out\.jsonl does not hold"):
        read_finished(lines)


def test_images_are_found_by_content_and_the_other_files_named(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for path in folder.glob("*.png"):
        path.unlink()
    outside = tmp_path_factory.mktemp("outside")
    jpeg = encoded(np.full((40, 40, 3), 90, np.uint8), "JPEG")
    images = [
        "a.jfif",
        "b.jpe",
        "c.mpo",
        "d.JPG",
        "e",
        "f.heic",
        "g.photo",
        "sub/deep/h.jpeg",
        "j.txt",
    ]
    for name in images:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg)
    (outside / "i.jpg").write_bytes(jpeg)
    (folder / "linked").symlink_to(outside)
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "lost.jpg").symlink_to(folder / "nowhere")
    (folder / "film.mp4").write_bytes(b"film")
    (folder / "j.gif").write_bytes(encoded(np.full((4, 4, 3), 90, np.uint8), "GIF"))
    (folder / "k.tif").write_bytes(encoded(np.full((4, 4, 3), 90, np.uint8), "TIFF"))
    (folder / "old").write_bytes(encoded(np.full((4, 4, 3), 90, np.uint8), "GIF"))
    (folder / "drawn").mkdir()
    (folder / "drawn" / "a.png").write_bytes(jpeg)
    (folder / "e.pts").touch()
    found = find_images([folder], without=[folder / "drawn"])
    assert found.images == tuple(sorted(folder / name for name in [*images, "linked/i.jpg"]))
    assert set(found.passed_over) == {
        f"{folder / 'notes.txt'}",
        f"{folder / 'film.mp4'} (a video: align it alone)",
        f"{folder / 'j.gif'} (a video: align it alone)",
        f"{folder / 'old'} (a video: align it alone)",
        f"{folder / 'k.tif'} (TIFF)",
        f"{folder / 'lost.jpg'} (a broken link)",
        f"{folder / 'sub' / 'up'} (a link to a folder that it lies in)",
        f"{folder / 'drawn'} (results are written there)",
    }


def test_an_empty_folder_that_looks_like_an_image_is_named(folder: Path) -> None:
    for name in ("x.jpg", "sub/y.png", "other"):
        (folder / name).mkdir(parents=True)
    found = find_images([folder, folder / "other"])
    assert [text for text in found.passed_over if "notes" not in text] == [
        f"{folder / 'sub' / 'y.png'} (an empty folder)",
        f"{folder / 'x.jpg'} (an empty folder)",
        f"{folder / 'other'} (an empty folder)",
    ]


@pytest.mark.parametrize("output", ["--json", "--csv"])
def test_every_image_of_a_command_is_answered_or_refused_by_name(
    output: str, tmp_path: Path, toy_model: MorphableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dff.commands.align.load_aligner_for", lambda *_: KnownAligner(toy_model))
    for name, grey in (("black.png", 0), ("face.png", 90)):
        Image.fromarray(np.full((40, 40, 3), grey, np.uint8)).save(tmp_path / name)

    def run(*more: str) -> Result:
        return CliRunner().invoke(app, ["align", str(tmp_path), output, str(out), *more])

    out = tmp_path / f"out.{output.removeprefix('--')}"
    answered = run()
    assert answered.exit_code == 0
    assert f"{tmp_path / 'black.png'}: no face found" in answered.stderr
    assert answered.stdout == f"1 face of 2 images in {out}; 1 without a face\n"
    (tmp_path / "bad.png").write_bytes(b"bad")
    (tmp_path / os.fsdecode(b"\xe9.png")).write_bytes((tmp_path / "black.png").read_bytes())
    partly = run()
    assert partly.exit_code == 1
    assert f"{tmp_path / 'bad.png'}: this is not an image" in partly.stderr
    assert partly.stdout == f"1 face of 4 images in {out}; 2 without a face; 1 refused\n"
    if output == "--json":
        written = json.loads(out.read_text())
        assert written["black.png"] == []
        assert written["bad.png"]["error"].startswith("this is not an image")
        assert len(written["face.png"]) == 1
        return
    rows = {row["image"]: row for row in csv.DictReader(out.open())}
    told = {name: (row["face_id"], row["success"], row["error"][:20]) for name, row in rows.items()}
    assert told == {
        "bad.png": ("", "0", "this is not an image"),
        "black.png": ("", "0", ""),
        "face.png": ("0", "1", ""),
        r"\udce9.png": ("", "0", ""),
    }


def test_the_photo_in_work_is_named(
    folder: Path, toy_model: MorphableModel, capsys: pytest.CaptureFixture[str]
) -> None:
    class Watched(KnownAligner):
        def align(self, image, boxes=None):  # type: ignore[no-untyped-def]
            shown.append(capsys.readouterr().err)
            return super().align(image, boxes)

    shown: list[str] = []
    large = folder / "large.png"
    large.write_bytes(encoded(np.full((40, 40, 3), 90, np.uint8), "PNG") + bytes(LARGE))
    paths = [folder / "000.png", large]
    list(align_files(Watched(toy_model), paths, progress=True))  # type: ignore[arg-type]
    assert str(large) in shown[0]
    assert "2/2" in capsys.readouterr().err


def test_what_is_passed_over_is_counted_and_named() -> None:
    assert describe_passed_over(["a.gif (GIF)"]).startswith("1 file passed over")
    line = describe_passed_over([os.fsdecode(b"\xe9.txt"), *"bcdefgh"])
    assert line.startswith("8 files passed over")
    assert line.endswith(r": \udce9.txt, b, c, d, e and 3 more")


def test_results_go_to_json_drawings_and_meshes(folder: Path, toy_model: MorphableModel) -> None:
    face, black = folder / "000.png", folder / "black.png"
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(black)
    out = folder / "out"
    for name in ("a.json", "a.jsonl"):
        writer = AlignmentWriter(
            FaceDescriber(toy_model),
            {path: path.name for path in (face, black)},
            ImageOutputs(
                out / name,
                out / "a.csv",
                drawings={black: out / "black.jpg"},
                meshes={face: out / "face.glb", black: out / "black.glb"},
                masks={face: out / "mask.png"},
                crops={face: out / "crop.png", black: out / "none.png"},
                crop_size=32,
            ),
        )
        writer.begin()
        for result in align_files(KnownAligner(toy_model), [face, black]):  # type: ignore[arg-type]
            writer.write(result)
        writer.finish()
    whole = json.loads((out / "a.json").read_text())
    lines = [json.loads(line) for line in (out / "a.jsonl").read_text().splitlines()]
    assert whole == {line["image"]: line["faces"] for line in lines}
    assert [len(faces) for faces in whole.values()] == [1, 0]
    assert {path.name for path in out.iterdir()} == {
        *("a.json", "a.jsonl", "a.csv", "black.jpg", "face.glb", "mask.png", "crop_0.png")
    }
    row, without = csv.DictReader((out / "a.csv").open())
    assert (without["image"], without["success"]) == ("black.png", "0")
    alignment = whole[face.name][0]
    assert (row["image"], row["face_id"], row["success"]) == (face.name, "0", "1")
    assert float(row["x_8"]) == pytest.approx(alignment["landmarks_2d"][8][0], abs=0.01)
    placed = alignment["head_in_camera"]["translation"]
    assert float(row["pose_Tz"]) == pytest.approx(1000 * placed[2], abs=0.1)
    assert float(row["Z_30"]) == pytest.approx(float(row["pose_Tz"]), abs=200)
    assert Image.open(out / "crop_0.png").size == (32, 32)
    assert (out / "face.glb").read_bytes()[:4] == b"glTF"
