"""Training a small byte-pair tokenizer of RoBERTa's kind."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from mer_export.data.tokens.tokenizer_json import BYTE_PAIRS
from mer_export.errors import NotAvailableError
from mer_export.install import not_installed

SPECIAL, MASK = ("<s>", "<pad>", "</s>", "<unk>"), "<mask>"


def train_byte_pairs(texts: Iterable[str], size: int, folder: Path) -> int:
    """Writes vocab.json and merges.txt of the most frequent pairs in `texts`, the same files for the same texts.

    Returns:
        How many symbols the vocabulary has, `size` at most.

    Raises:
        NotAvailableError: `tokenizers` is missing.
    """
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    except ImportError:
        raise NotAvailableError(not_installed("tokenizers", "text")) from None
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = {**model["vocab"], MASK: len(model["vocab"])}
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    names = BYTE_PAIRS[0]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / names[1]).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(vocabulary)
