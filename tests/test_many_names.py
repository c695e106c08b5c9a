"""What is remembered of each clip, sentence and name of data of any length, and how little room that takes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mer_export.data.formats.table.reader import source
from mer_export.data.parts import Part
from mer_export.data.spec import DataSpec
from mer_export.errors import InputError
from mer_export.marks import Marks, Places, mark_of
from mer_export.untrusted.cells import TOGETHER, Cells
from mer_export.untrusted.stored import Stored
from runtimes.features.sentences import Distinct
from runtimes.scale.blocks import Block
from runtimes.scale.names import Names

MANY = 20_000
TEXTS = [f"text {n % 700} \N{SNOWMAN}" if n % 3 else "" for n in range(3 * TOGETHER + 5)]


def kept(make: Callable[[], Any]) -> int:
    """Bytes that what is made takes."""
    tracemalloc.start()
    try:
        made = make()
        return tracemalloc.get_traced_memory()[0] if made is not None else 0
    finally:
        tracemalloc.stop()


def test_cells_are_the_texts_in_their_order() -> None:
    cells = Cells(TEXTS[:7])
    cells.extend(TEXTS[7:])
    assert cells == TEXTS
    assert [cells[n] for n in range(-1, len(TEXTS))] == [TEXTS[-1], *TEXTS]
    assert cells[5 : 2 * TOGETHER : 300] == TEXTS[5 : 2 * TOGETHER : 300]


def test_sentences_are_numbered_as_they_first_come() -> None:
    known = Distinct()
    for text in TEXTS:
        known.add(text)
    wanted = {text: number for number, text in enumerate(dict.fromkeys(TEXTS))}
    assert len(known) == len(wanted)
    assert {text: known.number(text) for text in TEXTS} == wanted
    assert known.texts == list(wanted)


def test_marks_are_a_set() -> None:
    marks, names = Marks(), [str(n % 5000) for n in range(8000)]
    assert [marks.new(mark_of("dialogue", n)) for n in names] == [True] * 5000 + [False] * 3000
    assert set(marks) == {mark_of("dialogue", n) for n in names}
    assert mark_of("dialogue", "5000") not in marks


def test_names_of_files_that_are_done_are_not_read_again(tmp_path: Path) -> None:
    path, files = tmp_path / "names.bin", [Stored(name, 1, "") for name in "ab"]
    blocks = [Block(n, Part(files[n > 0], "jsonl", n, n + 1, 1)) for n in range(3)]
    marks = [np.arange(1, count + 1, dtype=np.uint64) for count in (10 * MANY, 5)]
    records = [np.array([n, len(own)], np.uint64).tobytes() + own.tobytes() for n, own in enumerate(marks)]
    path.write_bytes(b"".join([*records, b"cut short"]))
    tracemalloc.start()
    try:
        names = Names(path, blocks, {0, 1})
        assert tracemalloc.get_traced_memory()[1] < 20 * MANY
    finally:
        tracemalloc.stop()
    assert path.read_bytes() == b"".join(records)
    assert names._seen.keys() == {"b"}
    assert sorted(names._seen["b"]) == marks[1].tolist()


def test_a_name_has_its_last_place() -> None:
    places = Places(["a", "b", "a", "c"])
    assert [places.get(n) for n in "abcd"] == [2, 1, 3, None]
    assert (places.distinct, Places("ab").distinct, Places([]).get("a")) == (False, True, None)


def test_a_row_of_a_table_takes_a_few_bytes(tmp_path: Path) -> None:
    rows = [f"c{n},{n // 20},{n // 20}.wav,This is sentence {n},joy,{n % 7}" for n in range(MANY)]
    (tmp_path / "clips.csv").write_text("\n".join(["clip,dialogue,file,words,emotion,speaker", *rows, ""]))
    said = {n: n for n in ("dialogue", "speaker")} | {"utterance": "clip", "sentence": "words", "label": "emotion"}
    spec = DataSpec.model_validate(said | {"table": "clips.csv", "recording": "file", "unit": "utterance"})

    def read() -> Any:
        found = source(tmp_path, spec)
        assert sum(len(d.utterances) for d in found.dialogues()) == MANY
        return found

    assert kept(read) < 12 * MANY


def test_dialogues_of_a_table_come_as_they_first_appear_and_their_rows_in_order(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = [(str(d), f"{n % 5}", f"train{d % 2}", str(n)) for n, d in enumerate(draw.integers(0, 40, 500))]
    (tmp_path / "calls.csv").write_text("\n".join([",".join(r) for r in (("call", "turn", "split", "id"), *rows)]))
    said = {"table": "calls.csv", "dialogue": "call", "order": "turn", "utterance": "id", "split": "split"}
    found = source(tmp_path, DataSpec.model_validate(said))
    wanted: dict[str, list[tuple[str, ...]]] = {}
    for row in rows:
        wanted.setdefault(row[0], []).append(row)
    own = {n: [r[3] for r in sorted(group, key=lambda r: r[1])] for n, group in wanted.items()}
    assert [(d.id, [u.id.split("/")[1] for u in d.utterances]) for d in found.dialogues()] == list(own.items())
    odd = [n for n in own if int(n) % 2]
    assert [d.id for d in found.dialogues("train1")] == odd
    (tmp_path / "calls.csv").write_text("call,turn,split,id\na,0,dev,0\nb,0,dev,1\nb,1,test,2\na,1,test,3\n")
    with pytest.raises(InputError, match="'b' has utterances in dev and test: a dialogue belongs to one split"):
        list(source(tmp_path, DataSpec.model_validate(said)).dialogues())


def test_a_name_takes_a_tenth_of_what_python_takes() -> None:
    def marked() -> Marks:
        marks = Marks()
        for number in range(MANY):
            marks.new(mark_of(str(number)))
        return marks

    assert kept(marked) < 10 * MANY
