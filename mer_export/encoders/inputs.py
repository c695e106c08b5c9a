"""How text, sound and pictures become the arrays that an encoder reads. Everything here decides a feature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mer_export.bucket import Bucket
from mer_export.contract import BATCH, TensorSpec
from mer_export.data.media.tracks import MOST_PIXELS
from mer_export.data.samples import Sample
from mer_export.encoders.log_mel import LogMel
from mer_export.errors import InputError

TEXT_BUCKETS = (16, 32, 64, 128, 256, 512)
Positive = Annotated[int, Field(ge=1)]


class Room:
    """The memory for what an encoder reads of one utterance, which is there all at once.

    Of a video of two frames that lie hours apart any number of pictures can be asked.
    """

    MOST: ClassVar[int] = 1 << 32

    def __init__(self, name: str):
        """`name` says in an error of what it is taken."""
        self.name, self.left = name, self.MOST

    def take(self, nbytes: int) -> None:
        """Spends; raises InputError where less is left."""
        self.left -= nbytes
        if self.left < 0:
            raise InputError(
                f"{self.name}: what an encoder reads of it takes more than {self.MOST / (1 << 30):g} GiB: name parts "
                "of the recording (start and end), or make the encoder again with fewer --frames or --fps"
            )


class EncoderInput(BaseModel):
    """One kind of raw things. `buckets` are the lengths that exports are made for, the longest of which is the most."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    unit: ClassVar[str]
    steps: ClassVar[str]
    """The sequence dim along which an item is as long as it is; empty where items are of one size."""

    buckets: tuple[Positive, ...] = ()

    @field_validator("buckets")
    @classmethod
    def _ascending(cls, buckets: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(buckets)))

    @property
    def lengths(self) -> tuple[Bucket, ...]:
        """The buckets of the contract."""
        return tuple(Bucket({self.steps: n}) for n in self.buckets) if self.steps else (Bucket(),)


class TextInput(EncoderInput):
    """Token ids of a sentence with a special token on each side; what is longer than `longest` loses its end.

    `tokenizer` is the SHA-256 of all that decides an id.
    """

    unit: ClassVar[str] = "sentence"
    steps: ClassVar[str] = "tokens"

    kind: Literal["text"] = "text"
    vocabulary: Positive
    longest: int = Field(ge=3)
    tokenizer: str = Field("", pattern=r"^([0-9a-f]{64})?$")

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        return (
            TensorSpec(name="input_ids", dtype="int64", dims=(BATCH, "tokens"), modality="text", below=self.vocabulary),
            TensorSpec(name="tokens_len", dtype="int64", dims=(BATCH,), counts="tokens"),
        )

    @property
    def lengths(self) -> tuple[Bucket, ...]:
        usual = (*(n for n in TEXT_BUCKETS if n < self.longest), self.longest)
        return tuple(Bucket(tokens=n) for n in self.buckets or usual)

    def sample(self, name: str, ids: np.ndarray) -> Sample:
        """The ids (tokens,) int64 of a sentence."""
        if len(ids) > self.longest:
            ids = np.concatenate([ids[: self.longest - 1], ids[-1:]])
        return Sample(name, {"input_ids": ids}, tuple(map(str, range(len(ids)))))


class SoundInput(EncoderInput):
    """A waveform (samples,) float32 at `rate`, in rows of the `hop` samples that one state stands for.

    A `log_mel` always fills its `window`, as its network was trained; a `waveform` is as long as it is, and a state
    needs the `field` samples from its start on. What is longer than `window` seconds is read in windows one after the
    other. `normalise` brings each window of a waveform to mean 0 and deviation 1.
    """

    unit: ClassVar[str] = "clip"
    steps: ClassVar[str] = "frames"

    kind: Literal["sound"] = "sound"
    rate: Positive = 16000
    form: Literal["waveform", "log_mel"] = "waveform"
    window: float = Field(gt=0, allow_inf_nan=False)
    hop: Positive = 320
    field: Positive = 400
    normalise: bool = False
    mels: Positive = 80

    @model_validator(mode="after")
    def _whole_states(self) -> SoundInput:
        if self.form == "log_mel" and self.hop % LogMel.HOP:
            raise ValueError(f"hop is {self.hop}: a state of a log_mel is of whole frames of {LogMel.HOP} samples")
        if self.most < 1:
            raise ValueError(f"a window of {self.window:g} s at {self.rate} Hz has no state of {self.hop} samples")
        return self

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        width = self.hop if self.form == "waveform" else self.mels * self.hop // LogMel.HOP
        return (
            TensorSpec(name="sound", dtype="float32", dims=(BATCH, "frames", width), modality="audio"),
            TensorSpec(
                name="samples",
                dtype="int64",
                dims=(BATCH, 1),
                below=self.most * self.hop + 1,
                description="real samples of the window",
            ),
        )

    @property
    def most(self) -> int:
        """States of a full window."""
        return round(self.window * self.rate) // self.hop

    @property
    def fills(self) -> bool:
        """Whether every window is a whole one, silent where there is no more sound."""
        return self.form == "log_mel"

    @property
    def lengths(self) -> tuple[Bucket, ...]:
        if self.fills:
            return (Bucket(frames=self.most),)
        usual = sorted({math.ceil(self.most / part) for part in (4, 2, 1)})
        return tuple(Bucket(frames=n) for n in self.buckets or usual)

    def states(self, samples: int) -> int:
        """How many states a window of so many real samples has."""
        if self.form == "log_mel":
            return min(self.most, math.ceil(samples / self.hop))
        return (max(samples, self.field) - self.field) // self.hop + 1

    def samples(self, name: str, sound: np.ndarray) -> list[Sample]:
        """The windows of a waveform, in order; a rest too short for a state of its own belongs to the one before."""
        size = self.most * self.hop
        starts = range(0, len(sound), size)
        kept = [s for s in starts if s == 0 or len(sound) - s >= self.field]
        return [self._window(name, sound[s : s + size]) for s in kept]

    def _window(self, name: str, sound: np.ndarray) -> Sample:
        sound, real = np.asarray(sound, dtype=np.float32), len(sound)
        if self.form == "log_mel":
            rows = self._log_mel(np.pad(sound, (0, self.most * self.hop - real)))
        else:
            if self.normalise:
                wide = sound.astype(np.float64)
                sound = ((wide - wide.mean()) / np.sqrt(wide.var() + 1e-7)).astype(np.float32)
            count = self.most if self.fills else math.ceil(max(real, self.field) / self.hop)
            rows = np.pad(sound, (0, count * self.hop - real)).reshape(count, self.hop)
        heard = np.asarray([max(real, self.field) if self.form == "waveform" else real], dtype=np.int64)
        return Sample(name, {"sound": rows, "samples": heard}, tuple(map(str, range(len(rows)))))

    @cached_property
    def _mel(self) -> LogMel:
        return LogMel(self.rate, self.mels)

    def _log_mel(self, sound: np.ndarray) -> np.ndarray:
        """(states, mels x frames of a state): the frames of one state in one row."""
        frames = self._mel(sound)
        return np.ascontiguousarray(frames.reshape(self.most, -1))


class FaceCut(BaseModel):
    """The main face of each picture in place of the picture.

    `detector` is the SHA-256 of the files that find it, `size` the pixels of the square that is cut out, `margin` by
    which part of itself its side grows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    detector: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: Positive
    margin: float = Field(0.2, ge=0)


class PictureInput(EncoderInput):
    """A picture (height, width, 3) uint8 RGB as (3, `height`, `width`) float32.

    It is brought to the size `resize` (one number: its shorter side), cut to its middle where that is larger, scaled to
    0..1 and standardised by channel. Of a video `frames` pictures are read, spread evenly, or `fps` a second;
    `faces` are cut out of them first.
    """

    unit: ClassVar[str] = "picture"
    steps: ClassVar[str] = ""

    kind: Literal["picture"] = "picture"
    height: Positive
    width: Positive
    resize: tuple[Positive, ...] = ()
    resample: Literal["bicubic", "bilinear", "lanczos", "nearest"] = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    frames: Positive = 8
    fps: float | None = Field(None, gt=0)
    faces: FaceCut | None = None

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        dims = (BATCH, 3, self.height, self.width)
        return (TensorSpec(name="picture", dtype="float32", dims=dims, modality="vision"),)

    def sample(self, name: str, picture: np.ndarray) -> Sample:
        """The array of a picture; raises InputError for a thread of one, which would become huge."""
        from PIL import Image

        method: Any = getattr(Image.Resampling, self.resample.upper())
        found = Image.fromarray(picture)
        wide, high = self._size(found.size)
        if wide * high > MOST_PIXELS:
            said = "{} x {}".format(*found.size)
            raise InputError(f"{name}: a picture of {said} would become {wide} x {high} pixels: cut out what it shows")
        found = found.resize((wide, high), method)
        left, top = (wide - self.width) // 2, (high - self.height) // 2
        found = found.crop((left, top, left + self.width, top + self.height))
        values = (np.asarray(found, dtype=np.float32) / np.float32(255) - _row(self.mean)) / _row(self.std)
        return Sample(name, {"picture": np.ascontiguousarray(values.transpose(2, 0, 1))}, (name,))

    @property
    def scaled(self) -> tuple[int, ...]:
        """What pictures are resized to: the shorter side, or height and width."""
        return self.resize or (self.height, self.width)

    def _size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) after resizing."""
        if len(self.resize) != 1:
            high, wide = self.scaled
            return wide, high
        shorter = min(size)
        wide, high = (int(self.resize[0] * n / shorter) for n in size)
        return wide, high


def _row(values: Sequence[float]) -> np.ndarray:
    return np.asarray(values, dtype=np.float32)
