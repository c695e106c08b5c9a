"""What the systems that read one utterance share: inputs, output, task. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mer_export.contract import BATCH, Lengths, TensorSpec
from mer_export.errors import UnsupportedError
from mer_export.layers.bert.config import BertConfig
from mer_export.task import Task

Modality = Literal["text", "audio", "vision"]

MODALITIES: tuple[Modality, ...] = ("text", "audio", "vision")
LETTERS = {"text": "l", "audio": "a", "vision": "v"}
"""Modalities in parameter names of MulT and TFR-Net."""

SCALES: dict[str, Task] = {
    "mosi": Task(
        kind="regression",
        output="score",
        scale="mosi",
        limits=(-3.0, 3.0),
        labels=(
            "strongly negative",
            "negative",
            "weakly negative",
            "neutral",
            "weakly positive",
            "positive",
            "strongly positive",
        ),
    ),
    "sims": Task(
        kind="regression",
        output="score",
        scale="sims",
        limits=(-1.0, 1.0),
        edges=(-0.7, -0.1, 0.1, 0.7),
        labels=("negative", "weakly negative", "neutral", "weakly positive", "positive"),
    ),
}


def others(modality: str, among: Iterable[str] = MODALITIES) -> tuple[str, ...]:
    """The modalities beside one."""
    return tuple(m for m in among if m != modality)


ENCODERS = {
    "text": "bert-base-uncased, of SIMS bert-base-chinese, inside the network",
    "audio": "COVAREP (MOSI, MOSEI); LibROSA: pitch, MFCC, constant-Q chroma, 33 wide (SIMS)",
    "vision": "FACET (MOSI, MOSEI); MTCNN and OpenFace 2.0, 709 wide (SIMS)",
}
"""What the unaligned files of MMSA (thuiar/MMSA) were made with; of SIMS: Yu et al., ACL 2020, section on features."""


class UtteranceConfig(BaseModel):
    """What emt, tfr_net and mult are told alike: labels, the modalities that there are, and their widths."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: tuple[str, ...] = ()
    """Class names of a classification head; empty for the published regression of sentiment."""
    scale: Literal["mosi", "sims"] = "mosi"
    """Range, derived classes and metrics of the regression."""
    modalities: tuple[Modality, ...] = Field(MODALITIES, min_length=1)
    """Those that the network reads; the others have no inputs, widths or lengths."""
    bert: BertConfig | None = BertConfig()
    """None where text is given as vectors per token, or not at all."""
    text_dim: int = Field(768, ge=1)
    """Width of the token vectors where there is no `bert`."""
    audio_dim: int = Field(5, ge=1)
    vision_dim: int = Field(20, ge=1)
    standardise: tuple[Modality, ...] = ()
    """Inputs that the network itself brings to zero mean and unit variance with training-set statistics."""

    @model_validator(mode="before")
    @classmethod
    def _no_encoder_without_text(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "text" in values.get("modalities", MODALITIES):
            return values
        if values.get("bert") is not None:
            raise ValueError(f"bert reads text, the modalities are {list(values['modalities'])}: leave bert out")
        return {**values, "bert": None}

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        if len(set(self.labels)) != len(self.labels) or len(self.labels) == 1:
            raise ValueError(f"labels must be none or two and more different ones, they are {self.labels}")
        if len(set(self.modalities)) != len(self.modalities):
            raise ValueError(f"modalities repeat: {self.modalities}")
        if absent := [m for m in self.standardise if m not in self.modalities]:
            raise ValueError(f"standardise names {absent}, the modalities are {list(self.modalities)}")
        if self.bert is not None and "text" in self.standardise:
            raise ValueError("standardise text is for token vectors, with bert text is token ids")
        return self

    @property
    def used(self) -> tuple[str, ...]:
        """The modalities that the network reads, in the fixed order."""
        return tuple(m for m in MODALITIES if m in self.modalities)

    @property
    def pretrained(self) -> tuple[str, ...]:
        """The encoders that training starts from pre-trained weights, by their section."""
        return () if self.bert is None else ("bert",)

    @property
    def feature_dims(self) -> dict[str, int]:
        """Width of the features of each modality; of text it is the encoder's where there is one."""
        text = self.text_dim if self.bert is None else self.bert.hidden
        widths = {"text": text, "audio": self.audio_dim, "vision": self.vision_dim}
        return {m: widths[m] for m in self.used}


def published_bert(config: UtteranceConfig) -> BertConfig:
    """The text encoder of a network of the published form.

    Raises:
        UnsupportedError: checkpoints of the authors have no such network.
    """
    own = config.labels or config.standardise or config.used != MODALITIES
    if config.bert is None or own:
        raise UnsupportedError(
            "no published checkpoint has text vectors, class labels, standardised inputs or fewer modalities: "
            "leave out bert: null, labels, standardise and modalities to exchange weights with it"
        )
    return config.bert


def utterance_inputs(config: UtteranceConfig) -> tuple[TensorSpec, ...]:
    """Of each modality its frames (token ids with `bert`), and their real length.

    The authors' attention mask is 1 up to the length, so the length says it all.
    """
    found: list[TensorSpec] = []
    for m in config.used:
        tokens = config.bert if m == "text" else None
        found += _tokens(tokens) if tokens else [_frames(m, config.feature_dims[m])]
        found.append(TensorSpec(name=f"{m}_lengths", dtype="int64", dims=(BATCH,), counts=f"{m}_len"))
    return tuple(found)


def _tokens(bert: BertConfig) -> list[TensorSpec]:
    return [
        TensorSpec(
            name="input_ids",
            dtype="int64",
            dims=(BATCH, "text_len"),
            modality="text",
            below=bert.vocabulary,
            description="word pieces with both special tokens; missing ones are the unknown one",
        ),
        TensorSpec(
            name="token_type_ids", dtype="int64", dims=(BATCH, "text_len"), modality="text", below=bert.segments
        ),
    ]


def _frames(modality: str, width: int) -> TensorSpec:
    return TensorSpec(name=modality, dtype="float32", dims=(BATCH, f"{modality}_len", width), modality=modality)


def prediction(labels: tuple[str, ...]) -> TensorSpec:
    """The output: log-probabilities of `labels`, or one score where there are none."""
    if labels:
        return TensorSpec(name="log_prob", dtype="float32", dims=(BATCH, len(labels)))
    return TensorSpec(name="score", dtype="float32", dims=(BATCH, 1))


def utterance_task(labels: tuple[str, ...], scale: str) -> Task:
    return Task(labels=labels) if labels else SCALES[scale]


def check_buckets(buckets: Iterable[Lengths], longest: Lengths) -> None:
    """Raises ValueError where a bucket lacks a length or has one outside 1..`longest`."""
    for bucket in buckets:
        if list(bucket) != list(longest) or not all(1 <= n <= longest[d] for d, n in bucket.items()):
            raise ValueError(f"a bucket needs {list(longest)} in this order, up to {longest}, not {bucket}")
