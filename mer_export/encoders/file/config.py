"""What the encoder of a file says of itself, and the recipe that a user writes beside the file."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mer_export.data.samples import Sample
from mer_export.encoders.config import EncoderConfig, Pooling, Provenance
from mer_export.encoders.inputs import PictureInput, SoundInput, TextInput

Form = Literal["onnx", "torchscript"]
FORMS: tuple[Form, ...] = get_args(Form)
Role = Literal["values", "mask", "lengths", "zeros"]
"""What an input of the file is given: the raw thing itself, 1 at its real places and 0 at padding, how many places are
real, or zeros."""
ROLES: dict[str, Role] = {"attention_mask": "mask", "token_type_ids": "zeros"}
"""Inputs whose names say what they are; of any other name there is one, the raw thing."""


class FileSound(SoundInput):
    """Sound as `SoundInput`, times `scale` (32768 where a network was trained on 16-bit integers).

    A waveform is (batch, samples), with a `channel` (batch, 1, samples); a `log_mel` (batch, mels, frames). Without a
    mask or lengths a file cannot tell padding from sound: it always gets its whole window (`full`).
    """

    full: bool = True
    scale: float = Field(1.0, gt=0)
    channel: bool = False

    @property
    def fills(self) -> bool:
        return self.full or super().fills

    def samples(self, name: str, sound: np.ndarray) -> list[Sample]:
        return super().samples(name, sound if self.scale == 1 else np.asarray(sound, np.float32) * self.scale)


class FilePicture(PictureInput):
    """A picture as `PictureInput`, in the order of dims and colours that the file takes."""

    layout: Literal["nchw", "nhwc"] = "nchw"
    colours: Literal["rgb", "bgr"] = "rgb"


FileInput = Annotated[TextInput | FileSound | FilePicture, Field(discriminator="kind")]


class FileConfig(EncoderConfig):
    """`takes` says what each input of the file is given, in the file's order; `output` is the one that is read.

    The file `pools` where it gives a vector itself; `pooling` says then how those of several windows become one.
    `width_first` is where its states stand side by side: (batch, width, steps).
    """

    form: Form
    input: FileInput  # type: ignore[assignment]
    takes: dict[str, Role] = Field(min_length=1)
    output: str
    pools: bool = False
    width_first: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> FileConfig:
        roles = list(self.takes.values())
        if roles.count("values") != 1:
            raise ValueError(f"takes says {self.takes}: one input of the file has to be given values")
        told = {"mask", "lengths"} & {*roles}
        if isinstance(self.input, FilePicture) and len(roles) > 1:
            raise ValueError(f"takes says {self.takes}: a picture is an input alone")
        if isinstance(self.input, FileSound) and self.input.full == bool(told) and self.input.form == "waveform":
            raise ValueError(f"input.full is {self.input.full}, and the file is told {sorted(told) or 'no lengths'}")
        if isinstance(self.input, TextInput) and not told and len(self.input.lengths) > 1:
            raise ValueError("a file that is told neither a mask nor lengths of a text reads padding as words")
        if self.pools and self.pooling != "mean":
            raise ValueError(f"the file pools itself, so pooling is {self.pooling} of nothing: leave it out")
        return self


class Recipe(BaseModel):
    """What a user says of a file. `batch` is how many items it takes at once, where that is baked into it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: dict[str, Any]
    takes: dict[str, Role] = {}
    output: str | None = None
    pooling: Pooling | None = None
    width_first: bool = False
    unit: bool = False
    every: int = Field(1, ge=1)
    batch: int | None = Field(None, ge=1)
    tokenizer: str | None = None
    """Folder of a text encoder's tokenizer, relative to the recipe."""
    source: Provenance
