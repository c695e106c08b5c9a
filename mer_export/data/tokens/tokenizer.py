"""From transcripts to token ids, and the tokenizer that a bundle keeps."""

from __future__ import annotations

import shutil
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mer_export.bundle.files import refuse_links
from mer_export.data.spec import DataSpec
from mer_export.data.tokens.text_tokenizer import TextTokenizer
from mer_export.data.tokens.tokenizer_json import TEXT_FILES, text_files

if TYPE_CHECKING:
    from mer_export.bundle import Bundle, Commit

FOLDER = "tokenizer"
"""Where a bundle keeps it."""


def keep_tokenizer(change: Commit, spec: DataSpec) -> None:
    """Copies the text tokenizer of a data section into a bundle; raises InputError where it cannot be read."""
    if not spec.tokenizer:
        return
    load_tokenizer(spec.tokenizer)
    for name, path in text_files(Path(spec.tokenizer)).items():
        shutil.copyfile(path, change.file(f"{FOLDER}/{name}"))


def with_kept(spec: DataSpec, bundle: Bundle) -> DataSpec:
    """The data section with the tokenizer that the bundle keeps; raises BundleError where a link is among its files."""
    names = [n for n in bundle.manifest.files if n.startswith(f"{FOLDER}/")]
    # Readers of a folder take what they find there, listed or not.
    refuse_links(bundle.root / FOLDER)
    for name in names:
        bundle.path(name)
    if any(f"{FOLDER}/{n}" in names for n in TEXT_FILES):
        return spec.model_copy(update={"tokenizer": str(bundle.root / FOLDER)})
    return spec


@lru_cache(maxsize=4)
def load_tokenizer(path: str) -> TextTokenizer:
    """A text tokenizer, opened once (see `TextTokenizer.load`)."""
    return TextTokenizer.load(path)


def text_tokens(tokenizer: str, sentence: str, lower: bool = True) -> np.ndarray:
    """Ids (int64) of a sentence with both special tokens."""
    return load_tokenizer(tokenizer).encode(sentence.lower() if lower else sentence)
