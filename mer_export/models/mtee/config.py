"""Configuration and tensor contract of mtee; needs no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mer_export.contract import Contract, Dim, Fill, Lengths, TensorSpec
from mer_export.task import Task

Modality = Literal["text", "audio", "vision"]
MODALITIES: tuple[str, ...] = ("text", "audio", "vision")
"""The order of every list with one entry per modality; the order of letters in a checkpoint's name means nothing."""
MODELS = ("eea", "rnn_ef", "rnn_lf", "rnn_eflf", "mult", "transformer")
EMOTIONS = "emotions"
"""Shared input of eea (one word vector per emotion) and the sequence dim that counts its rows."""
STEPS = "steps"
LONGEST = 2048
MOST_EMOTIONS = 1024
KERNELS: dict[str, int] = {"text": 3, "audio": 5, "vision": 3}
"""Widths of mult's convolutions over time, which nothing pads."""

SENTIMENT = Task(
    kind="regression",
    output="logits",
    scale="mtee",
    limits=(-3.0, 3.0),
    edges=(0.0,),
    labels=("not positive", "positive"),
)


class MultConfig(BaseModel):
    """MulT (section 3.3). Defaults are the published IEMOCAP network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(40, ge=4)
    heads: int = Field(10, ge=1)
    layers: int = Field(4, ge=1)
    masked: bool = False
    """Queries do not see later keys (original: attn_mask)."""
    streams: tuple[Modality, ...] = ("text", "audio", "vision")
    """Streams that are enriched by the other two (original: lonly, aonly, vonly): all, or exactly one."""
    attention_dropout: dict[Modality, float] = {"text": 0.25, "audio": 0.0, "vision": 0.0}
    """By the modality that is attended to."""
    relu_dropout: float = Field(0.1, ge=0, lt=1)
    residual_dropout: float = Field(0.1, ge=0, lt=1)
    output_dropout: float = Field(0.1, ge=0, lt=1)
    embedding_dropout: float = Field(0.3, ge=0, lt=1)

    @model_validator(mode="after")
    def _consistent(self) -> MultConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of {self.heads} heads")
        if len(set(self.streams)) != len(self.streams) or len(self.streams) not in (1, 3):
            raise ValueError(f"streams must be all three modalities or one, they are {self.streams}")
        if set(self.attention_dropout) != set(MODALITIES):
            raise ValueError(f"attention_dropout needs a rate for each of {MODALITIES}")
        return self


class TransformerConfig(BaseModel):
    """The early-fusion transformer (section 3.4)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(160, ge=4, multiple_of=2)
    heads: int = Field(8, ge=1)
    layers: int = Field(4, ge=1)
    feed_forward: int = Field(2048, ge=1)
    head_hidden: int = Field(80, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    attention: Literal["batch", "time"] = "batch"
    """`batch` is the original, which attends to the other samples of its batch; `time` is what was meant."""

    @model_validator(mode="after")
    def _consistent(self) -> TransformerConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of {self.heads} heads")
        return self


class MteeConfig(BaseModel):
    """Section 3. Defaults are the published CMU-MOSEI network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Literal["eea", "rnn", "mult", "transformer"] = "eea"
    fusion: Literal["ef", "lf", "eflf"] = "ef"
    """Early, late or both; read by rnn only."""
    task: Literal["multilabel", "classification", "regression"] = "multilabel"
    labels: tuple[str, ...] = Field(("anger", "disgust", "fear", "happy", "sad", "surprise"), min_length=1)
    thresholds: tuple[float, ...] = ()
    """Probability above which an emotion is present, one for each label; empty means 0.5 for all."""
    modalities: tuple[Modality, ...] = Field(("text", "audio", "vision"), min_length=1)
    """Those that the network reads; the original offers the choice for eea alone, and ignores it elsewhere."""
    text_dim: int = Field(300, ge=1)
    audio_dim: int = Field(74, ge=1)
    vision_dim: int = Field(35, ge=1)
    aligned: bool = True
    """All modalities have the same number of steps."""
    cell: Literal["lstm", "gru"] = "lstm"
    bidirectional: bool = True
    layers: int = Field(2, ge=1)
    dropout: float = Field(0.15, ge=0, lt=1)
    hidden_sizes: tuple[int, int, int] = (300, 200, 100)
    """Of text, audio, vision (eea, rnn with lf); in eea the first is the width of the word vectors."""
    hidden_size: int = Field(300, ge=1)
    """Of the fused features (rnn with ef)."""
    mult: MultConfig = MultConfig()
    transformer: TransformerConfig = TransformerConfig()
    standardise: tuple[Modality, ...] = ()
    """Inputs that the network itself brings to zero mean and unit variance with training-set statistics."""
    fill: int | dict[Modality, int] | None = None
    """Steps to fill shorter sequences to with zeros that are read as data, as in the authors' files."""
    fill_side: Literal["left", "right"] = "left"
    buckets: tuple[int | dict[Modality, int], ...] = Field((20,), min_length=1)
    """Sequence lengths that exports are fixed to by default."""
    emotion_slots: int = Field(16, ge=1, le=MOST_EMOTIONS)
    """Rows of the emotion matrix in exports: so many emotions can be scored without a new export."""
    unseen: int | None = Field(None, ge=0)
    """Index of a label that an imported checkpoint of rnn or mult does not know: its row of the head is zero."""

    @model_validator(mode="after")
    def _consistent(self) -> MteeConfig:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels repeat: {self.labels}")
        if len(set(self.modalities)) != len(self.modalities):
            raise ValueError(f"modalities repeat: {self.modalities}")
        if absent := [m for m in self.standardise if m not in self.modalities]:
            raise ValueError(f"standardise names {absent}, the modalities are {list(self.modalities)}")
        if self.model == "mult" and not self.streams:
            raise ValueError(f"mult.streams are {self.mult.streams}, the modalities are {list(self.modalities)}")
        if self.fused and not self.aligned:
            raise ValueError(f"{self.variant} concatenates the modalities of each step: it needs aligned data")
        if self.thresholds and (len(self.thresholds) != len(self.labels) or self.task != "multilabel"):
            raise ValueError(f"thresholds need task multilabel and one value for each of {len(self.labels)} labels")
        if not all(0 < t < 1 for t in self.thresholds):
            raise ValueError(f"thresholds are probabilities between 0 and 1, not {self.thresholds}")
        if self.task == "regression" and (len(self.labels) != 1 or self.model == "eea"):
            raise ValueError("regression has one label and no emotion embeddings: choose rnn, mult or transformer")
        if self.task == "classification" and len(self.labels) < 2:
            raise ValueError("classification needs at least two labels")
        if self.unseen is not None and (self.unseen >= len(self.labels) or self.model not in ("rnn", "mult")):
            raise ValueError(f"unseen is the index of a label of rnn or mult, not {self.unseen}")
        if self.aligned and any(isinstance(v, dict) for v in (*self.buckets, self.fill)):
            raise ValueError("aligned data have one length: buckets and fill are numbers")
        for lengths in (*self.buckets, *([self.fill] if self.fill else [])):
            self.lengths_of(lengths)
        return self

    @property
    def variant(self) -> str:
        """The network by name, one of `MODELS`."""
        return f"rnn_{self.fusion}" if self.model == "rnn" else self.model

    @property
    def fused(self) -> bool:
        """Whether the network concatenates modalities step by step."""
        return self.variant in ("rnn_ef", "rnn_eflf", "transformer")

    @property
    def used(self) -> tuple[str, ...]:
        """Modalities that the network reads, in the fixed order."""
        return tuple(m for m in MODALITIES if m in self.modalities)

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams of mult that the network has, in the fixed order."""
        return tuple(m for m in self.used if m in self.mult.streams)

    @property
    def fused_width(self) -> int:
        """Width of a step's features side by side."""
        return sum(self.dims[m] for m in self.used)

    @property
    def dims(self) -> dict[str, int]:
        """Feature width by modality."""
        return {"text": self.text_dim, "audio": self.audio_dim, "vision": self.vision_dim}

    @property
    def hidden(self) -> dict[str, int]:
        """Recurrent width by modality."""
        return dict(zip(MODALITIES, self.hidden_sizes, strict=True))

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    def shrinkage(self, modality: str) -> int:
        """Steps that mult's convolution takes off a sequence; 0 where it is skipped, or there is none."""
        return KERNELS[modality] - 1 if self.model == "mult" and self.dims[modality] != self.mult.width else 0

    def lengths_of(self, value: int | dict[Modality, int]) -> Lengths:
        """A bucket by sequence dim; raises ValueError where a modality has no length or one that is not possible."""
        given = {str(m): value if isinstance(value, int) else value.get(m, 0) for m in self.modalities}
        wrong = [m for m in self.used if not self.shrinkage(m) < given[m] <= LONGEST]
        if wrong:
            raise ValueError(f"{wrong[0]} length must be {self.shrinkage(wrong[0]) + 1}..{LONGEST}, not {value}")
        return {self.step_dim(m): given[m] for m in self.used}

    def step_dim(self, modality: str) -> str:
        """Name of the time dim of a modality."""
        return STEPS if self.aligned else f"{modality}_len"


def contract(config: MteeConfig) -> Contract:
    """One utterance per item: features of each modality, their lengths, for eea the emotion matrix; logits."""
    embedded = config.model == "eea"
    classes: Dim = EMOTIONS if embedded else len(config.labels)
    inputs = [
        TensorSpec(name=m, dtype="float32", dims=("batch", config.step_dim(m), config.dims[m]), modality=m)
        for m in config.used
    ]
    if config.fused and config.variant != "rnn_eflf":
        inputs.append(TensorSpec(name="lengths", dtype="int64", dims=("batch",), counts=STEPS))
    else:
        inputs += [
            TensorSpec(name=f"{m}_lengths", dtype="int64", dims=("batch",), counts=config.step_dim(m), modality=m)
            for m in config.used
        ]
    slots: Lengths = {}
    if embedded:
        inputs.append(
            TensorSpec(
                name=EMOTIONS,
                dtype="float32",
                dims=(EMOTIONS, config.hidden_sizes[0]),
                description="word vector of each emotion, rows past their number are zero",
            )
        )
        slots = {EMOTIONS: max(config.emotion_slots, len(config.labels))}
    dims = {config.step_dim(m): LONGEST for m in config.used}
    least: Lengths = {}
    for m in config.used:
        least[config.step_dim(m)] = max(least.get(config.step_dim(m), 1), config.shrinkage(m) + 1)
    fill = config.lengths_of(config.fill) if config.fill else {}
    return Contract(
        inputs=tuple(inputs),
        outputs=(TensorSpec(name="logits", dtype="float32", dims=("batch", classes)),),
        buckets=tuple(config.lengths_of(b) | slots for b in config.buckets),
        longest=dims | ({EMOTIONS: MOST_EMOTIONS} if embedded else {}),
        shortest={d: n for d, n in least.items() if n > 1},
        fill={d: Fill(length=n, side=config.fill_side) for d, n in fill.items()},
    )


def task(config: MteeConfig) -> Task:
    if config.task == "regression":
        return SENTIMENT
    return Task(kind=config.task, output="logits", labels=config.labels, thresholds=config.thresholds)
