"""What encoders read of an utterance: its sentence, the sound of its recording, its pictures.

What is not there (no sentence, no track, silence) gives nothing: that modality is missing, and no zeros stand for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from mer_export.data.dialogues import IMAGES, Utterance
from mer_export.data.media.frames import read_frames
from mer_export.data.media.pictures import read_picture
from mer_export.data.media.sound import FULL_SCALE, Sound
from mer_export.encoders.encoder import Encoder
from mer_export.encoders.faces import faces_in
from mer_export.encoders.inputs import PictureInput
from mer_export.encoders.sounds import Sounds
from mer_export.errors import InputError, MissingTrack, UsageError

MODALITY = {"text": "text", "sound": "audio", "picture": "vision"}
"""The modality that an encoder of each kind makes features of."""


class Reading:
    """One utterance, whose sound is decoded once, however many encoders hear it.

    `sounds` keeps a recording for further utterances of it.
    """

    def __init__(self, utterance: Utterance, sounds: Sounds | None = None):
        self.utterance, self.sounds = utterance, sounds or Sounds()

    def raws(self, encoder: Encoder) -> Iterator[Any]:
        """The raw things for an encoder, in order; nothing where they are missing.

        Raises:
            InputError: a file is missing or damaged, or may not be read.
            NotAvailableError: the library that reads it is not installed.
        """
        return READERS[encoder.input.kind](self, encoder)

    def text(self, encoder: Encoder) -> Iterator[str]:
        """The sentence, unless it is empty."""
        if self.utterance.sentence and self.utterance.sentence.strip():
            yield self.utterance.sentence

    def sound(self, encoder: Encoder) -> Iterator[np.ndarray]:
        """A waveform (samples,) at the encoder's rate, unless there is none or nothing to hear in it."""
        sound = self._sound
        if sound is None or np.abs(sound.samples).max() * FULL_SCALE < 1:
            return
        half = sound.step / 2 if getattr(encoder.input, "half_step", False) else 0.0
        yield sound.mono(encoder.input.rate) + np.float32(half)

    def pictures(self, encoder: Encoder) -> Iterator[np.ndarray]:
        """Pictures (height, width, 3), or the faces in them; it names them, or has as many as the encoder wants."""
        shown = self._shown(encoder.input)
        return faces_in(shown, encoder.detector, encoder.input.faces) if encoder.input.faces else shown

    def _shown(self, wanted: PictureInput) -> Iterator[np.ndarray]:
        images = self.utterance.inputs.get(IMAGES)
        if images is not None:
            yield from (read_picture(p) for p in images.paths)  # type: ignore[attr-defined]
        elif self.utterance.recording is not None:
            said, count = self.utterance.recording, None if wanted.fps else wanted.frames
            try:
                yield from (f.picture for f in read_frames(said.path, said.start, said.end, count, wanted.fps))
            except MissingTrack:
                return

    @cached_property
    def _sound(self) -> Sound | None:
        said = self.utterance.recording
        try:
            return self.sounds.read(said) if said else None
        except MissingTrack:
            return None


READERS: dict[str, Callable[[Reading, Encoder], Iterator[Any]]] = {
    "text": Reading.text,
    "sound": Reading.sound,
    "picture": Reading.pictures,
}


def check_together(name: str, encoders: Sequence[Encoder]) -> None:
    """Raises UsageError for encoders that do not read what is said there, or whose features cannot lie side by side."""
    for encoder in encoders:
        wanted = MODALITY[encoder.input.kind]
        if name != wanted:
            raise UsageError(f"{encoder.bundle.root} reads {encoder.input.kind}: write {wanted}={encoder.bundle.root}")
    kinds = {_given(e): e.identity.name for e in encoders}
    if len(kinds) > 1:
        said = " and ".join(f"{encoder} gives {what}" for what, encoder in sorted(kinds.items(), reverse=True))
        raise UsageError(f"{name}: {said}, which cannot lie side by side: make both of one form")


def _given(encoder: Encoder) -> str:
    vectors = encoder.config.vectors
    return "a sequence" if is_sequence(encoder) else "one vector" if vectors == 1 else f"{vectors} vectors"


def is_sequence(encoder: Encoder) -> bool:
    """Whether an utterance has a sequence of its features: states, or one vector for each picture."""
    return encoder.sequence or encoder.input.kind == "picture"


def features_of(encoder: Encoder, found: Sequence[np.ndarray]) -> np.ndarray:
    """The features (steps, width) of an utterance, of those of its raw things; a vector is one step."""
    if encoder.input.kind == "picture":
        return np.stack(found)
    return np.atleast_2d(found[0])


def side_by_side(name: str, encoders: Sequence[Encoder], parts: Sequence[np.ndarray]) -> np.ndarray:
    """The features (steps, width) of several encoders as one array; raises InputError where they differ in steps."""
    counts = [len(p) for p in parts]
    if len(set(counts)) > 1:
        said = " and ".join(f"{n} of {e.identity.name}" for n, e in zip(counts, encoders, strict=True))
        raise InputError(f"{name} has {said} steps, which lie side by side where they are as many: change --every")
    return np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
