"""Names that data leave out or say to be null are none, and never the word for nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mer_export.data.formats.parquet.layout import KEY
from mer_export.data.formats.parquet.reader import RowReader
from mer_export.data.formats.parquet.writer import write_parquet
from mer_export.data.open import open_corpus, stream_samples
from mer_export.data.spec import DataSpec
from mer_export.errors import InputError


def line(**change: Any) -> dict[str, Any]:
    return {"dialogue": "d", "utterances": [{"label": "joy", "audio": [1.0]}]} | change


def written(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_a_null_in_a_line_is_what_is_left_out(tmp_path: Path) -> None:
    said = {"id": None, "label": "joy", "labels": None, "sentence": None, "audio": [1.0], "text": None}
    null = written(tmp_path / "null.jsonl", line(split=None, utterances=[said]))
    plain = written(tmp_path / "plain.jsonl", line())
    (one,), (other,) = open_corpus(null), open_corpus(plain)
    assert list(open_corpus(null).splits) == list(open_corpus(plain).splits) == ["all"]
    assert (one.id, one.units, one.split) == (other.id, other.units, other.split) == ("d", ("d/0",), "all")


def test_a_dialogue_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 1 is not a dialogue: it has no name, dialogue is null"):
        list(stream_samples(written(tmp_path / "x.jsonl", line(dialogue=None))))


def test_rows_of_a_table_without_a_name_are_refused_and_without_a_split_are_of_the_one(tmp_path: Path) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    source = written(tmp_path / "x.jsonl", {"labels": ["joy"]}, line())
    write_parquet(open_corpus(source), tmp_path / "x.parquet")
    table = parquet.read_table(tmp_path / "x.parquet")
    meta = json.loads(table.schema.metadata[KEY])

    def dialogues(column: str) -> list[Any]:
        place = table.schema.names.index(column)
        null = table.set_column(place, column, arrow.array([None], arrow.string()))
        return list(RowReader(DataSpec(), meta, None).dialogues(null.to_batches(), "rows"))

    assert [d.split for d in dialogues("split")] == ["all"]
    for column in ("dialogue", "utterance"):
        with pytest.raises(InputError, match=f"rows: a row has null under {column}"):
            dialogues(column)
