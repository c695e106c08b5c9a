"""The `protocol:` section of tab; needs no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from train.encoders import RANDOM, Settings, Source
from train.systems.tab.newbob import RAMP_FROM, THRESHOLD


class Frozen(BaseModel):
    """What of each encoder is not trained: nothing, its first layers (embeddings are trained), or `all` of it.

    The original leaves the `dropout` of frozen encoders on. Without it each item is encoded once, however many epochs
    there are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: Annotated[int, Field(ge=0)] | Literal["all"] = "all"
    audio: Annotated[int, Field(ge=0)] | Literal["all"] = "all"
    dropout: bool = True


class NewbobSettings(BaseModel):
    """The schedule on a metric, in percent, of a measured split, more being better.

    The original builds it and never steps it. With `restore` an epoch without gain goes back to the best weights, as
    its comments say; without, weights stay, as its code does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: str = "valid"
    metric: str = "unweighted_accuracy"
    restore: bool = False
    threshold: float = Field(THRESHOLD, ge=0)
    ramp_from: int = Field(RAMP_FROM, ge=1)


class TabSettings(Settings):
    """Losses and freezing. Encoders are loaded from files of their pre-training, or from a fine-tuned `lhs`."""

    semantics: Literal["single", "batch"] = "single"
    """`batch` also reports metrics as the original does, averaged over batches; answers are the same."""
    margin: float = Field(0.4, gt=0)
    penalty: float = Field(0.0, ge=0)
    """Weight of the attention penalty, 0.3 where the original uses it."""
    freeze: Frozen = Frozen()
    text_encoder: str | None = None
    """Checkpoint of RoBERTa: fairseq's, a folder as `transformers` stores it, or `random`."""
    audio_encoder: str | None = None
    """Checkpoint of Speech-BERT, or `random`."""
    lhs: str | None = None
    """A bundle of variant lhs, or the authors' state dict of one: both encoders after joint fine-tuning."""
    newbob: NewbobSettings | None = None

    @model_validator(mode="after")
    def _one_source(self) -> TabSettings:
        for name in ("text_encoder", "audio_encoder"):
            if self.lhs and getattr(self, name) not in (None, RANDOM):
                raise ValueError(f"lhs brings both encoders, {name} {getattr(self, name)} would not be read")
        return self

    @property
    def rate_rules(self) -> dict[str, NewbobSettings]:
        """Newbob where it is on."""
        return {} if self.newbob is None else {"protocol.newbob": self.newbob}

    def class_loss(self, kind: str) -> str:
        """A margin between scores, which are no log-probabilities."""
        return "a margin loss"

    @property
    def sources(self) -> tuple[Source, ...]:
        """Both encoders, from a fine-tuned `lhs` or from a file each; they have no token types, as in fairseq."""
        text = ("lhs", self.lhs) if self.lhs else ("text_encoder", self.text_encoder)
        audio = ("lhs", self.lhs) if self.lhs else ("audio_encoder", self.audio_encoder)
        return tuple(Source(s, v, m, own=("segments",)) for (s, v), m in ((text, "text"), (audio, "audio")))
