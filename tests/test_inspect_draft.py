"""`mer inspect` on what nothing describes: it says what is lacking, and its draft works when pasted."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import Mer

from mer_export.data.draft import draft
from mer_export.data.inspect import inspect_file
from mer_export.data.open import open_corpus
from mer_export.data.spec import DataSpec
from mer_export.errors import InputError

CLIPS = (
    "clip_id,speaker_id,Emotion,set,transcript,age\nc1,1,joy,train,So good to see,31\nc2,2,anger,test,Go away now,24\n"
)


def arrays(folder: Path, **named: np.ndarray) -> None:
    np.savez(folder / "features.npz", **named)


def test_a_table_and_arrays_without_a_description_are_told_what_they_lack(mer: Mer, tmp_path: Path) -> None:
    (tmp_path / "clips.csv").write_text(CLIPS)
    arrays(tmp_path, text_minilm=np.ones((2, 4)), audio=np.ones((2, 3)), other=np.ones((2, 2)), few=np.ones((1, 2)))
    code, out, _ = mer("inspect", tmp_path)
    assert code == 0
    assert "clips.csv looks like a table: write table.yaml, for example" in out
    pasted = out.split("\n\n")[1]
    assert pasted.strip() == draft(tmp_path).strip() == mer("inspect", tmp_path, "--draft")[1].strip()
    (tmp_path / "table.yaml").write_text(pasted)
    assert yaml.safe_load(pasted) == {
        "table": "clips.csv",
        "unit": "utterance",
        "speaker": "speaker_id",
        "label": "Emotion",
        "split": "set",
        "sentence": "transcript",
        "utterance": "clip_id",
        "text": {"file": "features.npz", "array": "text_minilm"},
        "audio": {"file": "features.npz", "array": "audio"},
    }
    assert "# not used: age" in pasted
    corpus = open_corpus(tmp_path)
    assert {n: [s.id for s in samples] for n, samples in corpus.splits.items()} == {"train": ["c1"], "test": ["c2"]}


def test_a_draft_looks_at_shapes_and_reads_no_values(tmp_path: Path) -> None:
    (tmp_path / "clips.csv").write_text(CLIPS)
    np.savez_compressed(tmp_path / "features.npz", audio=np.random.default_rng(0).random((2, 3000)))
    content = bytearray((tmp_path / "features.npz").read_bytes())
    content[len(content) // 2 : -500] = bytes(len(content) - 500 - len(content) // 2)
    (tmp_path / "features.npz").write_bytes(content)
    assert "audio: {file: features.npz, array: audio}" in draft(tmp_path)


def test_training_on_it_says_the_same_in_one_sentence(mer: Mer, tmp_path: Path) -> None:
    (tmp_path / "clips.csv").write_text(CLIPS)
    code, _, err = mer("train", "emt", "--data", tmp_path, "--out", tmp_path / "run")
    assert code == 2
    assert f"has clips.csv and no table.yaml: `mer inspect {tmp_path} --draft` drafts one" in err


@pytest.mark.parametrize(
    ("header", "row", "section"),
    [
        ("video,segment,sentiment,f0", "v,1,0.5,1", {"dialogue": "video", "score": "sentiment", "order": "segment"}),
        ("Dialogue_ID,Utterance_ID,Utterance,Emotion,Sentiment", "0,0,oh my god,joy,positive", {"label": "Emotion"}),
        ("season,episode,scene,who,label", "1,2,3,Ann,joy", {"dialogue": ["season", "episode", "scene"]}),
        ("id,label,score,a1,a2", "u,1,0.3,1,2", {"label": "label", "audio": {"columns": "a1:a2"}}),
        ("id,label,v_1,AU01_r,AU02_r", "u,x,1,1,2", {"vision": {"columns": "v_1:AU02_r"}}),
        ("clip,label,start,end", f"a.wav,x,{'9' * 5000}:01:02,2", {"recording": "clip"}),
        ("id,label,AU01,age,AU02", "u,x,1,30,2", {"vision": {"columns": ["AU01", "AU02"]}}),
    ],
)
def test_columns_are_known_by_the_names_that_people_give_them(
    tmp_path: Path, header: str, row: str, section: dict[str, object]
) -> None:
    (tmp_path / "u.csv").write_text(f"{header}\n{row}\n")
    found = yaml.safe_load(draft(tmp_path))
    assert section.items() <= found.items()
    (tmp_path / "table.yaml").write_text(draft(tmp_path))
    assert sum(map(len, open_corpus(tmp_path).splits.values())) == 1


def test_a_table_for_each_split_and_sequences_with_offsets_are_seen(tmp_path: Path) -> None:
    for name, offsets in (("train", [0, 1, 2, 5]), ("test", [0, 2, 5])):
        rows = "".join(f"c1,{i},joy\n" for i in range(len(offsets) - 1))
        (tmp_path / f"{name}.csv").write_text(f"call,turn,emotion\n{rows}")
        np.savez(tmp_path / f"frames_{name}.npz", audio=np.ones((5, 3)), audio_offsets=np.asarray(offsets))
    found = yaml.safe_load(draft(tmp_path))
    assert (found["table"], found["splits"], found["unit"]) == ("{split}.csv", ["train", "test"], "utterance")
    assert found["audio"] == {"file": "frames_{split}.npz", "array": "audio", "offsets": "audio_offsets"}
    (tmp_path / "table.yaml").write_text(draft(tmp_path))
    assert [s.inputs["audio"].shape for s in open_corpus(tmp_path).split("test")] == [(2, 3), (3, 3)]


def test_what_a_draft_cannot_tell_is_left_open_in_a_comment(tmp_path: Path) -> None:
    (tmp_path / "u.csv").write_text("code,f0\nx,1\ny,2\n")
    text = draft(tmp_path)
    for role in ("dialogue", "label", "split"):
        assert f"# {role}: none of the columns looks like one" in text
    with pytest.raises(InputError, match="holds no table"):
        draft(tmp_path / "nothing.txt")


def test_inspect_reads_as_it_is_told(mer: Mer, tmp_path: Path) -> None:
    (tmp_path / "clips.csv").write_text(CLIPS.replace(",", "|"))
    told = ["--set", "data.table=clips.csv", "--set", "data.label=Emotion", "--set", "data.unit=utterance"]
    code, out, _ = mer("inspect", tmp_path, *told, "--set", "data.separator='|'", "--json")
    assert (code, json.loads(out)["labels"]) == (0, ["anger", "joy"])
    code, _, err = mer("inspect", tmp_path, "--set", "data.table=clips.csv", "--set", "data.dataset=mosi")
    assert (code, "does not read it" in err) == (2, True)
    assert "separator: '|'" in draft(tmp_path, DataSpec(separator="|"))


def test_a_draft_is_made_in_the_encoding_that_is_told(mer: Mer, tmp_path: Path) -> None:
    (tmp_path / "clips.csv").write_bytes(CLIPS.replace("So good", "It’s good").encode("cp1252"))
    assert mer("inspect", tmp_path)[0] == 2
    for words in (["--draft"], []):
        code, out, _ = mer("inspect", tmp_path, "--set", "data.encoding=cp1252", *words)
        assert (code, "encoding: cp1252" in out) == (0, True)


@pytest.mark.parametrize("ending", [".json", ".pkl"])
def test_a_vocabulary_is_not_a_difficulty_file(tmp_path: Path, ending: str) -> None:
    def kind(content: dict[str, object]) -> str:
        path = tmp_path / f"x{ending}"
        path.write_bytes(json.dumps(content).encode() if ending == ".json" else pickle.dumps(content, protocol=4))
        return str(inspect_file(path)["kind"])

    assert kind({"<s>": 0, "good": 1, "bad": 2}) == "vocabulary"
    assert kind({"good": 12, "bad": 7}) == ending.removeprefix(".").replace("pkl", "pickle")
    assert kind({"d1": 0.5, "d2": 1}) == "difficulty file"
    assert kind({"d1": 0.5, "d2": 10**400}) == ending.removeprefix(".").replace("pkl", "pickle")


def test_a_conversion_ends_in_parquet(mer: Mer, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "clips.csv").write_text(CLIPS)
    arrays(tmp_path, audio=np.ones((2, 3)))
    (tmp_path / "table.yaml").write_text(draft(tmp_path))
    code, out, _ = mer("data", "convert", tmp_path, "--out", tmp_path / "clips")
    assert (code, (tmp_path / "clips.parquet").is_file()) == (0, True)
    assert "clips.parquet: 2 utterances" in out
    code, _, err = mer("data", "convert", tmp_path, "--out", tmp_path / "clips.json")
    assert (code, "name it" in err) == (2, True)
    assert open_corpus(tmp_path / "clips.parquet").split("test")[0].units == ("c2",)
