"""From the IEMOCAP release to the authors' files: one text file per utterance and kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mer_export.data.formats.tab.iemocap_release import Utterance, read_release
from mer_export.data.formats.tab.reader import AUDIO, TABLE, TEXT, VECTORS
from mer_export.data.media.sound import Sound, read_sound, write_sound
from mer_export.data.shapes.windows import context_windows
from mer_export.data.spec import DataSpec
from mer_export.data.tokens.tokenizer import bound, text_tokens
from mer_export.encoders.running import sentence_vectors, speech_tokens
from mer_export.errors import UsageError

SIZES = (1, 2, 3)
"""Neighbours on each side of the windows that are written."""


def prepare(
    release: Path,
    out: Path,
    tokenizer: str | None = None,
    speech: str | None = None,
    encoder: str | None = None,
    sizes: Sequence[int] = SIZES,
    force: bool = False,
) -> dict[str, int]:
    """Writes transcripts, recordings and label files, and of them what there is a tool for.

    Args:
        release: the folder with Session1 to Session5.
        out: the new directory.
        tokenizer: folder of RoBERTa's tokenizer, for text tokens.
        speech: folder of a speech tokenizer, for audio tokens.
        encoder: folder of a sentence encoder (bert-base-uncased), for sentence vectors and context windows.
        sizes: which windows to write.
        force: write into an existing directory.

    Returns:
        How many files of each kind were written.

    Raises:
        UsageError: the directory exists.
        InputError: the release is damaged.
    """
    if out.exists() and not force:
        raise UsageError(f"{out} exists: pass --force to write into it")
    utterances = []
    for folder in ("Text", "Audio"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    opened: tuple[Path, Sound] | None = None
    for utterance, path in read_release(release):
        if opened is None or opened[0] != path:
            opened = path, read_sound(path)
        sound = opened[1]
        samples = utterance.samples(sound.samples, sound.rate)
        write_sound(out / "Audio" / f"{utterance.name}.wav", samples, sound.rate)
        (out / "Text" / f"{utterance.name}.txt").write_text(utterance.text, encoding="utf-8")
        utterances.append(utterance)
    write_labels(out, [(u.name, u.label_id) for u in utterances])
    done = {"utterances": len(utterances)}
    if tokenizer:
        texts = bound(DataSpec(tokenizer=tokenizer))
        done[TEXT] = write_tokens(out / TEXT, ((u.name, text_tokens(texts, u.text)) for u in utterances))
    if speech:
        recordings = ((u.name, out / "Audio" / f"{u.name}.wav") for u in utterances)
        done[AUDIO] = write_tokens(out / AUDIO, ((n, speech_tokens(speech, p)) for n, p in recordings))
    if encoder:
        vectors = sentence_vectors(encoder, [u.text for u in utterances])
        done[VECTORS] = write_vectors(out, [u.name for u in utterances], vectors, _sessions(utterances), sizes)
    return done


def write_labels(out: Path, rows: Sequence[tuple[str, int]]) -> None:
    """Both label files, and the table of older names that windows were made from."""
    out.mkdir(parents=True, exist_ok=True)
    for file, ending in ((TABLE, "txt"), ("labels_train_a.txt", "wav")):
        (out / file).write_text("".join(f"{name}.{ending}\t{label}\n" for name, label in rows))
    older = ((*name.split("_", 2)[::2], label) for name, label in rows)
    (out / "no_labels_train_t.txt").write_text(
        "".join(f"{index}_{rest}.txt\t{label}\n" for index, rest, label in older)
    )


def write_tokens(folder: Path, rows: Iterable[tuple[str, np.ndarray]]) -> int:
    """One file of ids per utterance, each id followed by a tab."""
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for name, ids in rows:
        (folder / f"{name}.txt").write_text("".join(f"{i}\t" for i in ids.tolist()))
        count += 1
    return count


def write_vectors(
    out: Path, names: Sequence[str], vectors: np.ndarray, sessions: Sequence[int], sizes: Sequence[int]
) -> int:
    """Sentence vectors and the windows over them, as lines of numbers."""
    written = _write_rows(out / VECTORS, names, vectors)
    for size in sizes:
        written += _write_rows(out / f"Full{VECTORS}{size}", names, context_windows(vectors, sessions, size))
    return written


def _write_rows(folder: Path, names: Sequence[str], rows: np.ndarray) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    for name, row in zip(names, rows, strict=True):
        (folder / f"{name}.txt").write_text("\t".join(f"{v:.18e}" for v in row.tolist()) + "\n")
    return len(names)


def _sessions(utterances: Sequence[Utterance]) -> list[int]:
    return [u.session for u in utterances]
