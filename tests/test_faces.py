"""Faces in pictures: MTCNN without torch, one person through a clip, the square around a face.

The published weights are pnet.pt, rnet.pt and onet.pt in the folder that `MER_MTCNN` names, or those of the installed
package `facenet-pytorch`; without them random weights stand in where weights do not matter.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CONTAINERS

from mer_export.data.media.face_boxes import crop, largest, main_face, overlap
from mer_export.data.media.frames import read_frames
from mer_export.encoders.mtcnn.detector import NETWORKS, Areas, FaceDetector, distinct, scales
from mer_export.encoders.mtcnn.network import SHAPES, WEIGHT_MAP, Stage
from mer_export.errors import InputError, ParityError, UsageError
from mer_export.exporters.encoders.faces import import_detector, prove, write_detector

ROOT = Path(__file__).parents[1]
PACKAGE = "facenet_pytorch"


def published() -> Path | None:
    spec = None if os.environ.get("MER_MTCNN") else find_spec(PACKAGE)
    places = [Path(p) / "data" for p in (spec.submodule_search_locations or ())] if spec else []
    named = [Path(os.environ["MER_MTCNN"])] if os.environ.get("MER_MTCNN") else places
    return next((p for p in named if (p / "pnet.pt").is_file()), None)


def stages() -> dict[str, Stage]:
    torch.manual_seed(0)
    return {name: Stage(shape).eval() for name, shape in SHAPES.items()}


def save_weights(folder: Path) -> Path:
    """Random weights under their published names."""
    for name, stage in stages().items():
        own = stage.state_dict()
        named = {theirs: own[ours] for theirs, ours in WEIGHT_MAP.renames(SHAPES[name]).items()}
        torch.save(named, folder / f"{name}.pt")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector, of the published weights where they are."""
    out, weights = tmp_path_factory.mktemp("faces") / "detector", published()
    files = import_detector(weights, out) if weights else write_detector(stages(), out)
    assert [f.name for f in files] == ["pnet.onnx", "rnet.onnx", "onet.onnx"]
    return out


# --- the networks ----------------------------------------------------------------------------------------------------


def test_published_names_are_all_used_and_all_ours_are_found(tmp_path: Path) -> None:
    for name, stage in stages().items():
        names = WEIGHT_MAP.renames(SHAPES[name])
        assert set(names.values()) == set(stage.state_dict())
        own = {theirs: stage.state_dict()[ours] for theirs, ours in names.items()}
        torch.save(
            own if name != "onet" else {n: t for n, t in own.items() if n != "dense6_2.bias"}, tmp_path / f"{name}.pt"
        )
    with pytest.raises(UsageError, match=r"missing.*dense6_2\.bias"):
        import_detector(tmp_path, tmp_path / "out")


def test_a_file_that_gives_something_else_is_not_proven(folder: Path) -> None:
    torch.manual_seed(1)
    with pytest.raises(ParityError, match=r"rnet\.onnx differs from its network by"):
        prove("rnet", Stage(SHAPES["rnet"]).eval(), folder / "rnet.onnx")
    with pytest.raises(UsageError, match="pass --force"):
        write_detector({}, folder)


def test_nothing_but_a_detector_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(UsageError, match="is no face detector"):
        write_detector({}, tmp_path, force=True)
    assert (tmp_path / "thesis.tex").read_text() == "years"


def test_finding_faces_needs_no_torch(folder: Path) -> None:
    code = (
        "import sys, numpy as np; from mer_export.encoders.mtcnn.detector import FaceDetector; "
        f"boxes = FaceDetector.load({str(folder)!r}).boxes(np.zeros((60, 80, 3), np.uint8)); "
        "assert boxes.dtype == np.float32 and boxes.shape[1:] == (5,); "
        "assert not {'torch', 'onnx', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_folder_that_is_no_detector_is_named(folder: Path, tmp_path: Path) -> None:
    for name in NETWORKS[:2]:
        (tmp_path / f"{name}.onnx").write_bytes((folder / f"{name}.onnx").read_bytes())
    with pytest.raises(InputError, match=r"onet\.onnx is not there: the folder is incomplete"):
        FaceDetector.load(tmp_path)
    (tmp_path / "onet.onnx").write_bytes(b"\x08\x07")
    with pytest.raises(InputError, match=r"onet\.onnx is not a network that ONNX Runtime reads"):
        FaceDetector.load(tmp_path)
    with pytest.raises(InputError, match="cannot be less than 12"):
        FaceDetector.load(folder, smallest=5)


# --- the cascade -----------------------------------------------------------------------------------------------------

PUBLIC = {
    0.48: [113.2324, 18.3248, 243.6186, 208.5276, 0.9928],
    1.48: [97.3146, 24.2128, 226.2604, 205.8598, 0.9950],
    2.48: [76.2171, 21.5611, 204.7407, 208.8656, 0.9975],
}
"""Time in `face_happy.mp4` to the box and the certainty that the public code gives (facenet-pytorch 2.6.0)."""


def test_boxes_are_those_of_the_public_code(folder: Path) -> None:
    if published() is None or not CONTAINERS.is_dir():
        pytest.skip("MER_MTCNN names no folder of MTCNN's weights, or MER_SAMPLE_DATA has no media")
    detector = FaceDetector.load(folder)
    frames = {round(f.time, 2): f.picture for f in read_frames(CONTAINERS / "face_happy.mp4", count=3)}
    for time, wanted in PUBLIC.items():
        (found,) = detector.boxes(frames[time])
        np.testing.assert_allclose(found, wanted, atol=2e-3)
    for frame in read_frames(CONTAINERS / "testpattern_15fps.mp4", count=2):
        assert detector.boxes(frame.picture).shape == (0, 5)


def test_pictures_without_room_for_a_face_have_none(folder: Path) -> None:
    detector = FaceDetector.load(folder)
    for shape in ((1, 1, 3), (19, 400, 3), (400, 11, 3)):
        assert detector.boxes(np.zeros(shape, dtype=np.uint8)).shape == (0, 5)
    for bad in (np.zeros((40, 40), np.uint8), np.zeros((40, 40, 3), np.float32), np.zeros((0, 40, 3), np.uint8)):
        with pytest.raises(InputError, match="a picture is"):
            detector.boxes(bad)


def test_the_pyramid_halves_the_area_down_to_one_cell() -> None:
    found = list(scales((320, 240), 24))
    assert found[0] == 0.5
    np.testing.assert_allclose(np.divide(found[1:], found[:-1]), 0.709)
    assert 240 * found[-1] >= 12 > 240 * found[-1] * 0.709


@pytest.mark.parametrize("size", [(5, 7), (24, 24), (30, 41), (60, 100)])
def test_scaling_is_the_mean_over_areas_as_in_the_public_code(size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    cuts = np.array([[0, 0, 41, 30], [3, 5, 20, 29], [40, 29, 41, 30]])
    found = Areas(picture).means(cuts, size)
    for part, (left, top, right, bottom) in zip(found, cuts, strict=True):
        cut = torch.from_numpy(picture[top:bottom, left:right]).permute(2, 0, 1)[None].double()
        wanted = torch.nn.functional.interpolate(cut, size=size, mode="area")[0].numpy()
        np.testing.assert_allclose(part, wanted, rtol=1e-6)


def test_sums_that_overflow_leave_means_right() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    areas, cuts = Areas(picture), np.array([[0, 0, 41, 30]])
    wanted = areas.means(cuts, (7, 9))
    # As if far more pixels lay above and left: every sum is larger, most of them wrap around.
    areas._sums += np.uint32((1 << 32) - 1000)
    np.testing.assert_array_equal(areas.means(cuts, (7, 9)), wanted)


def test_of_boxes_that_overlap_the_surest_stays() -> None:
    boxes = np.array([[0, 0, 10, 10, 0.7], [1, 1, 11, 11, 0.9], [20, 20, 30, 30, 0.8], [22, 22, 26, 26, 0.75]])
    assert distinct(boxes, 0.5).tolist() == [1, 2, 3]
    assert distinct(boxes, 0.7).tolist() == [1, 2, 3, 0]
    assert distinct(boxes, 0.7, smaller=True).tolist() == [1, 2]
    assert distinct(boxes[:0], 0.5).tolist() == []


# --- what becomes of boxes -------------------------------------------------------------------------------------------


def test_the_largest_face_is_chosen_and_none_of_none() -> None:
    boxes = np.array([[0, 0, 10, 10, 0.99], [5, 5, 30, 25, 0.7], [8, 8, 9, 40, 0.9]])
    assert largest(boxes) is not None
    np.testing.assert_array_equal(largest(boxes), boxes[1])
    assert largest(boxes[:0]) is None
    np.testing.assert_allclose(overlap(boxes[0], boxes), [1, 25 / 575, 2 / 130])


def person(frame: int, left: float, size: float) -> list[float]:
    return [left + frame, 10, left + frame + size, 10 + size, 0.9]


def test_the_person_who_takes_most_room_is_followed_through_the_clip() -> None:
    near, far = [person(f, 10, 40) for f in range(8)], [person(f, 200, 20) for f in range(8)]
    clip = [np.array([b, a] if f % 2 else [a, b]) for f, (a, b) in enumerate(zip(near, far, strict=True))]
    # The face is hidden in the fourth frame, where another is larger for once.
    clip[3] = np.array([far[3], person(3, 300, 45)])
    found = main_face(clip)
    assert found[3] is None
    for frame in (0, 1, 2, 4, 5, 6, 7):
        np.testing.assert_array_equal(found[frame], near[frame])
    assert main_face([np.zeros((0, 5))] * 3) == [None] * 3
    assert main_face([]) == []


def test_a_crop_is_the_square_around_a_face_and_repeats_the_border() -> None:
    picture = np.arange(60 * 80, dtype=np.uint32).reshape(60, 80, 1) % 251
    picture = np.repeat(picture, 3, axis=2).astype(np.uint8)
    np.testing.assert_array_equal(crop(picture, np.array([20, 10, 40, 30]), 20), picture[10:30, 20:40])
    np.testing.assert_array_equal(crop(picture, np.array([20, 15, 40, 25]), 40, 1.0), picture[0:40, 10:50])
    outside = crop(picture, np.array([-10, -10, 10, 10]), 20)
    np.testing.assert_array_equal(outside[:11, :11], np.broadcast_to(picture[0, 0], (11, 11, 3)))
    np.testing.assert_array_equal(outside[10:, 10:], picture[:10, :10])
    assert crop(picture, np.array([20, 10, 40, 30]), 112, 0.3).shape == (112, 112, 3)
    for bad in ([5, 5, 5, 5], [np.nan, 0, 1, 1], [0, 0, 1e9, 1e9]):
        with pytest.raises(InputError, match="cannot be cut"):
            crop(picture, np.array(bad), 20)
