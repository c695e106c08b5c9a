"""Configuration and tensor contract of cmerc; needs no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mer_export.contract import Contract, TensorSpec
from mer_export.models.utterance import MODALITIES, Modality
from mer_export.task import Task

BASE_MODELS = ("gru", "lstm", "transformer")
HYPEREDGE_WEIGHTS = 1000
NODE_WEIGHTS = 5200
LENGTH = "utterances"


class CmercConfig(BaseModel):
    """M3NET, section 3. Defaults are the published IEMOCAP network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: tuple[str, ...] = Field(("happy", "sad", "neutral", "angry", "excited", "frustrated"), min_length=2)
    speakers: int = Field(2, ge=1)
    modalities: tuple[Modality, ...] = Field(MODALITIES, min_length=1)
    """Those that the network reads: the graph has no nodes of the others, the contract no inputs."""
    text_dim: int = Field(1024, ge=1)
    audio_dim: int = Field(1582, ge=1)
    vision_dim: int = Field(342, ge=1)
    text_vectors: int = Field(4, ge=1, le=4)
    """Text vectors per utterance, averaged after their norms: the last four layers of RoBERTa in the original."""
    base_model: Literal["gru", "lstm", "transformer"] = "gru"
    text_linear: bool = True
    """False on MELD, where the original skips the layer and needs `width` equal to `text_dim`."""
    width: int = Field(512, ge=2, multiple_of=2)
    hidden: int = Field(512, ge=1)
    hypergraph_layers: int = Field(3, ge=1)
    frequency_layers: int = Field(4, ge=1)
    dropout: float = Field(0.5, ge=0, lt=1)
    norm: Literal["BN", "LN", "LN2", "none"] = "BN"
    residue: bool = False
    speaker_embedding: bool = True
    modal_embedding: bool = False
    encode_audio_vision: bool = False
    """Base model over audio and vision too (the original's `av_using_lstm`)."""
    causal: bool = False
    """Each utterance is read with those before it alone: recurrence in one direction, a graph of edges from the past.
    Not in the original, which reads dialogues both ways."""
    standardise: tuple[Modality, ...] = ()
    """Inputs that the network itself brings to zero mean and unit variance with training-set statistics."""
    buckets: tuple[int, ...] = Field((32, 64, 110), min_length=1)
    """Dialogue lengths that exports are fixed to by default."""

    @model_validator(mode="after")
    def _consistent(self) -> CmercConfig:
        if self.base_model != "gru" and not self.text_linear:
            raise ValueError("text_linear can be off with base_model gru only")
        if self.causal and self.base_model == "transformer":
            raise ValueError("causal is for base_model gru or lstm: the transformer layer attends to what comes after")
        if self.causal and self.norm == "LN2":
            raise ValueError("causal goes with norm BN, LN or none: LN2 takes its statistics from the whole dialogue")
        if len(set(self.modalities)) != len(self.modalities):
            raise ValueError(f"modalities repeat: {self.modalities}")
        if absent := [m for m in self.standardise if m not in self.modalities]:
            raise ValueError(f"standardise names {absent}, the modalities are {list(self.modalities)}")
        if not self.text_linear and self.width != self.text_dim:
            raise ValueError(f"without text_linear width must equal text_dim {self.text_dim}, it is {self.width}")
        if self.base_model == "transformer" and self.width % 4:
            raise ValueError(f"base_model transformer has 4 heads, width {self.width} is not a multiple of 4")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels repeat: {self.labels}")
        longest = HYPEREDGE_WEIGHTS - 3
        if not all(1 <= b <= longest for b in self.buckets):
            raise ValueError(f"buckets must lie in 1..{longest}, they are {self.buckets}")
        return self

    @property
    def used(self) -> tuple[str, ...]:
        """The modalities that the network reads, in the order of the node blocks."""
        return tuple(m for m in MODALITIES if m in self.modalities)

    @property
    def dims(self) -> dict[str, int]:
        """Feature width of each modality."""
        widths = {"text": self.text_dim, "audio": self.audio_dim, "vision": self.vision_dim}
        return {m: widths[m] for m in self.used}


def contract(config: CmercConfig) -> Contract:
    """One dialogue per item. `log_prob` rows at and past the real length are 0."""
    length = LENGTH
    return Contract(
        inputs=(
            *(_features(m, length, config) for m in config.used),
            TensorSpec(
                name="speaker",
                dtype="int64",
                dims=("batch", length),
                below=config.speakers,
                description="speaker index",
            ),
            TensorSpec(name="lengths", dtype="int64", dims=("batch",), counts=length),
        ),
        outputs=(TensorSpec(name="log_prob", dtype="float32", dims=("batch", length, len(config.labels))),),
        buckets=tuple({length: b} for b in config.buckets),
        longest={length: HYPEREDGE_WEIGHTS - 3},
    )


def _features(modality: str, length: str, config: CmercConfig) -> TensorSpec:
    width = config.dims[modality]
    if modality != "text":
        return TensorSpec(name=modality, dtype="float32", dims=("batch", length, width), modality=modality)
    return TensorSpec(
        name="text",
        dtype="float32",
        dims=("batch", config.text_vectors, length, width),
        modality="text",
        description="text vectors of each utterance (original: r1..r4)",
    )


def task(config: CmercConfig) -> Task:
    return Task(labels=config.labels)
