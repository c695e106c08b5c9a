"""Tables of dialogues: a row of each utterance, arrays beside them, and one sentence where something is wrong."""

import csv
import json

import numpy as np
import pytest
from conftest import SAMPLE_DATA

from mer_export.data.open import open_corpus
from mer_export.data.spec import DataSpec
from mer_export.errors import InputError

ROWS = [
    # dialogue, turn, who, mood, part, said: rows out of order, dialogues interleaved
    ("d1", "10", "Ann", "joy", "train", "c"),
    ("d2", "1", "Bob", "anger", "test", "x"),
    ("d1", "2", "Cid", "", "train", "b"),
    ("d1", "1", "Ann", "anger", "train", "a"),
    ("d2", "2", "Ann", "joy", "test", "y"),
]
MAPPING = {
    "table": "u.csv",
    "dialogue": "dialogue",
    "order": "turn",
    "utterance": "turn",
    "speaker": "who",
    "label": "mood",
    "split": "part",
    "sentence": "said",
    "text": [{"file": "f.npz", "array": "t1"}, {"file": "f.npz", "array": "t2"}],
    "audio": {"file": "a.npy"},
}


@pytest.fixture
def table(tmp_path):
    with (tmp_path / "u.csv").open("w", newline="") as stream:
        # More digits than Python reads as a number.
        header = ("dialogue", "turn", "who", "mood", "part", "said", "digits")
        csv.writer(stream).writerows([header, *((*row, "9" * 5000) for row in ROWS)])
    rows = np.arange(5, dtype=np.float16)[:, None]
    np.savez(tmp_path / "f.npz", t1=rows + np.zeros((5, 4), np.float16), t2=rows * 10 + np.zeros((5, 4), np.float16))
    np.save(tmp_path / "a.npy", rows + np.zeros((5, 3)))
    return tmp_path


def test_a_table_becomes_dialogues_ordered_by_turn(table):
    corpus = open_corpus(table, DataSpec.model_validate(MAPPING))
    assert list(corpus.splits) == ["train", "test"]
    assert corpus.info["labels"] == ["anger", "joy"]
    (first,) = corpus.splits["train"]
    assert first.units == ("d1/1", "d1/2", "d1/10")
    assert first.labels is not None
    assert first.labels.tolist() == [0, -1, 1]
    assert first.inputs["speaker"].tolist() == [0, 1, 0]
    assert first.inputs["text"].dtype == np.float32
    assert first.inputs["text"][:, :, 0].tolist() == [[3, 2, 0], [30, 20, 0]]
    assert first.inputs["audio"][:, 0].tolist() == [3, 2, 0]
    assert "vision" not in first.inputs
    assert corpus.info["sentences"]["d1"] == ["a", "b", "c"]


def test_a_directory_describes_itself_with_table_yaml(table):
    (table / "table.yaml").write_text(json.dumps(MAPPING))
    own = open_corpus(table)
    assert own.format == "dialogue_table"
    assert open_corpus(table, DataSpec(label_names=("joy", "anger"))).info["labels"] == ["joy", "anger"]
    (table / "table.yaml").write_text("tabel: u.csv")
    with pytest.raises(InputError, match=r"table\.yaml: tabel"):
        open_corpus(table)


def test_speakers_past_the_last_index_share_it(table):
    corpus = open_corpus(table, DataSpec.model_validate({**MAPPING, "speakers": 1}))
    assert all((s.inputs["speaker"] == 0).all() for s in corpus)


def test_features_bound_to_one_split_are_refused_with_another(table):
    bound = {"file": "a.npy", "only_with_split": ["part"]}
    spec = DataSpec.model_validate({**MAPPING, "audio": bound})
    assert open_corpus(table, spec).splits
    with pytest.raises(InputError, match=r"audio features a\.npy .* labels of part, with data\.split=said"):
        open_corpus(table, spec.model_copy(update={"split": "said"}))
    # What a data set says of its own features holds whatever a configuration leaves out.
    (table / "table.yaml").write_text(json.dumps({"audio": bound}))
    with pytest.raises(InputError, match="test labels leak"):
        open_corpus(table, DataSpec.model_validate({**MAPPING, "split": "said"}))


def test_a_table_without_labels_or_split_is_unlabelled_data(table):
    spec = DataSpec.model_validate({**MAPPING, "label": "none", "split": "neither"})
    corpus = open_corpus(table, spec, labels=["anger", "joy"])
    assert list(corpus.splits) == ["all"]
    assert all(s.labels is None for s in corpus)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dialogue": "talk"}, "no column 'talk'"),
        ({"audio": {"file": "f.npz"}}, "no array None"),
        ({"audio": {"file": "gone.npy"}}, "cannot be read"),
        ({"table": "gone.csv"}, "cannot be read"),
        ({"row": "turn"}, "asks for row 10"),
        ({"row": "who"}, "must be a row number"),
        ({"row": "digits"}, r"column digits holds '9{60}', it must be a row number"),
        ({"audio": {"file": "a.npy", "column": "digits"}}, "column digits holds no row numbers"),
        ({"split": "who"}, "belongs to one split"),
        ({"label_names": ("joy",)}, "'anger' is none of the classes"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(table, change, message):
    with pytest.raises(InputError, match=message):
        open_corpus(table, DataSpec.model_validate({**MAPPING, **change}))


def test_arrays_of_another_height_are_refused(table):
    np.save(table / "a.npy", np.zeros((6, 3)))
    with pytest.raises(InputError, match="6 rows, its table has 5"):
        open_corpus(table, DataSpec.model_validate(MAPPING))


def test_damaged_and_pickled_arrays_are_refused(table):
    np.save(table / "a.npy", np.array([{}] * 5, dtype=object))
    with pytest.raises(InputError, match="not a readable array file"):
        open_corpus(table, DataSpec.model_validate(MAPPING))
    content = (table / "f.npz").read_bytes()
    (table / "f.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="not a readable array file"):
        open_corpus(table, DataSpec.model_validate({**MAPPING, "audio": ()}))


def test_the_same_table_as_csv_tsv_and_parquet_reads_equal(table):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    names = ("dialogue", "turn", "who", "mood", "part", "said")
    (table / "u.tsv").write_text("\n".join("\t".join(r) for r in [names, *ROWS]))
    columns = dict(zip(names, zip(*ROWS, strict=True), strict=True))
    parquet.write_table(arrow.table({**columns, "turn": [int(t) for t in columns["turn"]]}), table / "u.parquet")
    first = open_corpus(table, DataSpec.model_validate(MAPPING))
    for name in ("u.tsv", "u.parquet"):
        other = open_corpus(table, DataSpec.model_validate({**MAPPING, "table": name}))
        for a, b in zip(first, other, strict=True):
            assert (a.id, a.units) == (b.id, b.units)
            np.testing.assert_array_equal(a.labels, b.labels)
            np.testing.assert_array_equal(a.inputs["text"], b.inputs["text"])


def test_one_table_and_array_file_per_split(table):
    for split, count in (("train", 3), ("dev", 2)):
        lines = ["dialogue,mood", *(f"0,{'joy' if i else 'anger'}" for i in range(count))]
        (table / f"{split}.csv").write_text("\n".join(lines))
        np.savez(table / f"x_{split}.npz", v=np.full((count, 2), count))
    spec = DataSpec.model_validate(
        {
            "table": "{split}.csv",
            "splits": ["train", "dev"],
            "dialogue": "dialogue",
            "label": "mood",
            "text": {"file": "x_{split}.npz", "array": "v"},
        }
    )
    corpus = open_corpus(table, spec)
    assert [s.id for s in corpus] == ["train/0", "dev/0"]
    assert corpus.splits["dev"][0].inputs["text"].tolist() == [[[2, 2], [2, 2]]]
    (table / "train.csv").unlink()
    assert list(open_corpus(table, spec).splits) == ["dev"]


@pytest.mark.skipif(not (SAMPLE_DATA / "mosi_utt").is_dir(), reason="the sample data are not beside the repository")
def test_mosi_reads_in_the_context_split_and_refuses_leaking_features():
    features = "features.npz"
    spec = DataSpec.model_validate(
        {
            "table": "utterances.csv",
            "dialogue": "video_id",
            "order": "segment",
            "utterance": "segment",
            "label": "label",
            "split": "split_context",
            "row": "row",
            "label_names": ["negative", "positive"],
            "text": {"file": features, "array": "text_cnn", "only_with_split": ["split_context"]},
            "audio": {"file": features, "array": "audio_opensmile"},
            "vision": {"file": features, "array": "video_3dcnn", "only_with_split": ["split_context"]},
        }
    )
    corpus = open_corpus(SAMPLE_DATA / "mosi_utt", spec)
    assert {k: sum(len(s.units) for s in v) for k, v in corpus.splits.items()} == {
        "train": 1193,
        "dev": 254,
        "test": 752,
    }
    with pytest.raises(InputError, match="leak"):
        open_corpus(SAMPLE_DATA / "mosi_utt", spec.model_copy(update={"split": "split_official"}))


@pytest.mark.skipif(not (SAMPLE_DATA / "meld_text").is_dir(), reason="the sample data are not beside the repository")
def test_meld_text_reads_with_text_only():
    spec = DataSpec.model_validate(
        {
            "table": "{split}.csv",
            "splits": ["train", "dev", "test"],
            "dialogue": "dialogue_id",
            "order": "utterance_id",
            "speaker": "speaker",
            "speakers": 9,
            "label": "emotion",
            "text": {"file": "minilm_{split}.npz", "array": "embedding"},
        }
    )
    corpus = open_corpus(SAMPLE_DATA / "meld_text", spec)
    assert {k: (len(v), max(len(s.units) for s in v)) for k, v in corpus.splits.items()} == {
        "train": (1038, 24),
        "dev": (114, 23),
        "test": (280, 33),
    }
    counts = np.bincount(np.concatenate([s.labels for s in corpus.split("test") if s.labels is not None]))
    assert dict(zip(corpus.info["labels"], counts.tolist(), strict=True)) == {
        "anger": 345,
        "disgust": 68,
        "fear": 50,
        "joy": 402,
        "neutral": 1256,
        "sadness": 208,
        "surprise": 281,
    }
