"""Configuration and tensor contract of tab; needs no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mer_export.contract import BATCH, Contract, Lengths, TensorSpec
from mer_export.layers.bert.config import ROBERTA, BertConfig
from mer_export.models.utterance import check_buckets
from mer_export.task import Task

Variant = Literal["fusion", "lhs", "text_tab", "audio_tab", "tab"]
BRANCHES: dict[str, tuple[str, ...]] = {
    "fusion": ("text", "audio", "tab"),
    "lhs": ("text", "audio"),
    "text_tab": ("text", "tab"),
    "audio_tab": ("audio", "tab"),
    "tab": ("tab",),
}
"""What each variant reads, in the order in which the head joins it."""
LABELS = ("angry", "happy", "sad", "neutral")
TEXT = ROBERTA | {"hidden": 1024, "layers": 24, "heads": 16, "feed_forward": 4096, "segments": 0}
"""RoBERTa-large as fairseq has it."""
AUDIO = ROBERTA | {"vocabulary": 23673, "positions": 2050, "segments": 0}
"""Speech-BERT: the base architecture on 23 673 audio tokens, 2048 positions."""
BUCKETS = ((32, 256), (64, 512), (128, 1024), (512, 2048))
"""Text and audio tokens; the longest are what the encoders have positions for."""


class TabConfig(BaseModel):
    """The published network (spec of the repository's `Fusion`) and its branch subsets.

    Encoders that a variant does not use describe the entries that its checkpoints have all the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    variant: Variant = "fusion"
    labels: tuple[str, ...] = Field(LABELS, min_length=2)
    text: BertConfig = BertConfig.model_validate(TEXT)
    """Values that are not given are those of RoBERTa-large."""
    audio: BertConfig = BertConfig.model_validate(AUDIO)
    """Values that are not given are those of Speech-BERT."""
    context: int = Field(3, ge=0)
    """Neighbours on each side of an utterance; nothing in the weights depends on it."""
    sentence_dim: int = Field(768, ge=1)
    tab_width: int = Field(64, ge=1)
    tab_attention: int = Field(64, ge=1)
    """Width of the attention's hidden layer."""
    tab_heads: int = Field(5, ge=1)
    tab_dropout: float = Field(0.5, ge=0, lt=1)
    head_width: int = Field(128, ge=1)
    buckets: tuple[Lengths, ...] = ()
    """Fixed lengths to export; without any those of `BUCKETS` that the encoders can take."""

    @field_validator("text", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return TEXT | value if isinstance(value, dict) else value

    @field_validator("audio", mode="before")
    @classmethod
    def _audio(cls, value: Any) -> Any:
        return AUDIO | value if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _consistent(self) -> TabConfig:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels must be different ones, they are {self.labels}")
        check_buckets(self.buckets, self.longest)
        return self

    @property
    def branches(self) -> tuple[str, ...]:
        """What this variant reads."""
        return BRANCHES[self.variant]

    @property
    def pretrained(self) -> tuple[str, ...]:
        """The encoders that training starts from pre-trained weights, by their section."""
        return tuple(m for m in self.encoders if m in self.branches)

    @property
    def encoders(self) -> dict[str, BertConfig]:
        """Both encoders by modality, used or not."""
        return {"text": self.text, "audio": self.audio}

    @property
    def slots(self) -> int:
        """Sentence vectors in a context window."""
        return 2 * self.context + 1

    @property
    def widths(self) -> dict[str, int]:
        """Width of the vector of each branch that this variant joins."""
        widths = {"text": self.text.hidden, "audio": self.audio.hidden, "tab": self.tab_width * self.tab_heads}
        return {b: widths[b] for b in self.branches}

    @property
    def longest(self) -> Lengths:
        """Longest token sequences of the encoders in use."""
        return {f"{m}_len": e.longest for m, e in self.encoders.items() if m in self.branches}


def contract(config: TabConfig) -> Contract:
    """One utterance per item; token sequences end where their padding token begins."""
    inputs = [
        TensorSpec(
            name=f"{m}_tokens",
            dtype="int64",
            dims=(BATCH, f"{m}_len"),
            modality=m,
            below=encoder.vocabulary,
            padding=encoder.padding_token,
            description=f"{m} tokens with both special ones; {encoder.padding_token} is padding",
        )
        for m, encoder in config.encoders.items()
        if m in config.branches
    ]
    outputs = [TensorSpec(name="logits", dtype="float32", dims=(BATCH, len(config.labels)))]
    if "tab" in config.branches:
        inputs.append(
            TensorSpec(
                name="tab_embedding",
                dtype="float32",
                dims=(BATCH, config.slots * config.sentence_dim),
                modality="text",
                description=f"sentence vectors of {config.slots} neighbouring utterances, side by side",
            )
        )
        outputs.append(TensorSpec(name="attention", dtype="float32", dims=(BATCH, config.tab_heads, config.slots)))
    return Contract(
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        buckets=config.buckets or _buckets(config.longest),
        longest=config.longest,
        keeps_start=tuple(config.longest),
    )


def task(config: TabConfig) -> Task:
    return Task(output="logits", labels=config.labels)


def _buckets(longest: Lengths) -> tuple[Lengths, ...]:
    """The published pairs cut to what the encoders take; of equal ones the first."""
    pairs = [dict(zip(("text_len", "audio_len"), pair, strict=True)) for pair in BUCKETS]
    fitting = [{d: min(pair[d], n) for d, n in longest.items()} for pair in pairs]
    return tuple(b for i, b in enumerate(fitting) if b not in fitting[:i])
