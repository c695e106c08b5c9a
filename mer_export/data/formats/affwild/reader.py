"""Faces with expression labels: the annotations of the third ABAW challenge over Aff-Wild2 (FacialMMT, section 2.8).

<root>/<annotations>/<split folder>/<video>.txt    a header, then one label per frame
<root>/<images>/<video>/00001.jpg                  the face of frame 1
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mer_export.data.labels import class_indices
from mer_export.data.media.faces import FaceImages
from mer_export.data.samples import Corpus, Sample
from mer_export.data.spec import DataSpec
from mer_export.errors import InputError

ANNOTATIONS = ("annotations", "EXPR_Set", "EXPR_Classification_Challenge")
IMAGES = ("images", "cropped_aligned", "face_images")
SPLITS = {"train": ("train", "Train_Set"), "val": ("val", "Validation_Set")}
LABELS = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
TO_MELD = (0, 6, 5, 2, 4, 3, 1)
"""Label of MELD for each of neutral, anger, disgust, fear, happiness, sadness, surprise; other frames are left out."""


def detect(path: Path, spec: DataSpec) -> bool:
    """True for a directory with annotations and images."""
    return path.is_dir() and _folder(path, ANNOTATIONS) is not None and _folder(path, IMAGES) is not None


def files(path: Path, spec: DataSpec) -> list[Path]:
    """The annotation files."""
    return [file for folder in _splits(path).values() for file in sorted(folder.glob("*.txt"))]


def root(path: str | None) -> Path:
    """A directory that holds such data; raises InputError otherwise."""
    if path is None or not detect(Path(path), DataSpec()):
        raise InputError(f"{path} has no {ANNOTATIONS[0]} and {IMAGES[0]} folder: point at the root of Aff-Wild2")
    return Path(path)


def read(path: Path, spec: DataSpec, labels: Sequence[str] | None = None) -> Corpus:
    """One sample per labelled frame that has an image: `images` (3, size, size), decoded when read.

    Raises:
        InputError: a label is not a number, or no folder is that of a split.
    """
    images = _folder(path, IMAGES)
    if images is None:
        raise InputError(f"{path} has none of the folders {list(IMAGES)}")
    classes = class_indices(LABELS, labels, str(path))
    splits = {
        split: [s for file in sorted(folder.glob("*.txt")) for s in _video(file, images, spec.faces.size, classes)]
        for split, folder in _splits(path).items()
    }
    return Corpus(splits=splits, format="affwild", info={"labels": list(labels or LABELS)})


def batch(samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray]:
    """Decoded images (n, 3, size, size) and labels (n) int64."""
    images = np.stack([np.asarray(s.inputs["images"]) for s in samples])
    return images, np.concatenate([s.labels for s in samples if s.labels is not None])


class Face(FaceImages):
    """One image, without the dim of frames."""

    ndim = 3

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (3, self.size, self.size)

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        return super().__array__(dtype)[0]


def _video(file: Path, images: Path, size: int, classes: np.ndarray) -> list[Sample]:
    try:
        lines = file.read_text().splitlines()[1:]
        labels = [int(line) for line in lines if line.strip()]
    except (ValueError, OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{file} is not an annotation file, it needs a header and one number per line: {error}"
        ) from None
    samples = []
    for number, label in enumerate(labels, start=1):
        image = images / file.stem / f"{number:05d}.jpg"
        if 0 <= label < len(TO_MELD) and image.is_file():
            name = f"{file.stem}/{number:05d}"
            faces: dict[str, np.ndarray] = {"images": Face([image], size)}  # type: ignore[dict-item]
            samples.append(Sample(name, faces, (name,), classes[[TO_MELD[label]]]))
    return samples


def _splits(path: Path) -> dict[str, Path]:
    annotations = _folder(path, ANNOTATIONS)
    if annotations is None:
        raise InputError(f"{path} has none of the folders {list(ANNOTATIONS)}")
    found = {split: _folder(annotations, names) for split, names in SPLITS.items()}
    present = {split: folder for split, folder in found.items() if folder is not None}
    if not present:
        raise InputError(f"{annotations} has no folder of a split: {SPLITS}")
    return present


def _folder(path: Path, names: Sequence[str]) -> Path | None:
    return next((path / n for n in names if (path / n).is_dir()), None)
