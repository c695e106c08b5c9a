"""A first `table.yaml` for a table that nothing describes: columns and arrays by the names that people give them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mer_export.data.dialogues import USUAL_ORDER
from mer_export.data.media.names import is_media
from mer_export.data.media.times import seconds
from mer_export.data.spec import DataSpec
from mer_export.errors import InputError, MerError
from mer_export.untrusted.arrays import check_arrays
from mer_export.untrusted.tables import TABLES, Columns, read_table

ARRAYS = (".npz", ".npy")
ROLES: dict[str, tuple[str, ...]] = {
    "recording": ("recording", "audio", "wav", "sound", "video", "clip", "media", "path", "file", "filename"),
    "start": ("start", "begin", "onset"),
    "end": ("end", "stop", "offset"),
    "dialogue": ("dialogue", "dialog", "conversation", "call", "session", "scene", "video", "movie"),
    "speaker": ("speaker", "who", "actor", "role", "character"),
    "label": ("label", "emotion", "class", "category", "affect"),
    "score": ("score", "sentiment", "valence", "polarity"),
    "split": ("split", "part", "partition", "set", "subset", "mode", "phase"),
    "sentence": ("sentence", "text", "words", "transcript", "transcription", "utterance", "content"),
    "utterance": ("turn", "utterance", "segment", "clip", "sample", "file", "filename", "name", "id", "index"),
}
"""What a column is called for each field; `emotion_id` and `dialogueId` count as well."""
SCOPES = ("season", "episode")
"""What scenes are numbered anew in."""
NUMERIC, NAMED, SPOKEN = ("score",), ("label", "split", "dialogue", "speaker"), ("sentence",)
FILES, TIMES = ("recording",), ("start", "end")
REST = {"id", "name", "label", "nr", "no", "num", "number", "index", "official"}
"""What may follow in the name of a column."""
REST_OF = {"recording": {"path", "file", "name"}, "start": {"time", "s", "sec"}, "end": {"time", "s", "sec"}}
BEGINNINGS = {
    "vision": "vision visual video image face facial facet openface au gaze pose eye v",
    "text": "text word sentence bert roberta glove minilm token lexical t",
    "audio": "audio speech acoustic voice prosody mfcc f0 f1 f2 f3 pitch loudness jitter shimmer hnr energy pcm "
    "spectral egemaps opensmile covarep wav2vec hubert a",
}
MODALITIES = {modality: frozenset(words.split()) for modality, words in BEGINNINGS.items()}
"""How the names of features begin."""


def undescribed_tables(path: Path) -> list[Path]:
    """The tables of a directory, or a table itself."""
    found = sorted(path.iterdir()) if path.is_dir() else [path]
    return [f for f in found if f.suffix in TABLES and f.is_file()]


def draft(path: Path, spec: DataSpec | None = None) -> str:
    """The text of a `table.yaml` for a directory or a table, as far as names tell; comments say what is left open.

    Args:
        path: directory with a table, or a table.
        spec: what is known already: encoding and separator.

    Raises:
        InputError: there is no table, or it cannot be read.
    """
    spec = spec or DataSpec()
    tables = undescribed_tables(path)
    if not tables:
        raise InputError(f"{path} holds no table: {' or '.join(TABLES)} with one utterance per row")
    chosen, splits = _main_table(tables, spec)
    columns = read_table(chosen, spec.encoding, spec.separator)
    section, open_ = _roles(columns, splits)
    name = chosen.name if not splits else "{split}".join(_around(chosen, splits))
    said: dict[str, Any] = {n: v for n, v in spec.model_dump().items() if n in ("encoding", "separator")}
    head: dict[str, Any] = {"table": name, **said, **({"splits": splits} if splits else {})}
    features, unused = _features(columns, set(_used(section)))
    rows = len(next(iter(columns.values())))
    arrays = [a for file in _array_files(path, splits) for a in _arrays(file, rows, splits)]
    if any(a.steps for a in arrays) or "dialogue" not in section:
        head["unit"] = "utterance"
    # Several text vectors of an utterance of a dialogue have one width: those that are widest are taken.
    widest = max((a.width for a in arrays if a.modality == "text"), default=0) if "unit" not in head else 0
    for a in arrays:
        if widest and a.modality == "text" and a.width != widest:
            unused.append(" ".join(a.source.values()))
        else:
            features.setdefault(a.modality, []).append(a.source)
    return "\n".join(_lines(head | section, features, open_, unused)) + "\n"


def drafted(path: Path, spec: DataSpec) -> tuple[DataSpec, list[str]]:
    """What a draft says as a data section, and its lines without comments; raises as `draft`."""
    text = draft(path, spec)
    return DataSpec.model_validate(yaml.safe_load(text)), [n for n in text.splitlines() if not n.startswith("#")]


def _lines(
    section: dict[str, Any], features: dict[str, list[Any]], open_: list[str], unused: list[str]
) -> Iterator[str]:
    yield "# A draft by the names of columns and arrays: check every line."
    for name, value in section.items():
        yield f"{name}: {_flow(value)}"
    for name in open_:
        yield f"# {name}: none of the columns looks like one"
    for modality, sources in features.items():
        yield f"{modality}: {_flow(sources[0] if len(sources) == 1 else sources)}"
    if unused:
        yield f"# not used: {', '.join(unused)}"


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=1 << 20)
    return text.removesuffix("...\n").strip()


def _main_table(tables: Sequence[Path], spec: DataSpec) -> tuple[Path, list[str]]:
    """The table with the utterances, the one whose columns have most roles; and the splits, of one file for each."""
    by_split = {s: f for f in tables for s in (*USUAL_ORDER, "val") if f.stem == s or re.search(rf"[._-]{s}$", f.stem)}
    around = {tuple(_around(f, [s])) for s, f in by_split.items()}
    if len(by_split) > 1 and len(around) == 1:
        splits = [s for s in (*USUAL_ORDER, "val") if s in by_split]
        return by_split[splits[0]], splits
    return max(tables, key=lambda f: len(_roles(read_table(f, spec.encoding, spec.separator), [])[0])), []


def _around(file: Path, splits: Iterable[str]) -> list[str]:
    """The name of a file before and after the split in it."""
    split = next(s for s in splits if file.stem.endswith(s))
    return [file.stem.removesuffix(split), file.suffix]


def _roles(columns: Columns, splits: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The fields that columns stand for, and which are left open."""
    found: dict[str, Any] = {}
    rows, parts = len(next(iter(columns.values()))), {n: _parts(n) for n in columns}
    for role, words in ROLES.items():
        if role == "split" and splits:
            continue
        names = [
            n
            for w in words
            for n in columns
            if _called(parts[n], w, REST_OF.get(role, REST)) and n not in found.values() and _fits(columns[n], role)
        ]
        if names:
            found[role] = names[0]
    if "label" in found and "score" in found:
        # One of them is predicted: a class, unless there are as many as numbers.
        del found["score" if not _fractions(columns[found["label"]]) else "label"]
    if not {"start", "end"} <= found.keys() or "recording" not in found:
        found = {n: c for n, c in found.items() if n not in TIMES}
    if "recording" in found and "utterance" not in found and len(set(columns[found["recording"]])) == rows:
        found["utterance"] = found["recording"]
    scopes = [n for w in SCOPES for n in columns if _called(parts[n], w)]
    if "dialogue" in found and scopes:
        found["dialogue"] = [*scopes, found["dialogue"]]
    if "utterance" in found and "dialogue" in found and all(map(_whole, columns[found["utterance"]])):
        found = {**found, "order": found["utterance"]}
    wanted = [r for r in ("dialogue", "label", "split") if r not in found and not (r == "split" and splits)]
    return found, [r for r in wanted if not (r == "label" and "score" in found)]


def _parts(column: str) -> list[str]:
    """The words and numbers in the name of a column."""
    return re.findall(r"[a-z]+|[0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", column).lower())


def _called(parts: Sequence[str], word: str, rest: Collection[str] = REST) -> bool:
    """Whether a column has the name, alone or as one that numbers: `Dialogue_ID`, `emotionLabel`."""
    return bool(parts) and parts[0] == word and set(parts[1:]) <= set(rest)


def _fits(cells: Sequence[str], role: str) -> bool:
    if role in NUMERIC:
        return all(map(_number, filter(None, cells))) and any(cells)
    if role in FILES:
        return all(is_media(c) for c in filter(None, cells)) and any(cells)
    if role in TIMES:
        return all(map(_time, cells))
    if role in SPOKEN:
        return any(" " in cell for cell in cells)
    if role in NAMED:
        return not _fractions(cells)
    return len(set(cells)) > 1 or len(cells) == 1


def _fractions(cells: Sequence[str]) -> bool:
    return any(_number(c) and not _whole(c) for c in cells)


def _number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _time(cell: str) -> bool:
    try:
        return seconds(cell, "") is not None
    except InputError:
        return False


def _whole(cell: str) -> bool:
    return _number(cell) and float(cell).is_integer()


def _used(section: dict[str, Any]) -> Iterator[str]:
    for value in section.values():
        yield from [value] if isinstance(value, str) else value


def _features(columns: Columns, taken: set[str]) -> tuple[dict[str, list[Any]], list[str]]:
    """Columns of numbers by modality, runs of neighbours as ranges; and the columns that nothing reads."""
    names = list(columns)
    found: dict[str, list[str]] = {}
    unused = []
    for name in (n for n in names if n not in taken):
        modality = (
            _modality(name) if all(_number(c) for c in columns[name] if c.strip()) and any(columns[name]) else None
        )
        if modality is None:
            unused.append(name)
        else:
            found.setdefault(modality, []).append(name)
    ordered = {m: found[m] for m in ("text", "audio", "vision") if m in found}
    return {m: [{"columns": _ranges(own, names)}] for m, own in ordered.items()}, unused


def _ranges(own: list[str], names: list[str]) -> list[str] | str:
    runs: list[list[str]] = []
    place = {name: i for i, name in enumerate(names)}
    for name in own:
        if runs and place[runs[-1][-1]] + 1 == place[name]:
            runs[-1].append(name)
        else:
            runs.append([name])
    written = [run[0] if len(run) == 1 else f"{run[0]}:{run[-1]}" for run in runs]
    return written[0] if len(written) == 1 else written


def _modality(name: str) -> str | None:
    """Which modality a name begins like; a single letter only where a number follows."""
    parts = re.findall(r"[a-z]+|[0-9]+", name.lower())
    for place, part in enumerate(parts):
        for modality, words in MODALITIES.items():
            numbered = place + 1 < len(parts) and parts[place + 1].isdigit()
            if part + (parts[place + 1] if numbered else "") in words:
                return modality
            if part in words and (len(part) > 1 or (place == 0 and numbered)):
                return modality
    return None


def _array_files(path: Path, splits: list[str]) -> list[Path]:
    folder = path if path.is_dir() else path.parent
    files = sorted(f for f in folder.iterdir() if f.suffix in ARRAYS and f.is_file())
    return [f for f in files if not splits or splits[0] in f.stem] or files


@dataclass(frozen=True)
class Found:
    """An array that has a row for each of the table's; `steps` tells whether these are sequences."""

    modality: str
    source: dict[str, str]
    width: int
    steps: bool


def _arrays(file: Path, rows: int, splits: list[str]) -> Iterator[Found]:
    """The arrays of a file whose names say what they are."""
    try:
        arrays = check_arrays(file)
    except MerError:
        return
    name = file.name.replace(splits[0], "{split}") if splits else file.name
    for key, (shape, dtype) in arrays.items():
        modality = _modality(key) or _modality(file.stem)
        if modality is None or len(shape) not in (2, 3) or dtype.kind not in "fiu":
            continue
        source = {"file": name, **({"array": key} if key else {})}
        ends = next((k for k, a in arrays.items() if a.shape == (rows + 1,) and k.startswith(key)), None)
        if shape[0] == rows:
            yield Found(modality, source, shape[-1], len(shape) == 3)
        elif ends is not None and len(shape) == 2:
            yield Found(modality, source | {"offsets": ends}, shape[-1], True)
