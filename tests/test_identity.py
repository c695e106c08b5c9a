"""One name is one dialogue and one utterance: what comes twice is named, in every source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mer_export.data.open import open_corpus, stream_samples
from mer_export.data.spec import DataSpec
from mer_export.errors import InputError

SCENES = """season,episode,scene,turn,who,mood
1,1,1,1,Ann,joy
1,1,1,2,Bob,joy
1,2,1,1,Ann,anger
1,2,1,2,Bob,anger
"""
MAPPING: dict[str, Any] = {
    "table": "u.csv",
    "dialogue": ["season", "episode", "scene"],
    "order": "turn",
    "utterance": "turn",
    "speaker": "who",
    "label": "mood",
}


def scenes(folder: Path) -> Path:
    (folder / "u.csv").write_text(SCENES)
    return folder


def lines(path: Path, *dialogues: tuple[str, str, list[str]], unit: str = "dialogue") -> Path:
    """JSON lines of (dialogue, split, ids of its utterances)."""
    said = [
        {"dialogue": d, "split": s, "utterances": [{"id": u, "label": "joy", "text": [1.0]} for u in ids]}
        for d, s, ids in dialogues
    ]
    path.write_text("\n".join(json.dumps(line) for line in [{"unit": unit, "labels": ["joy"]}, *said]))
    return path


def test_a_dialogue_may_be_named_by_several_columns(tmp_path: Path) -> None:
    corpus = open_corpus(scenes(tmp_path), DataSpec.model_validate(MAPPING))
    assert [s.id for s in corpus] == ["1/1/1", "1/2/1"]
    assert [s.units for s in corpus] == [("1/1/1/1", "1/1/1/2"), ("1/2/1/1", "1/2/1/2")]


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    spec = DataSpec.model_validate(MAPPING | {"dialogue": ["season", "part"]})
    with pytest.raises(InputError, match=r"no column 'part' \(data\.dialogue\)"):
        open_corpus(scenes(tmp_path), spec)


@pytest.mark.parametrize("unit", ["dialogue", "utterance"])
def test_a_repeated_utterance_of_a_table_is_an_error(tmp_path: Path, unit: str) -> None:
    spec = DataSpec.model_validate(MAPPING | {"dialogue": "scene", "unit": unit})
    with pytest.raises(InputError, match=r"utterance '1/1' of dialogue '1' is there twice.*data\.dialogue"):
        open_corpus(scenes(tmp_path), spec)


def test_names_that_only_look_alike_when_joined_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "u.csv").write_text("a,b,mood\n1/2,3,joy\n1,2/3,joy\n")
    spec = DataSpec.model_validate({"table": "u.csv", "dialogue": ["a", "b"], "label": "mood"})
    with pytest.raises(InputError, match="dialogue '1/2/3' is there twice"):
        open_corpus(tmp_path, spec)


def test_utterances_of_a_dialogue_may_be_divided_where_they_stand_alone(tmp_path: Path) -> None:
    path = lines(tmp_path / "d.jsonl", ("d", "train", ["a"]), ("d", "test", ["b"]), unit="utterance")
    assert [s.id for s in open_corpus(path)] == ["a", "b"]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("unit", "dialogues", "message"),
    [
        ("dialogue", [("d", "train", ["a"]), ("e", "train", ["b"]), ("d", "train", ["c"])], "dialogue 'd' is there"),
        ("dialogue", [("d", "train", ["a"]), ("e", "train", ["b"]), ("d", "test", ["c"])], "dialogue 'd' is there"),
        ("dialogue", [("d", "train", ["a", "b", "a"])], "utterance 'a' of dialogue 'd' is there twice"),
        ("utterance", [("d", "train", ["a"]), ("e", "test", ["b"]), ("d", "test", ["a"])], "'a' of dialogue 'd'"),
    ],
)
def test_what_comes_twice_in_a_file_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, unit: str, dialogues: Any, message: str
) -> None:
    path = lines(tmp_path / "d.jsonl", *dialogues, unit=unit)
    if ending == "parquet":
        pytest.importorskip("pyarrow")
        path = as_parquet(path, monkeypatch)
    with pytest.raises(InputError, match=message if unit == "dialogue" or ending == "jsonl" else "is there twice"):
        list(stream_samples(path))


def as_parquet(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of somebody who does not look at names."""
    from mer_export.data.formats.parquet.writer import write_parquet

    with monkeypatch.context() as careless:
        careless.setattr("mer_export.data.open.distinct", lambda dialogues, *_: dialogues)
        write_parquet(open_corpus(path), path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")
