"""An encoder that was opened: a folder that turns raw things into features, and how its parts are put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mer_export import __version__, registry
from mer_export.bundle import Bundle, Manifest, holds
from mer_export.data.samples import Sample
from mer_export.data.spec import Extractor
from mer_export.data.tokens.speech_dictionary import SpeechDictionary
from mer_export.data.tokens.text_tokenizer import TextTokenizer
from mer_export.encoders.config import EncoderConfig
from mer_export.encoders.inputs import SoundInput, TextInput
from mer_export.encoders.mtcnn.detector import FaceDetector
from mer_export.errors import InputError, UsageError
from mer_export.registry import System

TOKENIZER = "tokenizer"
"""Folder of a text encoder's tokenizer, and of the dictionary of one that gives indices of words."""
DICTIONARY = f"{TOKENIZER}/dict.txt"
FACES = "faces"
"""Folder of the face detector of an encoder of faces."""
ENDS = {"first": 0, "last": -1}
"""The window whose vector is that of a sound, of those that pool one state."""
LEAST = 1e-12
"""A vector shorter than this has no direction to keep."""
Read = TypeVar("Read")


@dataclass(frozen=True)
class Encoder:
    """A bundle without labels, and what its configuration says of raw things."""

    bundle: Bundle
    config: EncoderConfig

    @classmethod
    def open(cls, folder: Path | str, trust: bool = False) -> Encoder:
        """Opens a folder that `mer encoder` wrote.

        Raises:
            BundleError: no bundle, or a damaged one.
            UsageError: a bundle of something else.
        """
        return cls.of(Bundle.open(folder, trust))

    @classmethod
    def of(cls, bundle: Bundle) -> Encoder:
        """The encoder that an opened bundle is; raises UsageError where it is something else."""
        manifest = bundle.manifest
        config = registry.get(manifest.system).parse(manifest.config)
        if not isinstance(config, EncoderConfig):
            raise UsageError(f"{bundle.root} is a model ({manifest.system}) and no encoder: make one with mer encoder")
        return cls(bundle, config)

    @property
    def input(self) -> Any:
        """What it reads: `kind` is text, sound or picture."""
        return self.config.input

    @property
    def identity(self) -> Extractor:
        """What data and bundles remember of it: its name, and a SHA-256 of all that decides a feature."""
        return Extractor(name=self.config.source.name, sha256=self.config.identity)

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer of a text encoder, its files verified."""
        return self._read_from(TOKENIZER, TextTokenizer.load)

    @cached_property
    def dictionary(self) -> SpeechDictionary:
        """The dictionary of a speech tokenizer, verified; raises UsageError where an encoder has none."""
        if DICTIONARY not in self.bundle.manifest.files:
            raise UsageError(
                f"{self.bundle.root} is no speech tokenizer: make one with mer encoder CHECKPOINT --dictionary dict.txt"
            )
        return SpeechDictionary.load(self.bundle.path(DICTIONARY))

    @cached_property
    def detector(self) -> FaceDetector:
        """What finds the faces that an encoder of them reads, its files verified."""
        return self._read_from(FACES, FaceDetector.load)

    def _read_from(self, folder: str, load: Callable[[Path], Read]) -> Read:
        with holds.reading(self.bundle.root):
            return load(self.bundle.verified_folder(folder))

    def warm_up(self) -> None:
        """Reads now what the first raw thing would wait for; from then on changes of the folder do not matter to it."""
        if isinstance(self.input, TextInput):
            _ = self.tokenizer
        elif getattr(self.input, "faces", None):
            _ = self.detector

    def samples(self, raw: Any, name: str = "0") -> list[Sample]:
        """One raw thing as what the network reads: one sample, or one for each window of a long sound.

        Args:
            raw: a sentence, a waveform (samples,) float32 in -1..1 at `input.rate`, or a picture (height, width, 3)
                uint8 RGB.
            name: for messages.

        Raises:
            InputError: nothing to read, or of another kind.
        """
        return self.as_one(self._read(raw, name))

    def as_one(self, samples: Sequence[Sample]) -> list[Sample]:
        """Samples whose unit is the whole, where the encoder pools."""
        return [s if self.sequence else replace(s, units=(s.id,)) for s in samples]

    def _read(self, raw: Any, name: str) -> list[Sample]:
        if isinstance(self.input, TextInput):
            if not isinstance(raw, str):
                raise InputError(f"{name}: a text encoder reads sentences, not {type(raw).__name__}")
            return [self.input.sample(name, self.tokenizer.encode(raw))]
        if isinstance(self.input, SoundInput):
            sound = np.asarray(raw)
            if sound.ndim != 1 or not sound.size or sound.dtype.kind != "f" or not np.isfinite(sound).all():
                raise InputError(f"{name}: a sound encoder reads finite samples (samples,), not {sound.shape}")
            return self.input.samples(name, sound)
        picture = np.asarray(raw)
        if picture.ndim != 3 or picture.shape[-1] != 3 or picture.dtype != np.uint8 or not picture.size:
            raise InputError(f"{name}: a picture encoder reads (height, width, 3) uint8, not {picture.shape}")
        return [self.input.sample(name, picture)]

    def join(self, rows: Sequence[np.ndarray], samples: Sequence[Sample]) -> np.ndarray:
        """The features of one raw thing, of the rows that its samples got, float32.

        Returns:
            (width,), (vectors, width) where there are several, or (steps, width).
        """
        weights = [self._states(s) for s in samples]
        if not self.sequence:
            vector = self._of_windows([r[0] for r in rows], weights).astype(np.float32)
            return vector if self.config.vectors == 1 else vector.reshape(self.config.vectors, -1)
        states = np.concatenate([r[:n] for r, n in zip(rows, weights, strict=True)])
        return states if self.config.every == 1 else averaged(states, self.config.every)

    def _of_windows(self, vectors: Sequence[np.ndarray], weights: Sequence[int]) -> np.ndarray:
        """The vector of all windows: that of the first or last one where that state is the vector, else their mean."""
        if self.config.pooling in ENDS:
            return vectors[ENDS[self.config.pooling]]
        if len(vectors) == 1:
            return vectors[0]
        mean = np.average(vectors, axis=0, weights=weights)
        return mean / max(np.linalg.norm(mean), LEAST) if self.config.unit else mean

    @property
    def sequence(self) -> bool:
        """Whether it gives a sequence of states."""
        return self.config.pooling == "none" and bool(self.input.steps)

    def _states(self, sample: Sample) -> int:
        if isinstance(self.input, SoundInput):
            return self.input.states(int(sample.inputs["samples"][0]))
        return len(sample.inputs["input_ids"]) if isinstance(self.input, TextInput) else 1


def manifest_of(system: System, config: EncoderConfig) -> Manifest:
    """What the bundle of a new encoder says."""
    return Manifest(
        system=system.name,
        variant=system.variant_of(config),
        config=config.model_dump(mode="json"),
        task=system.task(config),
        contract=system.contract(config),
        provenance={"origin": "encoder", "mer": __version__, **config.source.model_dump()},
    )


def averaged(states: np.ndarray, every: int) -> np.ndarray:
    """Means of `every` states (steps, width), the last one of what remains."""
    starts = np.arange(0, len(states), every)
    counts = np.diff([*starts, len(states)])[:, None]
    return (np.add.reduceat(states, starts, axis=0) / counts).astype(np.float32)
