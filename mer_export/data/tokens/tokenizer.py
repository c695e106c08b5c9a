"""From transcripts to token ids, and the tokenizers that a bundle keeps."""

from __future__ import annotations

import shutil
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mer_export.bundle.files import refuse_links
from mer_export.data.spec import DataSpec
from mer_export.data.tokens.text_tokenizer import TextTokenizer
from mer_export.data.tokens.tokenizer_json import TEXT_FILES, text_files

if TYPE_CHECKING:
    from mer_export.bundle import Bundle, Commit

FOLDER = "tokenizer"
"""Where a bundle keeps them."""
PARTS = {
    "speech": (f"{FOLDER}/speech", ("config.json", "model.onnx", "dict.txt")),
    "encoder": (f"{FOLDER}/sentences", ("config.json", "model.onnx", *TEXT_FILES)),
}
"""Folders that `data.context` names: where a bundle keeps each, and its files."""


def tokenizer_files(spec: DataSpec) -> dict[str, Path]:
    """The files of a data section's tokenizers by their place in a bundle.

    Raises:
        InputError: a text tokenizer that cannot be read.
    """
    found: dict[str, Path] = {}
    if spec.tokenizer:
        load_tokenizer(spec.tokenizer)
        found |= {f"{FOLDER}/{n}": p for n, p in text_files(Path(spec.tokenizer)).items()}
    for part, (place, names) in PARTS.items():
        folder = getattr(spec.context, part, None)
        found |= {f"{place}/{n}": Path(folder) / n for n in names} if folder else {}
    return {name: path for name, path in found.items() if path.is_file()}


def keep_tokenizers(change: Commit, spec: DataSpec) -> None:
    """Copies the tokenizers into a bundle, so that it takes transcripts and recordings wherever it is."""
    for name, path in tokenizer_files(spec).items():
        shutil.copyfile(path, change.file(name))


def with_kept(spec: DataSpec, bundle: Bundle) -> DataSpec:
    """The data section with the tokenizers that the bundle keeps; raises BundleError where a link lies among them."""
    names = [n for n in bundle.manifest.files if n.startswith(f"{FOLDER}/")]
    # Readers of a folder take what they find there, listed or not.
    refuse_links(bundle.root / FOLDER)
    for name in names:
        bundle.path(name)
    changed: dict[str, Any] = {}
    if any(f"{FOLDER}/{n}" in names for n in TEXT_FILES):
        changed["tokenizer"] = str(bundle.root / FOLDER)
    kept = {
        part: str(bundle.root / place) for part, (place, (first, *_)) in PARTS.items() if f"{place}/{first}" in names
    }
    if spec.context and kept:
        changed["context"] = spec.context.model_copy(update=kept)
    return spec.model_copy(update=changed)


@lru_cache(maxsize=4)
def load_tokenizer(path: str) -> TextTokenizer:
    """A text tokenizer, opened once (see `TextTokenizer.load`)."""
    return TextTokenizer.load(path)


def text_tokens(tokenizer: str, sentence: str, lower: bool = True) -> np.ndarray:
    """Ids (int64) of a sentence with both special tokens."""
    return load_tokenizer(tokenizer).encode(sentence.lower() if lower else sentence)
