from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from aligner.finder import HaarFinder, overlap
from face.camera import Box
from infra.images import decode
from infra.landmark_files import parse_pts


def corners(box: Box) -> np.ndarray:
    return np.array([box.x0, box.y0, box.x1, box.y1])


def test_overlap_is_intersection_over_union() -> None:
    a = np.array([0.0, 0.0, 2.0, 2.0])
    assert overlap(a, a) == pytest.approx(1.0)
    assert overlap(a, a + 1.0) == pytest.approx(1.0 / 7.0)
    assert overlap(a, a + 5.0) == 0.0


@pytest.mark.parametrize("shape", [(60, 80, 3), (16, 16, 3), (20, 900, 3)])
def test_nothing_is_found_in_an_empty_picture(shape: tuple[int, int, int]) -> None:
    assert HaarFinder().find(np.full(shape, 127, np.uint8)) == []


def test_frontal_faces_of_photos_are_found_where_the_landmarks_are(shared: Path) -> None:
    photos = sorted((shared / "data" / "photos" / "lfpw-train").glob("*.jpg"))[:12]
    finder = HaarFinder()
    meetings = []
    for photo in photos:
        image = decode(photo.read_bytes(), upright=False)
        truth = corners(Box.around(parse_pts(photo.with_suffix(".pts").read_bytes())))
        meetings.append(max((overlap(corners(box), truth) for box in finder.find(image)), default=0.0))
    assert np.mean(np.array(meetings) > 0.5) > 0.85
    assert np.median(meetings) > 0.75


def test_a_turned_photo_mirrors_its_boxes(shared: Path) -> None:
    photo = sorted((shared / "data" / "photos" / "lfpw-train").glob("*.jpg"))[3]
    image = decode(photo.read_bytes(), upright=False)
    straight = HaarFinder().find(image)[0]
    mirrored = HaarFinder().find(np.ascontiguousarray(image[:, ::-1]))
    width = image.shape[1]
    wanted = np.array([width - straight.x1, straight.y0, width - straight.x0, straight.y1])
    assert max(overlap(corners(box), wanted) for box in mirrored) > 0.7


def test_boxes_scale_with_the_photo(shared: Path) -> None:
    photo = sorted((shared / "data" / "photos" / "lfpw-train").glob("*.jpg"))[3]
    image = decode(photo.read_bytes(), upright=False)
    large = np.repeat(np.repeat(image, 4, axis=0), 4, axis=1)
    small_box, large_box = HaarFinder().find(image)[0], HaarFinder().find(large)[0]
    assert overlap(corners(small_box) * 4, corners(large_box)) > 0.7


def test_threads_may_share_a_finder(shared: Path) -> None:
    photos = sorted((shared / "data" / "photos" / "lfpw-train").glob("*.jpg"))[:4]
    images = [decode(photo.read_bytes(), upright=False) for photo in photos]
    finder = HaarFinder()
    alone = [finder.find(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(finder.find, images)) == alone
