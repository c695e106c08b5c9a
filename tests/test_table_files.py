"""Tables as people have them: encodings, separators, and features in columns beside the labels."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mer_export.data.formats.table.reader import source
from mer_export.data.inspect import inspect_file
from mer_export.data.open import open_corpus
from mer_export.data.samples import Sample
from mer_export.data.spec import DataSpec
from mer_export.errors import InputError
from mer_export.untrusted.arrays import FileArray, open_array
from mer_export.untrusted.places import Reach
from mer_export.untrusted.tables import read_table

WORDS = "call,turn,who,mood,words\nc1,0,a,joy,It’s fine\nc1,1,b,anger,“No”\n"
SPOKEN = {"table": "u.csv", "dialogue": "call", "order": "turn", "label": "mood", "sentence": "words"}
FEATURES = {"table": "u.csv", "dialogue": "call", "label": "mood"}


def only_sample(folder: Path, **spec: Any) -> Sample:
    (sample,) = open_corpus(folder, DataSpec.model_validate(spec))
    return sample


# --- encodings


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "gbk", "utf-16"])
def test_a_table_is_read_in_the_encoding_that_is_said(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "u.csv").write_bytes(WORDS.encode(encoding))
    corpus = open_corpus(tmp_path, DataSpec.model_validate(SPOKEN | {"encoding": encoding}))
    assert corpus.info["sentences"] == {"c1": ["It’s fine", "“No”"]}


@pytest.mark.parametrize("said", ["utf-8", "UTF8", "utf-8-sig"])
def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path, said: str) -> None:
    (tmp_path / "u.csv").write_bytes(WORDS.encode("utf-8-sig"))
    assert next(iter(read_table(tmp_path / "u.csv", said))) == "call"


@pytest.mark.parametrize(
    ("content", "encoding", "message"),
    [
        (WORDS.encode("cp1252"), "utf-8-sig", r"u\.csv: row 2, byte 14 is 0x92, which .*data\.encoding: cp1252 or gbk"),
        (WORDS.encode("utf-16"), "utf-8-sig", r"row 1, byte 1 is 0xff, .*data\.encoding: utf-16"),
        (("x" * 40000 + "\n").encode() + b"ab\x81", "cp1252", "row 2, byte 3 is 0x81"),
        (b"a,b\n", "base64", "data.encoding 'base64' is not an encoding"),
        (b"a,b\n", "latin-one", "data.encoding 'latin-one' is not an encoding"),
    ],
)
def test_what_is_not_text_in_an_encoding_is_found(tmp_path: Path, content: bytes, encoding: str, message: str) -> None:
    (tmp_path / "u.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_table(tmp_path / "u.csv", encoding)


def test_json_lines_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    line = json.dumps({"dialogue": "d", "utterances": [{"label": "joy", "text": [1.0]}]})
    (tmp_path / "d.jsonl").write_bytes((line + "\n").encode("utf-8-sig"))
    assert [s.id for s in open_corpus(tmp_path / "d.jsonl")] == ["d"]


# --- separators


@pytest.mark.parametrize(("ending", "mark"), [("csv", ","), ("csv", ";"), ("csv", "\t"), ("tsv", "\t")])
def test_the_separator_of_a_table_is_recognised(tmp_path: Path, ending: str, mark: str) -> None:
    (tmp_path / f"u.{ending}").write_text(f"call{mark}words\nc1{mark}yes\n")
    assert read_table(tmp_path / f"u.{ending}") == {"call": ["c1"], "words": ["yes"]}


def test_another_separator_can_be_said(tmp_path: Path) -> None:
    (tmp_path / "u.csv").write_text("call|mood|f0,st\nc1|joy|1\n")
    assert only_sample(tmp_path, **FEATURES, separator="|", audio={"columns": "f0,st"}).inputs["audio"].tolist() == [
        [1]
    ]


# --- rows that are read where they lie

SAID = ["one", "two\nlines", "a, comma", "", "§ “five”", "six"]
ROWS = [("ab"[i % 2], str(9 - i), text) for i, text in enumerate(SAID)]


def text_table(folder: Path, encoding: str, ends: str, rows: Any = ROWS) -> DataSpec:
    with (folder / "u.csv").open("w", newline="", encoding=encoding) as stream:
        csv.writer(stream, lineterminator=ends, quoting=csv.QUOTE_ALL).writerows([("call", "turn", "words"), *rows])
    return DataSpec(table="u.csv", dialogue="call", order="turn", sentence="words", encoding=encoding)


def parquet_table(folder: Path, _encoding: str, _ends: str, rows: Any = ROWS) -> DataSpec:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = dict(zip(("call", "turn", "words"), map(list, zip(*rows, strict=True)), strict=True))
    parquet.write_table(arrow.table(columns), folder / "u.parquet", row_group_size=2)
    return DataSpec(table="u.parquet", dialogue="call", order="turn", sentence="words")


@pytest.mark.parametrize(
    ("write", "encoding", "ends"),
    [
        *((text_table, "utf-8", ends) for ends in ("\n", "\r\n", "\r", "\n\n")),
        *((text_table, encoding, "\n") for encoding in ("utf-8-sig", "gbk", "utf-16", "utf-7")),
        (parquet_table, "", ""),
    ],
)
def test_rows_of_dialogues_that_are_mixed_are_found(tmp_path: Path, write: Any, encoding: str, ends: str) -> None:
    found = source(tmp_path, write(tmp_path, encoding, ends))
    for _ in range(2):
        said = {d.id: [(u.row, u.sentence) for u in d.utterances] for d in found.dialogues()}
        assert said == {n: [(i + 2, SAID[i]) for i in places] for n, places in (("a", (4, 2, 0)), ("b", (5, 3, 1)))}


@pytest.mark.parametrize("write", [text_table, parquet_table])
@pytest.mark.parametrize("rows", [ROWS[:-1], [*ROWS, ("c", "1", "more")]])
def test_a_table_that_changes_while_it_is_read_is_refused(tmp_path: Path, write: Any, rows: Any) -> None:
    found = source(tmp_path, write(tmp_path, "utf-8", "\n"))
    write(tmp_path, "utf-8", "\n", rows)
    with pytest.raises(InputError, match=r"u\.(csv|parquet) changed while it was read: start again"):
        list(found.dialogues())


@pytest.mark.parametrize("name", ["u.csv", "u.parquet"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, name: str) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "u.csv").write_text("call,call\na,b\n")
    parquet.write_table(arrow.Table.from_arrays([arrow.array(["a"])] * 2, ["call", "call"]), tmp_path / "u.parquet")
    with pytest.raises(InputError, match=r"distinct column names, it has \['call', 'call'\]"):
        read_table(tmp_path / name)


def test_turns_without_a_number_stand_last_and_large_ones_are_not_rounded(tmp_path: Path) -> None:
    turns = ["nan", str(2**53 + 1), "x", str(2**53), "", "inf", "2.5", "-1", "NaN", "-inf", "2"]
    spec = text_table(tmp_path, "utf-8", "\n", [("a", turn, "") for turn in turns])
    ((_, order),) = [(d.id, [turns[u.row - 2] for u in d.utterances]) for d in source(tmp_path, spec).dialogues()]
    assert order == ["-inf", "-1", "2", "2.5", str(2**53), str(2**53 + 1), "inf", "nan", "", "NaN", "x"]


@pytest.mark.parametrize("shape", [(3, 0), (0, 2), (2, 0, 3)])
def test_an_array_without_values_has_its_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "x.npy", np.ones(shape))
    found = open_array(tmp_path / "x.npy")
    assert (found.shape, np.asarray(found[0:2]).shape) == (shape, (min(2, shape[0]), *shape[1:]))


@pytest.mark.parametrize("kind", ["npy", "npz", "compressed", "columns first", "big-endian"])
def test_rows_of_an_array_are_read_in_any_order(tmp_path: Path, kind: str) -> None:
    values = np.random.default_rng(0).standard_normal((3000, 4, 3))
    values = {"columns first": np.asfortranarray(values), "big-endian": values.astype(">f8")}.get(kind, values)
    path = tmp_path / ("x.npz" if kind in ("npz", "compressed") else "x.npy")
    if path.suffix == ".npz":
        (np.savez if kind == "npz" else np.savez_compressed)(path, other=np.ones(3), a=values)
    else:
        np.save(path, values)
    found = open_array(path, "a")
    assert isinstance(found, FileArray) == (kind not in ("compressed", "columns first"))
    assert (found.shape, found.dtype, len(found)) == (values.shape, values.dtype, 3000)
    for first, last in ((0, 1), (1, 700), (690, 1500), (2999, 3000), (5, 5), (3, 2), (2000, 2003), (1999, 2400)):
        np.testing.assert_array_equal(found[first:last], values[first:last])
        np.testing.assert_array_equal(found[first], values[first])


def test_an_array_that_becomes_shorter_is_an_error_and_no_end_of_the_process(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((40000, 4)))
    found = open_array(tmp_path / "x.npy")
    os.truncate(tmp_path / "x.npy", 1000)
    with pytest.raises(InputError, match=r"x\.npy became shorter while it was read"):
        found[39999]


# --- features in columns


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """A table like those of OpenFace, with a space before each name and number."""
    names = "call, mood, frame, AU01_r, AU02_r, pose_Tx, f0, jitter"
    (tmp_path / "u.csv").write_text(
        f"{names}\nc1,joy, 9, 0.1, 0.2, 3.5, 100, 0.01\nc1,anger, 9, 0.3, , 4.5, 200, 1e-3\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["f0", "jitter"], [[100, 0.01], [200, 0.001]]),
        (["jitter", "f0"], [[0.01, 100], [0.001, 200]]),
        ("f0", [[100], [200]]),
        ("AU*", [[0.1, 0.2], [0.3, np.nan]]),
        ("AU02_r:f0", [[0.2, 3.5, 100], [np.nan, 4.5, 200]]),
        (["AU*", "AU01_r", "f0"], [[0.1, 0.2, 100], [0.3, np.nan, 200]]),
    ],
)
def test_features_are_columns_by_name_prefix_or_range(measured: Path, columns: Any, expected: Any) -> None:
    found = only_sample(measured, **FEATURES, audio={"columns": columns}).inputs["audio"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.asarray(expected, np.float32))


def test_a_table_with_features_describes_itself_and_is_inspected(measured: Path) -> None:
    said = FEATURES | {"vision": [{"columns": "AU01_r"}, {"columns": "pose_*"}], "audio": {"columns": "f0:jitter"}}
    (measured / "table.yaml").write_text(json.dumps(said))
    report = inspect_file(measured)
    assert {m: v["width"] for m, v in report["splits"]["all"]["modalities"].items()} == {"audio": 2, "vision": 2}
    assert set(report["files"]) == {"u.csv"}


def test_columns_are_numbers_of_the_rows_that_a_split_keeps(tmp_path: Path) -> None:
    (tmp_path / "u.csv").write_text("call;part;f0\nc1;test;1\nc2;;2\nc3;test;3\n")
    corpus = open_corpus(tmp_path, DataSpec(table="u.csv", dialogue="call", split="part", audio={"columns": "f0"}))
    assert [s.inputs["audio"].item() for s in corpus] == [1, 3]


def test_each_table_brings_its_own_columns(tmp_path: Path) -> None:
    for split, value in (("train", 1), ("test", 2)):
        (tmp_path / f"{split}.csv").write_text(f"call,f0\nc1,{value}\n")
    spec = DataSpec(table="{split}.csv", splits=("train", "test"), dialogue="call", audio={"columns": "f0"})
    assert [s.inputs["audio"].item() for s in open_corpus(tmp_path, spec)] == [1, 2]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"columns": "f1"}, "no columns 'f1'"),
        ({"columns": "LPC*"}, r"no columns 'LPC\*'"),
        ({"columns": "jitter:f0"}, "no columns 'jitter:f0'"),
        ({"columns": "mood"}, "row 2 of the table: column mood holds 'joy', it must be a number"),
    ],
)
def test_columns_that_are_not_numbers_are_named(measured: Path, columns: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        only_sample(measured, **FEATURES, audio=columns)


@pytest.mark.parametrize("given", [{}, {"file": "a.npy", "columns": "f0"}, {"columns": "f0", "keys": "k"}])
def test_a_source_is_a_file_or_columns(measured: Path, given: Any) -> None:
    (measured / "table.yaml").write_text(json.dumps(FEATURES | {"audio": given}))
    with pytest.raises(InputError, match="audio"):
        open_corpus(measured)


def test_where_an_array_lies_is_asked_for_each_file_and_not_for_each_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    path, spec = Reach.path, DataSpec.model_validate({"table": "u.csv", "dialogue": "call", "text": {"file": "t.npy"}})
    monkeypatch.setattr(Reach, "path", lambda *a, **k: (asked.append(str(a[1])), path(*a, **k))[1])
    counts = []
    for rows in (2, 20):
        np.save(tmp_path / "t.npy", np.ones((rows, 3), np.float32))
        (tmp_path / "u.csv").write_text("call\n" + "".join(f"c{i}\n" for i in range(rows)))
        asked.clear()
        open_corpus(tmp_path, spec)
        counts.append(asked.count("t.npy"))
    assert counts[0] == counts[1] > 0
