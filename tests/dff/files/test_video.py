"""Video files: read by content with their own times, aligned, drawn so that browsers play them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from dff.aligner.align import Aligner
from dff.aligner.face_request import Steps
from dff.aligner.found_faces import FoundFaces
from dff.commands.app import app
from dff.face.arrays import Bytes
from dff.face.errors import BadVideo, MissingExtra, NoFace
from dff.face.geometry.camera import Box
from dff.face.model.landmarks import nme_box
from dff.face.model.morphable import MorphableModel
from dff.files.video import HELD, align_video_file, settling_seconds
from dff.files.video_ends import find_missing_end
from dff.files.video_io import GAP, VideoWriter, is_video, lacks_frames, open_video
from tests.aligner.known_aligner import known_alignment
from tests.aligner.oracle import READING, OracleNet, PositionCode, Scene, make_scene, oracle_anchors
from tests.dff.films import moving_edge, turn_film, write_film
from tests.small_disk import small_disk

FORMATS = {
    "a.mp4": ("libx264", "aac", None),
    "a.3gp": ("libx264", "aac", None),
    "a.ts": ("libx264", "mp2", None),
    "a.wmv": ("wmv2", "libmp3lame", None),
    "a.mpg": ("mpeg2video", "mp2", None),
    "a.flv": ("flv1", "libmp3lame", None),
    "a.mts": ("libx264", "ac3", "mpegts"),
    "a.avi": ("mpeg4", "pcm_s16le", None),
    "a.mkv": ("ffv1", "pcm_s16le", None),
    "a.webm": ("libvpx-vp9", None, None),
    "a.gif": ("gif", None, None),
    "a.jpg": ("libx264", None, "mp4"),  # by content, whatever the name
    "film": ("libx264", None, "matroska"),
}


@pytest.fixture(scope="module")
def oracle(open_head: MorphableModel) -> Aligner:
    code = PositionCode.of(open_head)
    return Aligner(OracleNet(code), oracle_anchors(open_head, code), open_head, config=READING)


@pytest.fixture(scope="module")
def scene(open_head: MorphableModel) -> Scene:
    rng = np.random.default_rng(3)
    return make_scene(open_head, PositionCode.of(open_head), yaw=20.0, rng=rng)


def read(path: Path) -> tuple[list[Bytes], list[float], list[str]]:
    with open_video(path) as reader:
        frames = list(reader.frames())
        return [f.image for f in frames], [f.time for f in frames], reader.complaints()


def copy_drawn(path: Path, out: Path) -> Path:
    """The film written by the writer of drawn videos."""
    with open_video(path) as reader, VideoWriter.open(out, reader) as writer:
        for frame in reader.frames():
            writer.write(frame.image, frame.time)
    return out


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["align", *map(str, words)])


@pytest.mark.parametrize("name", FORMATS)
def test_films_are_known_and_read_by_content(tmp_path: Path, name: str) -> None:
    codec, sound, muxer = FORMATS[name]
    frames = moving_edge(20)
    path = write_film(tmp_path / name, frames, codec=codec, sound=sound, muxer=muxer)
    assert is_video(path)
    images, times, complaints = read(path)
    np.testing.assert_allclose(times, 0.04 * np.arange(20), atol=1e-3)
    assert complaints == []
    assert all(np.abs(a.astype(int) - b).mean() < 25 for a, b in zip(images, frames, strict=True))


def test_other_files_are_no_videos(tmp_path: Path) -> None:
    for name, data in {
        "a.jpg": b"\xff\xd8\xff\xe0",
        "a.mp4": b"\x89PNG\r\n\x1a\n" + b"0" * 40,  # a picture with a film's name
        "a.heic": b"\0\0\0\x18ftypheic" + b"0" * 40,
        "a.pts": b"version: 1",
    }.items():
        (tmp_path / name).write_bytes(data)
        assert not is_video(tmp_path / name)
    assert not is_video(tmp_path)
    assert not is_video(tmp_path / "missing.mp4")


def test_times_are_those_of_the_file(tmp_path: Path) -> None:
    times = [0.0, 0.03, 0.09, 0.5, 0.55, 2.0, 2.04, 3.3]
    path = write_film(tmp_path / "phone.mp4", moving_edge(8), times=times)
    np.testing.assert_allclose(read(path)[1], times, atol=1e-4)
    np.testing.assert_allclose(read(copy_drawn(path, tmp_path / "d.mp4"))[1], times, atol=1e-3)
    late = write_film(tmp_path / "late.mkv", moving_edge(8), times=[t + 5.0 for t in times])
    np.testing.assert_allclose(read(late)[1], times, atol=1e-3)


def test_frames_are_turned_and_have_square_pixels(tmp_path: Path) -> None:
    frames = moving_edge(4)
    path = write_film(tmp_path / "a.mp4", frames)
    plain = read(path)[0]
    for degrees in (90, 180, 270):
        turned = read(turn_film(path, tmp_path / f"{degrees}.mp4", degrees))[0]
        for a, b in zip(turned, plain, strict=True):
            np.testing.assert_array_equal(a, np.rot90(b, degrees // 90))
    wide = write_film(tmp_path / "wide.mp4", frames, pixel=Fraction(4, 3))
    assert read(wide)[0][0].shape == (64, 128, 3)
    tall = write_film(tmp_path / "tall.mp4", frames, pixel=Fraction(3, 4))
    assert read(tall)[0][0].shape == (85, 96, 3)


STREAMED = {"a.mp4": {"movflags": "faststart"}, "a.mts": {"mpegts_m2ts_mode": "1"}}


def noisy_film(path: Path, count: int, *, rate: float = 25.0) -> Path:
    """A film whose frames have the same size in the file, with sound where its format has it."""
    codec, sound, muxer = FORMATS[path.name]
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 8, 12, 3), dtype=np.uint8)
    return write_film(
        path,
        [np.repeat(np.repeat(frame, 8, 0), 8, 1) for frame in coarse],
        codec=codec,
        sound=sound,
        muxer=muxer,
        times=[i / rate for i in range(count)] if rate != 25.0 else None,
        options=STREAMED.get(path.name),
    )


@pytest.mark.parametrize("name", sorted(FORMATS.keys() - {"a.3gp", "a.jpg"}))
def test_a_film_that_is_cut_off_says_that_it_ends_early(tmp_path: Path, name: str) -> None:
    film = noisy_film(tmp_path / name, 40)
    assert read(film)[2] == []
    data = film.read_bytes()
    for length in (len(data) // 2 + 1, len(data) * 9 // 10 + 1, len(data) - 10):
        film.write_bytes(data[:length])
        images, _, (complaint, *_) = read(film)
        assert 0 < len(images) <= 40
        assert complaint.startswith("the file ends early"), complaint


@pytest.mark.parametrize("rate", [25.0, 30.0, 60.0])
@pytest.mark.parametrize("name", ["a.mp4", "film"])
def test_a_film_that_lacks_two_frames_says_so(tmp_path: Path, name: str, rate: float) -> None:
    film = noisy_film(tmp_path / name, 40, rate=rate)
    assert read(film)[2] == []
    with av.open(str(film)) as container:
        places = [p.pos for p in container.demux(video=0) if p.size]
    film.write_bytes(film.read_bytes()[: places[-2]])
    assert "the file ends early" in read(film)[2][0]


def test_a_transport_stream_that_ends_in_the_middle_of_a_frame_is_seen(tmp_path: Path) -> None:
    film = noisy_film(tmp_path / "a.ts", 30)
    data = film.read_bytes()
    ends = range(len(data) // 2 // 188, len(data) // 188)
    silent = 0
    for count in ends:
        film.write_bytes(data[: 188 * count])
        silent += not find_missing_end(film)
    assert silent < 0.4 * len(ends)  # between two frames, which are five packets each here


def test_a_transport_stream_that_ends_between_frames_lacks_one_before_the_last(
    tmp_path: Path,
) -> None:
    film = noisy_film(tmp_path / "a.ts", 60)
    whole = film.read_bytes()
    assert read(film)[2] == []
    told = []
    for count in range(3 * len(whole) // 4 // 188, 3 * len(whole) // 4 // 188 + 40):
        film.write_bytes(whole[: 188 * count])
        told.append(read(film)[2])
    gaps = [one for one in told if one == [f"the file ends early: {GAP}"]]
    assert gaps
    assert sum(not one for one in told) < 0.3 * len(told)


@pytest.mark.parametrize(
    ("times", "wanted"),
    [
        (np.arange(24) / 25, False),
        ([*np.arange(23) / 25, 24 / 25], True),
        ([*np.arange(22) / 25, 24 / 25, 25 / 25], True),
        ([*np.arange(5) / 25, *np.arange(6, 25) / 25], False),  # a gap long before the end
        (np.arange(24) ** 1.2 / 25, False),  # of variable rate
        (np.arange(5) / 25, False),
    ],
)
def test_a_gap_among_the_last_of_regular_frames_is_a_missing_frame(
    times: Sequence[float], wanted: bool
) -> None:
    assert lacks_frames(list(times)) is wanted


def test_a_recording_without_its_index_is_refused(tmp_path: Path) -> None:
    film = write_film(tmp_path / "a.mp4", moving_edge(72))
    film.write_bytes(film.read_bytes()[:1500])
    with pytest.raises(BadVideo, match="its index is missing, as when a recording is cut off"):
        read(film)


def test_playlists_open_no_other_file(tmp_path: Path) -> None:
    other = write_film(tmp_path / "other.ts", moving_edge(5))
    for name, text in {
        "hls.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\n{other}\n#EXT-X-ENDLIST\n",
        "concat.mp4": f"ffconcat version 1.0\nfile {other}\n",
    }.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(BadVideo, match="can't be read as a video"):
            read(tmp_path / name)


def test_videos_that_give_nothing_say_why(
    oracle: Aligner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadVideo, match="is not a file"):
        align_video_file(oracle, tmp_path / "none.mp4")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video" * 100)
    with pytest.raises(BadVideo, match=r"can't be read as a video: no known format"):
        align_video_file(oracle, broken)
    broken.write_bytes(b"")
    with pytest.raises(BadVideo, match="it is empty"):
        align_video_file(oracle, broken)
    black = write_film(tmp_path / "black.mkv", [np.zeros((64, 64, 3), np.uint8)] * 2)
    with pytest.raises(NoFace, match="2 frames"):
        align_video_file(oracle, black)

    def refuse(self: Aligner, images: Sequence[Bytes], *, faces: int) -> Steps[list[FoundFaces]]:
        yield from ()
        return [FoundFaces([], [refused])]

    monkeypatch.setattr(Aligner, "align_in_steps", refuse)
    refused = replace(known_alignment(oracle.model, Box(10, 10, 40, 40)), reason="it is a cat")
    with pytest.raises(NoFace, match=r"in the last one 1 candidate refused; reason: it is a cat"):
        align_video_file(oracle, black)


@pytest.mark.parametrize("out", ["d.mp4", "d.mov", "d.mkv", "d.webm"])
@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.ts", "a.wmv"])
def test_drawn_videos_play_in_browsers_with_their_sound(
    tmp_path: Path, name: str, out: str
) -> None:
    codec, sound, muxer = FORMATS[name]
    film = write_film(tmp_path / name, moving_edge(50), codec=codec, sound=sound, muxer=muxer)
    drawn = copy_drawn(film, tmp_path / out)
    with av.open(str(drawn)) as container:
        (picture,), (tone,) = container.streams.video, container.streams.audio
        assert picture.codec_context.name == ("vp9" if out == "d.webm" else "h264")
        assert picture.codec_context.pix_fmt == "yuv420p"
        assert tone.codec_context.name in {"aac", "mp3", "opus"}
        heard = [f.time for f in container.decode(tone)]
    assert heard[0] < 0.1
    assert 1.7 < heard[-1] < 2.05
    np.testing.assert_allclose(read(drawn)[1], 0.04 * np.arange(50), atol=2e-3)


def test_sound_that_browsers_play_is_copied_unchanged(tmp_path: Path) -> None:
    film = write_film(tmp_path / "a.mp4", moving_edge(25), sound="aac")
    drawn = copy_drawn(film, tmp_path / "d.mp4")

    def packets(path: Path) -> list[bytes]:
        with av.open(str(path)) as container:
            return [bytes(p) for p in container.demux(audio=0) if p.size]

    assert packets(film) == packets(drawn) != []


def test_odd_sides_are_padded_not_cut(tmp_path: Path) -> None:
    film = write_film(tmp_path / "a.mp4", moving_edge(3))
    with open_video(film) as reader, VideoWriter.open(tmp_path / "d.mp4", reader) as writer:
        for frame in reader.frames():
            writer.write(frame.image[:63, :95], frame.time)
    images = read(tmp_path / "d.mp4")[0]
    assert images[0].shape == (64, 96, 3)


def test_a_full_disk_leaves_no_part_of_a_drawn_video(tmp_path: Path) -> None:
    film = write_film(tmp_path / "a.mp4", moving_edge(3))
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)

    def draw(place: Path) -> None:
        with open_video(film) as reader, VideoWriter.open(place, reader) as writer:
            for number in range(20):
                writer.write(noise, number / 25.0)

    with small_disk(tmp_path / "disk", 32) as disk:
        with pytest.raises(BadVideo, match=r"d\.mp4 can't be written: No space left on device"):
            draw(disk / "d.mp4")
        assert list(disk.iterdir()) == []


def test_a_video_file_is_aligned_and_drawn(oracle: Aligner, scene: Scene, tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.mkv", [scene.image] * 4, codec="ffv1", sound="aac")
    drawn = tmp_path / "drawn.mp4"
    align_video_file(oracle, film, json_out=tmp_path / "film.json", drawing=drawn)
    found = json.loads((tmp_path / "film.json").read_text())
    assert [[one["track"] for one in frame["faces"]] for frame in found] == [[0]] * 4
    assert [frame["time"] for frame in found] == [0.0, 0.04, 0.08, 0.12]
    last = np.array(found[-1]["faces"][0]["landmarks_3d"])
    assert nme_box(last[:, :2], scene.landmarks) < 0.05
    images = read(drawn)[0]
    assert len(images) == 4
    assert np.abs(images[0].astype(int) - scene.image).mean() > 1.0


@pytest.mark.parametrize(
    ("width", "height", "rate", "seconds"),
    [(640, 480, 30.0, 1.0), (1920, 1080, 60.0, 0.72), (3840, 2160, 60.0, 0.18)],
)
def test_large_frames_are_held_back_for_a_shorter_time(
    width: int, height: int, rate: float, seconds: float
) -> None:
    size = 3 * width * height
    found = settling_seconds(size, rate)
    assert found == pytest.approx(seconds, rel=0.01)
    assert found * rate * size <= HELD


def test_json_of_a_video_is_json(oracle: Aligner, scene: Scene, tmp_path: Path) -> None:
    times = [0.0, 0.03, 0.3]
    film = write_film(tmp_path / "film.mkv", [scene.image] * 3, codec="ffv1", times=times)
    whole, lines = tmp_path / "a.json", tmp_path / "a.jsonl"
    mesh = tmp_path / "head.glb"
    summary = align_video_file(oracle, film, json_out=whole, mesh=mesh)
    data = mesh.read_bytes()
    head = json.loads(data[20 : 20 + int.from_bytes(data[12:16], "little")])
    assert {one["target"]["path"] for one in head["animations"][0]["channels"]} == {
        "weights",
        "rotation",
        "translation",
    }
    assert head["images"]  # of the frame that shows the face best
    assert "faces in 3 of 3 frames, 1 track" in summary
    align_video_file(oracle, film, json_out=lines)
    frames = json.loads(whole.read_text())
    assert frames == [json.loads(line) for line in lines.read_text().splitlines()]
    assert [frame["frame"] for frame in frames] == [0, 1, 2]
    np.testing.assert_allclose([frame["time"] for frame in frames], times, atol=2e-3)
    assert frames[0]["faces"][0]["track"] == 0
    black = write_film(tmp_path / "black.mkv", [np.zeros((64, 64, 3), np.uint8)] * 2)
    with pytest.raises(NoFace):
        align_video_file(oracle, black, json_out=whole)
    assert [frame["faces"] for frame in json.loads(whole.read_text())] == [[], []]


def test_what_can_not_be_written_or_read_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_work(*_: object) -> None:
        pytest.fail("the weights were loaded")

    monkeypatch.setattr("dff.commands.align.load_aligner_for", no_work)
    film = write_film(tmp_path / "film.mp4", moving_edge(3))
    content = film.read_bytes()
    done = run(film, "--draw", tmp_path / "x.png")
    assert done.exit_code != 0
    assert ".mp4" in str(done.exception) + done.output
    assert not (tmp_path / "x.png").exists()
    for words in (["--json", film], ["--draw", film]):
        assert run(film, *words).exit_code != 0
    assert run(film, "--json", tmp_path / "a.mp4", "--draw", tmp_path / "a.mp4").exit_code != 0
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(content[:200])
    assert isinstance(run(broken).exception, BadVideo)
    assert film.read_bytes() == content


def test_without_its_library_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = write_film(tmp_path / "film.mp4", moving_edge(3))
    monkeypatch.setitem(sys.modules, "av", None)
    assert is_video(film)
    with pytest.raises(MissingExtra, match=r"deep-face-feature\[video\]"):
        read(film)
