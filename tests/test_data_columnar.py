"""Parquet: what goes in comes out, in bounded memory, and a damaged file is an input error."""

import itertools
import json
import tracemalloc

import numpy as np
import pytest

from mer_export.data.formats.parquet import layout
from mer_export.data.formats.parquet.writer import write_parquet
from mer_export.data.inspect import inspect_file
from mer_export.data.open import open_corpus, stream_samples
from mer_export.data.samples import Corpus, Sample
from mer_export.data.spec import DataSpec
from mer_export.data.synthetic import synthesise
from mer_export.errors import InputError, UsageError

arrow = pytest.importorskip("pyarrow")


def _equal(a: Sample, b: Sample) -> None:
    assert (a.id, a.units, set(a.inputs)) == (b.id, b.units, set(b.inputs))
    for name, array in a.inputs.items():
        assert array.dtype == b.inputs[name].dtype
        np.testing.assert_array_equal(array, b.inputs[name])
    np.testing.assert_array_equal(a.labels, b.labels)


@pytest.mark.parametrize("dataset", ["iemocap", "meld"])
def test_pickles_to_parquet_and_back_gives_equal_samples(tmp_path, dataset, monkeypatch):
    monkeypatch.setattr(layout, "GROUP_BYTES", 9000)
    monkeypatch.setattr(layout, "BATCH_ROWS", 7)
    synthesise("cmerc", dataset, tmp_path / "in", dialogues=12, text_dim=8, audio_dim=9, vision_dim=10)
    corpus = open_corpus(tmp_path / "in")
    assert write_parquet(corpus, tmp_path / "x.parquet") == sum(len(s.units) for s in corpus)
    again = open_corpus(tmp_path / "x.parquet")
    assert list(again.splits) == list(corpus.splits)
    for split, samples in corpus.splits.items():
        for a, b, c in itertools.zip_longest(
            samples, again.splits[split], stream_samples(tmp_path / "x.parquet", split=split)
        ):
            _equal(a, b)
            _equal(a, c)
    for key in ("labels", "speakers", "sentences"):
        assert again.info[key] == corpus.info[key]


def test_missing_modalities_unknown_labels_and_no_labels_survive(tmp_path):
    audio = np.array([[np.nan, np.inf]], np.float32)
    full = Sample("a", {"text": np.ones((2, 1, 3), np.float32), "audio": audio}, ("x",), np.array([-1]))
    bare = Sample("b", {"audio": audio, "speaker": np.array([1])}, ("y",), None)
    write_parquet(Corpus({"all": [full, bare]}, "test", {"labels": ["joy"]}), tmp_path / "x.parquet")
    for a, b in zip((full, bare), stream_samples(tmp_path / "x.parquet"), strict=True):
        _equal(a, b)


def test_classes_are_matched_by_name_with_the_model(tmp_path):
    sample = Sample("a", {"audio": np.zeros((2, 1), np.float32)}, ("x", "y"), np.array([0, 1]))
    write_parquet(Corpus({"all": [sample]}, "test", {"labels": ["joy", "sad"]}), tmp_path / "x.parquet")
    (turned,) = stream_samples(tmp_path / "x.parquet", labels=["sad", "joy"])
    assert turned.labels is not None
    assert turned.labels.tolist() == [1, 0]
    with pytest.raises(InputError, match=r"sad.*none of the classes"):
        list(stream_samples(tmp_path / "x.parquet", labels=["joy"]))


def test_streaming_holds_a_part_of_the_file_at_a_time(tmp_path):
    rng = np.random.default_rng(0)
    audio = [rng.normal(size=(20, 400)).astype(np.float32) for _ in range(1600)]  # 51 MB of features
    samples = [Sample(f"d{i}", {"audio": a}, tuple(map(str, range(20)))) for i, a in enumerate(audio)]
    write_parquet(Corpus({"all": samples}, "test"), tmp_path / "x.parquet")
    before = arrow.total_allocated_bytes()
    stream = stream_samples(tmp_path / "x.parquet")
    next(stream)
    tracemalloc.start()
    highest = 0
    count = 1
    for _ in stream:
        count += 1
        highest = max(highest, arrow.total_allocated_bytes() - before)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 1600
    assert peak < 5e6, peak
    assert highest < 15e6, highest


def test_a_failed_write_leaves_the_old_file(tmp_path):
    good = Sample("a", {"audio": np.zeros((1, 2), np.float32)}, ("x",))
    wide = Sample("b", {"audio": np.zeros((1, 3), np.float32)}, ("y",))
    write_parquet(Corpus({"all": [good]}, "test"), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="b: audio is 3 wide, others have 2"):
        write_parquet(Corpus({"all": [good, wide]}, "test"), tmp_path / "x.parquet")
    assert [s.id for s in stream_samples(tmp_path / "x.parquet")] == ["a"]
    assert [p.name for p in tmp_path.iterdir()] == ["x.parquet"]


def test_damaged_and_foreign_files_are_input_errors(tmp_path):
    from pyarrow import parquet

    path = tmp_path / "x.parquet"
    sample = Sample("a", {"audio": np.random.default_rng(0).normal(size=(300, 9)).astype(np.float32)}, ("x",) * 300)
    write_parquet(Corpus({"all": [sample]}, "test"), path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="not a readable Parquet"):
        list(stream_samples(path))
    path.write_bytes(content[:200] + bytes(2000) + content[2200:])
    with pytest.raises(InputError, match="damaged"):
        list(stream_samples(path))
    parquet.write_table(arrow.table({"a": [1]}), path)
    with pytest.raises(InputError, match="not written by mer data convert"):
        list(stream_samples(path))
    with pytest.raises(InputError):
        inspect_file(path)


def test_scattered_dialogues_and_unknown_splits_are_refused(tmp_path):
    from pyarrow import parquet

    path = tmp_path / "x.parquet"
    samples = [Sample(n, {"audio": np.zeros((2, 2), np.float32)}, ("x", "y")) for n in "ab"]
    write_parquet(Corpus({"all": samples}, "test"), path)
    with pytest.raises(UsageError, match="no split 'dev'"):
        list(stream_samples(path, split="dev"))
    table = parquet.read_table(path)
    stray = table.set_column(table.schema.names.index("split"), "split", [["all", "all", "test", "test"]])
    for size in (2, 4):
        parquet.write_table(stray, path, row_group_size=size)
        with pytest.raises(InputError, match=r"has rows of the split 'test', its metadata say \['all'\]: convert"):
            list(stream_samples(path, split="all"))
    parquet.write_table(table.take([0, 2, 1, 3]), path)
    with pytest.raises(InputError, match="not together and in order"):
        list(stream_samples(path))


@pytest.mark.parametrize(
    ("system", "dataset", "settings"),
    [
        ("emt", "mosi", {"text_len": 8, "audio_len": 6, "vision_len": 5}),
        ("mtee", "mosei_emo", {"text_dim": 6, "audio_dim": 5, "vision_dim": 4, "steps": 6}),
        ("tab", "iemocap", {"width": 6, "sizes": [1], "text_vocabulary": 60, "audio_vocabulary": 70}),
        ("facialmmt", "meld", {"audio_dim": 5, "vision_dim": 4, "caches": True, "image_size": 8}),
    ],
)
def test_the_samples_of_every_authors_format_come_back(system, dataset, settings, tmp_path):
    if system == "mtee":
        pytest.importorskip("h5py", reason="CMU-MOSEI's files are HDF5")
    synthesise(system, dataset, tmp_path / "in", dialogues=20, seed=1, **settings)
    spec = DataSpec(context={"size": 1}) if system == "tab" else DataSpec(faces={"images": True, "size": 8})
    corpus = open_corpus(tmp_path / "in", spec)
    write_parquet(corpus, tmp_path / "x.parquet")
    again = open_corpus(tmp_path / "x.parquet", spec)
    assert list(again.splits) == list(corpus.splits)
    assert again.info["labels"] == corpus.info["labels"]
    for a, b in zip(corpus, again, strict=True):
        _equal(a, b)


def test_files_of_version_1_are_still_read(tmp_path):
    from pyarrow import parquet

    columns = {
        "dialogue": ["a", "a"],
        "index": arrow.array([0, 1], arrow.int32()),
        "utterance": ["a/0", "a/1"],
        "split": ["test", "test"],
        "speaker": [0, 1],
        "label": [1, -1],
        "sentence": ["oh", None],
        **{n: arrow.array(v, arrow.list_(arrow.float32())) for n, v in {"text_0": [[1, 2], [3, 4]]}.items()},
        **{n: arrow.array(v, arrow.list_(arrow.float32())) for n, v in {"text_1": [[5, 6], [7, 8]]}.items()},
        "audio": arrow.array([[9], [10]], arrow.list_(arrow.float32())),
    }
    meta = {"version": 1, "labels": ["sad", "joy"], "speakers": 2, "splits": ["train", "test"]}
    meta |= {"dims": {"text": 2, "audio": 1}, "text_vectors": 2, "source_format": "cmerc"}
    table = arrow.table(columns).replace_schema_metadata({"mer": json.dumps(meta)})
    parquet.write_table(table, tmp_path / "x.parquet")
    corpus = open_corpus(tmp_path / "x.parquet")
    assert list(corpus.splits) == ["train", "test"]
    (sample,) = corpus.split("test")
    assert sample.inputs["text"].tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    assert sample.inputs["audio"].tolist() == [[9], [10]]
    assert sample.inputs["speaker"].tolist() == [0, 1]
    assert sample.labels.tolist() == [1, -1]
    assert corpus.info["sentences"] == {"a": ["oh", ""]}
