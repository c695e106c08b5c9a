"""An open source: JSON lines, one dialogue per line, read one at a time.

    {"labels": ["neutral", "joy"], "speakers": 2}                                     (optional first line)
    {"dialogue": "d1", "split": "test", "utterances": [
        {"id": "u1", "speaker": "Ann", "label": "joy", "sentence": "...", "text": [[...]], "audio": [...]}, ...]}

docs/data.md says what an utterance may have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.data.dialogues import (
    ALL,
    IMAGES,
    MODALITIES,
    READY,
    Dialogue,
    Recording,
    Utterance,
    name_of,
    ready_array,
    speaker_of,
)
from mer_export.data.media.faces import FaceImages
from mer_export.data.media.times import seconds
from mer_export.data.spec import DataSpec
from mer_export.errors import InputError, UsageError
from mer_export.untrusted.impostors import refuse_impostor
from mer_export.untrusted.json_files import parse_json
from mer_export.untrusted.places import Reach, within
from mer_export.untrusted.texts import decoded

SUFFIXES = (".jsonl", ".ndjson")
BOM = b"\xef\xbb\xbf"
HEADER = {"labels": "label_names", "speakers": "speakers", "unit": "unit", "extractors": "extractors"}
"""What the first line may say, and the fields of the data section that say the same."""
Line = tuple[int, dict[str, Any]]
"""A line's number, and the object that it holds."""


def detect(path: Path, spec: DataSpec) -> bool:
    """True for a file with the usual ending."""
    return path.is_file() and path.suffix in SUFFIXES


def source(path: Path, spec: DataSpec) -> LineSource:
    """The dialogues of a file.

    Raises:
        InputError: the file is empty, or its first line says something that is unknown.
    """

    def lines() -> Iterator[Line]:
        refuse_impostor(path)
        try:
            with path.open("rb") as stream:
                yield from parsed(stream, str(path))
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from None

    spec = spec.over(head_of(lines(), str(path)), f"{path}: line 1")
    return LineSource(str(path), spec, spec.reach(path), lambda: without_head(lines()))


def files(path: Path, spec: DataSpec) -> list[Path]:
    """The file itself."""
    return [path]


class LineSource:
    """Lines as dialogues; see `dialogues.Source`. One line is held in memory at a time.

    `lines` reads those of dialogues each time it is called; `spec` has what the first line of the file declares. A
    `part` of a file need not have a dialogue of every split.
    """

    def __init__(
        self, name: str, spec: DataSpec, reach: Reach | None, lines: Callable[[], Iterator[Line]], part: bool = False
    ):
        self.name, self.spec, self.lines, self.part = name, spec, lines, part
        self.reader = DialogueReader(spec, reach)
        self.splits: tuple[str, ...] = ()
        self.info: dict[str, Any] = {}

    def dialogues(self, split: str | None = None) -> Iterator[Dialogue]:
        """Yields (see `dialogues.Source`); raises InputError with the number of a line that is not one."""
        seen: set[str] = set()
        for number, line in self.lines():
            name = name_of(line.get("split"), ALL)
            if self.spec.splits and name not in (*self.spec.splits, ALL):
                continue
            seen.add(name)
            if split in (None, name):
                yield self.reader.dialogue(line, f"{self.name}: line {number}")
        if split is not None and split not in seen and not self.part:
            raise UsageError(f"no split {split!r} in {self.name}, there are {sorted(seen)}")


class DialogueReader:
    """From objects as they stand in lines to dialogues. `reach` says where paths may lead; None refuses all of them."""

    def __init__(self, spec: DataSpec, reach: Reach | None):
        self.spec, self.reach = spec, reach
        self.modalities = [m for m in MODALITIES if m not in spec.switched_off]

    def dialogue(self, line: Mapping[str, Any], where: str) -> Dialogue:
        """One dialogue; raises InputError, whose message begins with `where`, for an object that is none."""
        with _told(f"{where} is not a dialogue"):
            if line["dialogue"] is None:
                raise ValueError("it has no name, dialogue is null")
            name, given = str(line["dialogue"]), line["utterances"]
            if not isinstance(given, list) or not given:
                raise ValueError(f"dialogue {name!r} has no utterances")
            utterances = [self._utterance(u, f"{name}/{i}", where) for i, u in enumerate(given)]
        return Dialogue(name, name_of(line.get("split"), ALL), utterances, where)

    def utterance(self, given: Mapping[str, Any], name: str, where: str) -> Utterance:
        """One utterance, called `name` where it does not say its `id`; raises InputError for an object that is none."""
        with _told(f"{where} is not an utterance"):
            return self._utterance(given, name, where)

    def _utterance(self, given: Mapping[str, Any], name: str, where: str) -> Utterance:
        ready: dict[str, Any] = {n: ready_array(n, given[n], where) for n in READY if given.get(n) is not None}
        if self.spec.faces.images and given.get(IMAGES):
            ready[IMAGES] = FaceImages([self._path(p, where) for p in given[IMAGES]], self.spec.faces.size)
        return Utterance(
            id=name_of(given.get("id"), name),
            speaker=speaker_of(given.get("speaker", 0)),
            label=_label(given),
            score=_number(given["score"]) if "score" in given else None,
            indicators=_indicators(given),
            sentence=None if given.get("sentence") is None else str(given["sentence"]),
            recording=self._recording(given, where),
            features={m: (_steps(given[m], m),) for m in self.modalities if given.get(m) is not None},
            inputs=ready,
        )

    def _recording(self, given: Mapping[str, Any], where: str) -> Recording | None:
        if not given.get("recording"):
            return None
        start, end = (seconds(given.get(n), f"{where}: {n}") for n in ("start", "end"))
        return Recording(str(given["recording"]), where, within(self.reach, given["recording"], where), start, end)

    def _path(self, name: object, where: str) -> Path:
        return within(self.reach, name, where).path(str(name), where)


@contextmanager
def _told(problem: str) -> Iterator[None]:
    """Says with an InputError what an object lacks that is not as it should be."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{problem}: {what}") from None


def _label(given: Mapping[str, Any]) -> str | int | float | None:
    value = given.get("label")
    if isinstance(value, str | int | float):
        return value
    if value is not None:
        raise ValueError(f"label is {value!r}, it must be a name, an index or null; several stand under labels")
    return "" if "label" in given else None


def _indicators(given: Mapping[str, Any]) -> dict[str, float] | None:
    return {str(n): _number(v) for n, v in given["labels"].items()} if given.get("labels") is not None else None


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _steps(value: Any, modality: str) -> np.ndarray:
    """One vector or several as (steps, width)."""
    array = np.asarray(value, dtype=np.float32)
    if array.ndim not in (1, 2) or not array.size:
        raise ValueError(f"{modality} has shape {array.shape}, expected a vector or a list of them")
    return np.atleast_2d(array)


def head_of(lines: Iterator[Line], name: str) -> dict[str, Any]:
    """What the first line says of the data, by fields of the data section."""
    for _, line in lines:
        return {} if is_dialogue(line) else declared(line, f"{name}: line 1")
    raise InputError(f"{name} is empty: it needs one dialogue per line")


def is_dialogue(line: Mapping[str, Any]) -> bool:
    """Whether a line is a dialogue; else it can only be the first one, which says what the data are."""
    return "dialogue" in line or "utterances" in line


def declared(line: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What a first line says, by fields of the data section; raises InputError where it says anything else."""
    unknown = [name for name in line if name not in HEADER]
    if unknown:
        raise InputError(f"{where} has {unknown}, it must be a dialogue or say some of {list(HEADER)}")
    return {HEADER[name]: value for name, value in line.items()}


def without_head(lines: Iterator[Line]) -> Iterator[Line]:
    """Those of dialogues: all but a first one that says what the data are."""
    first = next(lines, None)
    if first is not None and is_dialogue(first[1]):
        yield first
    yield from lines


def parsed(stream: Iterable[bytes], name: str) -> Iterator[Line]:
    """The objects of lines, with their numbers; raises InputError for a line that is none."""
    for number, text in enumerate(stream, start=1):
        text = text.removeprefix(BOM) if number == 1 else text
        if not text.strip():
            continue
        decoded(text, f"{name}: line {number}")
        line = parse_json(text, f"{name}: line {number}")
        if not isinstance(line, dict):
            raise InputError(f"{name}: line {number} is a {type(line).__name__}, not a dialogue")
        yield number, line
