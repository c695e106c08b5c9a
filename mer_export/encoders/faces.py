"""The main face of pictures, cut out by a detector that an encoder of pictures brings with it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.bundle import Bundle
from mer_export.data.media.face_boxes import crop, main_face
from mer_export.encoders.encoder import FACES, Encoder
from mer_export.encoders.inputs import FaceCut, PictureInput, Room
from mer_export.encoders.mtcnn.detector import NETWORKS, SUFFIX, FaceDetector
from mer_export.errors import UsageError

MARGIN = 0.2
"""By which part of itself the side of the square around a face grows, unless somebody says otherwise."""


def sample_frames(bundle: Bundle, frames: int | None = None, fps: float | None = None) -> Encoder:
    """Makes an encoder of pictures see so many frames of a clip, spread evenly, or so many a second.

    Raises:
        UsageError: it reads something else than pictures.
    """
    _require_pictures(bundle, "frames")
    # Where both were said the number of a second holds, so a number of a clip takes its place.
    said = {"fps": fps} if frames is None else {"frames": frames, "fps": None}
    with bundle.commit() as change:
        change.manifest.config["input"] |= said
    return Encoder.of(bundle)


def look_at_faces(bundle: Bundle, detector: Path, size: int | None = None, margin: float = MARGIN) -> Encoder:
    """Makes an encoder of pictures one of faces: it takes the detector along, whose files are part of what it is.

    Args:
        bundle: the encoder.
        detector: folder of the detector (see `exporters.encoders.faces`).
        size: pixels of the square that is cut out, before the encoder's own preprocessing; None takes the size that
            this begins with.
        margin: by which part of itself the side of the square grows.

    Raises:
        UsageError: it reads something else than pictures.
        InputError: the detector is damaged, or there is none.
    """
    encoder = _require_pictures(bundle, "faces")
    FaceDetector.load(detector)
    files = {f"{n}{SUFFIX}": detector / f"{n}{SUFFIX}" for n in NETWORKS}
    digest = sha256(b"".join(f.read_bytes() for f in files.values())).hexdigest()
    cut = FaceCut(detector=digest, size=size or max(encoder.input.scaled), margin=margin)
    with bundle.commit() as change:
        change.manifest.config["input"]["faces"] = cut.model_dump(mode="json")
        for name, file in files.items():
            shutil.copyfile(file, change.file(f"{FACES}/{name}"))
    return Encoder.of(bundle)


def _require_pictures(bundle: Bundle, what: str) -> Encoder:
    encoder = Encoder.of(bundle)
    if not isinstance(encoder.input, PictureInput):
        raise UsageError(f"{bundle.root} reads {encoder.input.kind}: {what} are of encoders of pictures")
    return encoder


def faces_in(pictures: Iterable[np.ndarray], detector: Any, cut: FaceCut) -> Iterator[np.ndarray]:
    """Of the pictures of a clip the face (size, size, 3) of the person who takes most room, in those that show it.

    Raises InputError where the faces of all take more than `Room`.
    """
    boxes: list[np.ndarray] = []
    faces: list[list[np.ndarray]] = []
    room = Room("faces")
    for picture in pictures:
        found = detector.boxes(picture)
        boxes.append(found)
        room.take(len(found) * cut.size**2 * 3)
        # Pictures are far larger than their faces, so they go at once.
        faces.append([crop(picture, box, cut.size, cut.margin) for box in found])
    for found, own, box in zip(boxes, faces, main_face(boxes), strict=True):
        if box is not None:
            yield own[int(np.flatnonzero((found == box).all(axis=1))[0])]
