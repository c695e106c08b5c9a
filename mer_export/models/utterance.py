"""What the systems that read one utterance share: inputs, output, task. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from mer_export.contract import BATCH, Lengths, TensorSpec
from mer_export.layers.bert.config import BertConfig
from mer_export.task import Task

MODALITIES = ("text", "audio", "vision")
LETTERS = {"text": "l", "audio": "a", "vision": "v"}
"""Modalities in parameter names of MulT and TFR-Net."""
FeatureStandardise = tuple[Literal["text", "audio", "vision"], ...]

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


def others(modality: str) -> tuple[str, ...]:
    """The other two modalities."""
    return tuple(m for m in MODALITIES if m != modality)


def utterance_inputs(bert: BertConfig | None, dims: Mapping[str, int]) -> tuple[TensorSpec, ...]:
    """Token ids (or token vectors without `bert`), audio and vision frames, and the real length of each.

    The authors' attention mask is 1 up to the length, so the length says it all.
    """
    if bert is None:
        text: tuple[TensorSpec, ...] = (_frames("text", dims["text"]),)
    else:
        text = (
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
        )
    return (
        *text,
        TensorSpec(name="text_lengths", dtype="int64", dims=(BATCH,), counts="text_len"),
        _frames("audio", dims["audio"]),
        TensorSpec(name="audio_lengths", dtype="int64", dims=(BATCH,), counts="audio_len"),
        _frames("vision", dims["vision"]),
        TensorSpec(name="vision_lengths", dtype="int64", dims=(BATCH,), counts="vision_len"),
    )


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
