"""From transcripts to token ids, and the tokenizer that a bundle keeps."""

from __future__ import annotations

import shutil
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mer_export.data.spec import DataSpec
from mer_export.data.tokens.text_tokenizer import TextTokenizer
from mer_export.data.tokens.tokenizer_json import TEXT_FILES, text_files
from mer_export.untrusted.file_state import States, states

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
    folder = bundle.verified_folder(FOLDER)
    if any(f"{FOLDER}/{n}" in bundle.manifest.files for n in TEXT_FILES):
        return bound(spec.model_copy(update={"tokenizer": str(folder)}))
    return spec


def bound(spec: DataSpec) -> DataSpec:
    """The data section, whose tokenizer is from now on the one whose files are there now.

    Others that are opened when the files are replaced have the new one, and this one goes on with what it has read.
    """
    if spec.tokenizer is None or spec.tokenizer_state is not None:
        return spec
    return spec.with_tokenizer(_state(spec.tokenizer))


def _state(path: str) -> States:
    return states(text_files(Path(path)).values())


def load_tokenizer(path: str, state: States | None = None) -> TextTokenizer:
    """A text tokenizer, opened once in each state of its files (see `TextTokenizer.load`); None is how they are now."""
    return _opened(path, _state(path) if state is None else state)


@lru_cache(maxsize=4)
def _opened(path: str, _state: States) -> TextTokenizer:
    return TextTokenizer.load(path)


def text_tokens(spec: DataSpec, sentence: str, lower: bool = True) -> np.ndarray:
    """Ids (int64) of a sentence with both special tokens, by the tokenizer of a data section that has one."""
    tokenizer = load_tokenizer(str(spec.tokenizer), spec.tokenizer_state)
    return tokenizer.encode(sentence.lower() if lower else sentence)
