"""Tiny bundles of one system for each shape of sample, and random utterances for them as JSON lines have them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from small_bundle import make_bundle, randomise
from small_emt import make_emt
from small_facialmmt import make as make_facialmmt
from small_tab import make_tab

from mer_export.bundle import Bundle
from runtimes.predict.live import Answer
from runtimes.predict.prediction import Prediction

Draw = Callable[[np.random.Generator], dict[str, Any]]


class Case(NamedTuple):
    """A bundle, and what draws an utterance for it."""

    bundle: Bundle
    draw: Draw


def numbers(draw: np.random.Generator, *shape: int) -> list[Any]:
    return draw.normal(size=shape).round(2).tolist()


def cmerc(root: Path) -> Case:
    bundle = make_bundle(root)
    randomise(bundle)
    return Case(
        bundle,
        lambda draw: {
            "speaker": ("Ann", "Bob", "Cem", "Dee")[draw.integers(4)],
            "text": numbers(draw, 2, 16),
            "audio": numbers(draw, 8),
            "vision": numbers(draw, 6),
        },
    )


def facialmmt(root: Path) -> Case:
    """A dialogue is packed of sentences."""
    bundle = make_facialmmt(root, "fusion")
    words = root.with_name("words")
    words.mkdir(exist_ok=True)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh"]
    (words / "vocab.txt").write_text("\n".join(pieces) + "\n")
    with bundle.commit() as change:
        change.write("config.yaml", f"data: {{packing: bert, tokenizer: '{words}'}}\n")

    def drawn(draw: np.random.Generator) -> dict[str, Any]:
        faces = int(draw.integers(1, 5))
        return {
            "sentence": " ".join(draw.choice(list("abcdefgh"), draw.integers(1, 4))),
            "audio": numbers(draw, int(draw.integers(1, 6)), 5),
            "vision": numbers(draw, faces, 4),
            "expression_logits": numbers(draw, faces, 7),
        }

    return Case(bundle, drawn)


def tab(root: Path) -> Case:
    """Each utterance is read with the sentence vectors of its neighbours."""
    bundle = make_tab(root, "fusion")
    with bundle.commit() as change:
        change.write("config.yaml", "data: {context: {size: 1, width: 6}}\n")
    return Case(
        bundle,
        lambda draw: {
            "text": numbers(draw, 6),
            "text_tokens": [0, *draw.integers(4, 60, 3).tolist(), 2],
            "audio_tokens": [0, *draw.integers(4, 70, 4).tolist(), 2],
        },
    )


def emt(root: Path) -> Case:
    """Each utterance is read by itself."""
    return Case(
        make_emt(root, "emt vectors"),
        lambda draw: {"text": numbers(draw, 3, 7), "audio": numbers(draw, 4, 5), "vision": numbers(draw, 2, 20)},
    )


def every(answer: Answer) -> list[Prediction]:
    """All that an answer says."""
    return [answer.prediction, *answer.revised]


MAKERS: dict[str, Callable[[Path], Case]] = {"cmerc": cmerc, "facialmmt": facialmmt, "tab": tab, "emt": emt}
