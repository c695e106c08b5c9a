"""Configuration and tensor contract of facialmmt; needs no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mer_export.contract import BATCH, Contract, Lengths, TensorSpec
from mer_export.layers.bert.config import BertConfig, roberta
from mer_export.models.facialmmt.swin_config import SwinConfig
from mer_export.models.utterance import check_buckets
from mer_export.task import Task

MELD = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
Variant = Literal["fusion", "end_to_end", "vision", "face"]
CROSS = ("heads", "cross_heads", "cross_vision_heads")
HEADS: dict[str, tuple[str, ...]] = {"fusion": CROSS, "end_to_end": CROSS, "vision": ("heads",), "face": ()}
"""The settings of `width`'s heads that each variant uses."""
FRAMES: dict[str, tuple[Literal["audio", "vision"], ...]] = {
    "fusion": ("audio", "vision"),
    "end_to_end": ("audio", "vision"),
    "vision": ("vision",),
    "face": (),
}
"""The modalities whose features each variant reads."""


class FacialMmtConfig(BaseModel):
    """FacialMMT, sections 3 and 4. Defaults are the published network with RoBERTa-large.

    `fusion` takes face features and what the expression model says of each face, `end_to_end` the face crops too,
    `vision` is the unimodal model, `face` the expression model alone. `audio_len`, `vision_len` and `utterance_len`
    are part of the fusion network: its cross-modal attention has no padding mask, so inputs of any bucket are padded to
    them. The public code takes them from the data, and does not say how long those are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    variant: Variant = "fusion"
    labels: tuple[str, ...] = Field(MELD, min_length=2)
    encoder: Literal["roberta", "bert"] = "roberta"
    """How a dialogue is packed into tokens, and the prefix of the text encoder's names in a checkpoint."""
    bert: BertConfig = roberta(hidden=1024, layers=24, heads=16, feed_forward=4096, padding_token=0)
    """The text encoder. Dialogues are padded with id 0, whatever the vocabulary's own padding token is."""
    swin: SwinConfig | None = None
    """The expression model, with `end_to_end` and `face` only."""
    expressions: int = Field(7, ge=2)
    """Classes of the expression model."""
    audio_dim: int = Field(768, ge=1)
    vision_dim: int = Field(512, ge=1)
    width: int = Field(768, ge=4)
    heads: int = Field(12, ge=1)
    feed_forward: int = Field(3072, ge=1)
    audio_layers: int = Field(5, ge=1)
    vision_layers: int = Field(2, ge=1)
    cross_heads: int = Field(12, ge=1)
    cross_layers: int = Field(2, ge=1)
    """Of text with audio."""
    cross_vision_heads: int = Field(12, ge=1)
    cross_vision_layers: int = Field(2, ge=1)
    """Of text and audio with vision."""
    dropout: float = Field(0.1, ge=0, lt=1)
    attention_dropout: float = Field(0.1, ge=0, lt=1)
    cross_attention_dropout: float = Field(0.1, ge=0, lt=1)
    cross_vision_attention_dropout: float = Field(0.1, ge=0, lt=1)
    utterance_len: int = Field(38, ge=1)
    """Tokens of the utterance itself that are fused, out of those of the dialogue."""
    audio_len: int = Field(512, ge=1)
    vision_len: int = Field(128, ge=1)
    audio_positions: int | None = Field(None, ge=1)
    vision_positions: int | None = Field(None, ge=1)
    """Rows of the tables of positions, where they have more than the lengths above."""
    threshold: float = Field(0.2, ge=0, lt=1)
    """A frame is kept where the sum of squares of its expression distribution is above this."""
    temperature: float = Field(1.0, gt=0)
    standardise: tuple[Literal["audio", "vision"], ...] = ()
    """Inputs that the network itself brings to zero mean and unit variance with training-set statistics."""
    buckets: tuple[Lengths, ...] | None = Field(None, min_length=1)
    """None makes buckets of 128, 256 and 512 dialogue tokens, audio and vision at the lengths above."""

    @model_validator(mode="after")
    def _consistent(self) -> FacialMmtConfig:
        for name in HEADS[self.variant]:
            if self.width % getattr(self, name):
                raise ValueError(f"width {self.width} is not a multiple of {name} {getattr(self, name)}")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels must differ from one another, they are {self.labels}")
        if (self.swin is not None) != (self.variant in ("end_to_end", "face")):
            raise ValueError(f"swin goes with variants end_to_end and face, the variant is {self.variant}")
        for m in FRAMES[self.variant]:
            if self.positions(m) < getattr(self, f"{m}_len"):
                raise ValueError(
                    f"{m}_positions {self.positions(m)} are fewer than {m}_len {getattr(self, f'{m}_len')}"
                )
        for m in self.standardise:
            if m not in FRAMES[self.variant]:
                raise ValueError(f"standardise {m} is for a model with {m}, the variant is {self.variant}")
        check_buckets(self.lengths, self.longest)
        return self

    @property
    def pretrained(self) -> tuple[str, ...]:
        """The encoders that training starts from pre-trained weights, by their section."""
        text = ("bert",) if self.variant in ("fusion", "end_to_end") else ()
        return text if self.swin is None else (*text, "swin")

    def positions(self, modality: str) -> int:
        """Rows of the table of positions of audio or vision."""
        return getattr(self, f"{modality}_positions") or getattr(self, f"{modality}_len")

    @property
    def longest(self) -> Lengths:
        """The longest dialogue in tokens, and utterance in frames, that the network takes."""
        if self.variant == "face":
            return {}
        if self.variant == "vision":
            return {"vision_len": self.vision_len}
        return {"text_len": self.bert.longest, "audio_len": self.audio_len, "vision_len": self.vision_len}

    @property
    def lengths(self) -> tuple[Lengths, ...]:
        """The buckets; shorter texts are exact and save work, shorter frames are exact."""
        if self.buckets is not None:
            return self.buckets
        texts = dict.fromkeys(min(n, self.bert.longest) for n in (128, 256, 512))
        return tuple(self.longest | {"text_len": n} for n in texts) if "text_len" in self.longest else (self.longest,)


def contract(config: FacialMmtConfig) -> Contract:
    """One utterance per item, its text the packed dialogue. A modality that is missing has length 0."""
    return Contract(
        inputs=INPUTS[config.variant](config),
        outputs=(TensorSpec(name="logits", dtype="float32", dims=(BATCH, len(config.labels))),),
        buckets=config.lengths,
        longest=config.longest,
        whole=("text_len",) if "text_len" in config.longest else (),
    )


def task(config: FacialMmtConfig) -> Task:
    """Of an utterance without a face the original's vision model scores NaN, whose arg-max is the first class."""
    return Task(
        output="logits", labels=config.labels, unanswered=config.labels[0] if config.variant == "vision" else None
    )


def text_inputs(config: FacialMmtConfig) -> tuple[TensorSpec, ...]:
    """The dialogue, and where the utterance stands in it."""
    return (
        TensorSpec(
            name="input_ids",
            dtype="int64",
            dims=(BATCH, "text_len"),
            modality="text",
            below=config.bert.vocabulary,
            description="word pieces of the whole dialogue with special tokens",
        ),
        TensorSpec(name="text_lengths", dtype="int64", dims=(BATCH,), counts="text_len"),
    )


def _span(config: FacialMmtConfig) -> TensorSpec:
    return TensorSpec(
        name="text_span",
        dtype="int64",
        dims=(BATCH, 2),
        modality="text",
        below=config.bert.longest,
        description="place of the utterance's first token in the dialogue, and how many it has",
    )


def _frames(modality: str, width: int) -> tuple[TensorSpec, ...]:
    length = f"{modality}_len"
    return (
        TensorSpec(name=modality, dtype="float32", dims=(BATCH, length, width), modality=modality),
        TensorSpec(name=f"{modality}_lengths", dtype="int64", dims=(BATCH,), counts=length),
    )


def expression_spec(config: FacialMmtConfig) -> TensorSpec:
    """What the expression model says of each face."""
    return TensorSpec(
        name="expression_logits",
        dtype="float32",
        dims=(BATCH, "vision_len", config.expressions),
        modality="vision",
        description="zeros: nothing is known about expressions, all faces count",
    )


def image_spec(config: FacialMmtConfig) -> TensorSpec:
    """The face crop of each frame."""
    assert config.swin is not None
    size = config.swin.image_size
    return TensorSpec(
        name="images",
        dtype="float32",
        dims=(BATCH, "vision_len", config.swin.channels, size, size),
        modality="vision",
        description="face crops, channels blue, green, red, values -1..1",
    )


def _features(config: FacialMmtConfig, faces: TensorSpec) -> tuple[TensorSpec, ...]:
    noise = TensorSpec(
        name="gumbel_noise",
        dtype="float32",
        dims=(BATCH, "vision_len", config.expressions),
        description="added to the expression logits; zeros, the default, give one answer each time",
    )
    frames = (*_frames("audio", config.audio_dim), *_frames("vision", config.vision_dim))
    return (*text_inputs(config), _span(config), *frames, faces, noise)


def _face(config: FacialMmtConfig) -> tuple[TensorSpec, ...]:
    spec = image_spec(config)
    return (spec.model_copy(update={"dims": (BATCH, *spec.dims[2:])}),)


INPUTS = {
    "fusion": lambda config: _features(config, expression_spec(config)),
    "end_to_end": lambda config: _features(config, image_spec(config)),
    "vision": lambda config: _frames("vision", config.vision_dim),
    "face": _face,
}
