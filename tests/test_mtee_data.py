"""Utterance sets of MTEE: read as published, hostile or damaged ones refused in one sentence."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mer_export.data.formats.mtee import shots
from mer_export.data.formats.mtee.reader import FACET_WARNING, IEMOCAP_LABELS, MOSEI_LABELS
from mer_export.data.formats.pickle_writer import dump_plain
from mer_export.data.inspect import inspect_file
from mer_export.data.open import known_format, open_corpus, stream_samples
from mer_export.data.spec import DataSpec
from mer_export.data.synthetic import synthesise
from mer_export.data.word_vectors import read_word_vectors
from mer_export.errors import InputError, UsageError
from mer_export.models.mtee.emotions import look_up
from mer_export.untrusted.hdf5 import load_hdf5, save_hdf5
from mer_export.untrusted.pickles import load_pickle

pytest.importorskip("h5py", reason="CMU-MOSEI's files are HDF5")
SMALL = {"text_dim": 6, "audio_dim": 5, "vision_dim": 4, "word_dim": 7, "steps": 5}


@pytest.fixture(scope="module")
def mosei(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mosei")
    synthesise("mtee", "mosei_emo", folder, 400, seed=1, **SMALL)
    return folder


@pytest.fixture(scope="module")
def iemocap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("iemocap")
    synthesise("mtee", "iemocap", folder, 200, seed=1, **SMALL)
    return folder


def spec(**emotions: Any) -> DataSpec:
    return DataSpec(emotions=emotions)


def labels_of(corpus: Any, split: str) -> np.ndarray:
    return np.concatenate([s.labels for s in corpus.split(split)])


@pytest.mark.parametrize("k", range(6))
def test_zero_shot_on_mosei_takes_the_emotion_out_of_every_split(mosei: Path, k: int) -> None:
    whole, held = open_corpus(mosei, spec()), open_corpus(mosei, spec(zsl=k))
    for split in ("train", "valid", "test"):
        before = labels_of(whole, split)
        kept = shots.without_positives(before, k)
        assert np.array_equal(labels_of(held, split), np.delete(before[kept], k, axis=1))
        assert [s.id for s in held.split(split)] == [f"{split}/{i}" for i in kept]
    assert held.info["labels"] == [n for i, n in enumerate(MOSEI_LABELS) if i != k]


@pytest.mark.parametrize("k", range(6))
def test_few_shot_on_mosei_keeps_a_hundredth_and_one_more_in_training_only(mosei: Path, k: int) -> None:
    whole, few = open_corpus(mosei, spec()), open_corpus(mosei, spec(fsl=k))
    positives = int(labels_of(whole, "train")[:, k].sum())
    assert labels_of(few, "train")[:, k].sum() == -(-positives // 100) + 1
    assert len(labels_of(few, "train")) == len(labels_of(whole, "train")) - positives + -(-positives // 100) + 1
    assert np.array_equal(labels_of(few, "test"), labels_of(whole, "test"))
    both = labels_of(open_corpus(mosei, spec(fsl=k, balanced=True)), "train")[:, k]
    assert both.sum() == (both == 0).sum() == -(-positives // 100) + 1


def test_few_shot_counts_its_index_after_zero_shot(mosei: Path) -> None:
    corpus = open_corpus(mosei, spec(zsl=0, fsl=0))
    assert corpus.info["labels"][0] == "disgust"
    assert labels_of(corpus, "train")[:, 0].sum() < 10 < labels_of(corpus, "train")[:, 1].sum()


@pytest.mark.parametrize(("k", "label"), [(1, "excited"), (4, "surprised"), (5, "frustrated")])
def test_zero_shot_on_iemocap_adds_a_class_to_every_split(iemocap: Path, k: int, label: str) -> None:
    four, five = open_corpus(iemocap, spec()), open_corpus(iemocap, spec(zsl=k))
    assert five.info["labels"] == [*IEMOCAP_LABELS, label]
    for split in ("train", "valid", "test"):
        before, after = labels_of(four, split), labels_of(five, split)
        assert np.array_equal(after[: len(before), :4], before)
        assert not after[: len(before), 4].any()
        assert after[len(before) :].tolist() == [[0, 0, 0, 0, 1]] * (len(after) - len(before))
    assert len(labels_of(five, "train")) > len(labels_of(four, "train"))


@pytest.mark.parametrize(
    ("emotions", "sentence"),
    [
        ({"zsl": 6}, r"zsl is 6, mosei_emo has 0\.\.5"),
        ({"fsl": 6}, r"fsl is 6, there are 0\.\.5"),
        ({"zsl": 1, "fsl": 5}, r"fsl is 5, there are 0\.\.4"),
    ],
)
def test_an_index_that_does_not_exist_is_refused(mosei: Path, emotions: dict[str, int], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        open_corpus(mosei, spec(**emotions))


def test_indices_that_the_original_ignores_are_refused(iemocap: Path) -> None:
    with pytest.raises(UsageError, match="has no few-shot protocol, the original ignores the index"):
        open_corpus(iemocap, spec(fsl=1))
    with pytest.raises(UsageError, match="'sad', which is one of the four classes already"):
        open_corpus(iemocap, spec(zsl=3))


def test_a_model_of_some_emotions_reads_their_columns(mosei: Path) -> None:
    chosen = ["sad", "anger"]
    assert np.array_equal(
        labels_of(open_corpus(mosei, spec(), chosen), "test"), labels_of(open_corpus(mosei, spec()), "test")[:, [4, 0]]
    )
    with pytest.raises(InputError, match=r"has no labels \['bored'\]"):
        open_corpus(mosei, spec(), ["sad", "bored"])


def test_a_pickle_of_some_phases_gives_those(iemocap: Path, tmp_path: Path) -> None:
    content = load_pickle(iemocap / "iemocap_data.pkl")
    for kept in (("train",), ("test", "train")):
        (tmp_path / "iemocap_data.pkl").write_bytes(dump_plain({p: content[p] for p in kept}))
        found = open_corpus(tmp_path, spec())
        assert set(found.splits) == set(kept)
        assert np.array_equal(labels_of(found, "train"), labels_of(open_corpus(iemocap, spec()), "train"))
    (tmp_path / "iemocap_data.pkl").write_bytes(dump_plain({"dev": content["test"]}))
    with pytest.raises(InputError, match="has no phase 'train'"):
        open_corpus(tmp_path, spec())


def test_inspect_counts_every_label(mosei: Path) -> None:
    report = inspect_file(mosei, DataSpec())
    counts = labels_of(open_corpus(mosei, spec()), "train").sum(0)
    assert report["splits"]["train"]["labels"] == {n: int(c) for n, c in zip(MOSEI_LABELS, counts, strict=True)}
    assert report["splits"]["train"]["modalities"]["text"]["steps"] == [5, 5]


class Hostile:
    def __reduce__(self) -> Any:
        return (print, ("this must not run",))


def write_cache(folder: Path, name: str = "mosi_20_train.pt", kind: str = "MOSI", **content: Any) -> Path:
    """A plain pickle of an object of `src.dataset.<kind>`, as the public code writes it."""
    module, theirs = types.ModuleType("src.dataset"), type(kind, (), {"__module__": "src.dataset"})
    setattr(module, kind, theirs)
    cache = theirs()
    cache.__dict__.update(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "src", types.ModuleType("src"))
        patch.setitem(sys.modules, "src.dataset", module)
        (folder / name).write_bytes(pickle.dumps(cache, protocol=4))
    return folder / name


def test_a_cache_of_a_sentiment_set_is_read_with_its_ids(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    features = {m: torch.randn(2, 20, n) for m, n in (("text", 3), ("audio", 2), ("vision", 35))}
    ids = [np.array([b"video", b"0.1", b"2.5"]), np.array([b"video", b"2.5", b"4"])]
    write_cache(tmp_path, **features, labels=torch.tensor([[[1.4]], [[-3.0]]]), id=ids)
    corpus = open_corpus(tmp_path, spec(steps=20))
    assert corpus.info == {
        "dataset": "mosi",
        "labels": [],
        "warnings": [FACET_WARNING],
        "extractors": {},
    }
    assert [s.id for s in corpus.split("train")] == ["train/video_0.1_2.5", "train/video_2.5_4"]
    assert np.allclose(labels_of(corpus, "train"), [1.4, -3.0])
    assert np.array_equal(corpus.split("train")[0].inputs["audio"], features["audio"][0].numpy())
    write_cache(tmp_path, **features, labels=Hostile(), id=ids)
    with pytest.raises(InputError, match=r"it holds builtins\.print, which is not plain data"):
        open_corpus(tmp_path, spec(steps=20))
    assert "must not run" not in capfd.readouterr().out


def test_minus_infinity_in_audio_becomes_zero_and_nothing_else_does(mosei: Path, tmp_path: Path) -> None:
    from mer_export.untrusted.hdf5 import load_hdf5, save_hdf5

    for file in mosei.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for name in ("audio_test.h5", "text_test_emb.h5"):
        array = load_hdf5(mosei / name, "d1")
        array[0, 0, :2] = [-np.inf, np.inf]
        (tmp_path / name).unlink()
        save_hdf5(tmp_path / name, "d1", array)
    first = open_corpus(tmp_path, spec()).split("test")[0]
    assert first.inputs["audio"][0, :2].tolist() == [0, np.inf]
    assert first.inputs["text"][0, :2].tolist() == [-np.inf, np.inf]


@pytest.mark.parametrize("aligned", [True, False])
def test_zero_rows_at_the_ends_are_left_out_where_that_is_asked_for_and_nowhere_else(
    mosei: Path, tmp_path: Path, aligned: bool
) -> None:
    folder = tmp_path / "padded"
    shutil.copytree(mosei, folder)
    # Text is real from step 1 to 4, audio to 5 with a silent step inside, vision nowhere: one row of it stays.
    real = {"text": (1, 4), "audio": (1, 5), "video": (0, 0)}
    for name, (first, last) in real.items():
        (file,) = folder.glob(f"{name}_test*.h5")
        array = np.zeros_like(load_hdf5(file, "d1"))
        array[:, first:last] = 1
        array[:, 3] = 0 if name == "audio" else array[:, 3]
        save_hdf5(file, "d1", array)
    options = {"emotions": {"aligned": aligned}}
    for sample in open_corpus(folder, DataSpec.model_validate(options)).split("test"):
        assert {len(x) for x in sample.inputs.values()} == {array.shape[1]}
    trimmed = open_corpus(folder, DataSpec.model_validate(options | {"trim_zeros": True})).split("test")
    lengths = {"text": 4, "audio": 4, "vision": 4} if aligned else {"text": 3, "audio": 4, "vision": 1}
    for sample in trimmed:
        assert {m: len(x) for m, x in sample.inputs.items()} == lengths
        assert sample.inputs["text"][:3].all()
        assert not sample.inputs["audio"][2].any()


def test_damaged_and_incomplete_files_are_named(mosei: Path, tmp_path: Path) -> None:
    for file in mosei.iterdir():
        if "valid" not in file.name and "train" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert list(open_corpus(tmp_path, spec()).splits) == ["test"]
    (tmp_path / "ey_test.h5").write_bytes(b"\x89HDF and nothing more")
    with pytest.raises(InputError, match=r"ey_test\.h5 is not a readable HDF5 file"):
        open_corpus(tmp_path, spec())
    (tmp_path / "ey_test.h5").write_bytes((tmp_path / "audio_test.h5").read_bytes())
    with pytest.raises(InputError, match="test has 25 labels per sample, mosei_emo 6"):
        open_corpus(tmp_path, spec())
    (tmp_path / "ey_test.h5").unlink()
    with pytest.raises(InputError, match="holds no complete phase"):
        open_corpus(tmp_path, DataSpec(format="mtee", dataset="mosei_emo"))


def test_a_link_to_another_hdf5_file_is_not_followed(mosei: Path, tmp_path: Path) -> None:
    import h5py

    from mer_export.untrusted.hdf5 import load_hdf5

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["d1"] = h5py.ExternalLink(str(mosei / "audio_test.h5"), "d1")
    with pytest.raises(InputError, match="has no data set 'd1'"):
        load_hdf5(tmp_path / "a.h5", "d1")


def test_plain_pickles_of_tensors_are_read_and_their_views_checked(tmp_path: Path) -> None:
    value = torch.arange(12.0).reshape(3, 4)
    content = {"a": value, "t": value.T, "half": value.half(), "p": torch.nn.Parameter(value), "n": torch.tensor(3)}
    path = tmp_path / "state.pt"
    path.write_bytes(pickle.dumps(content, protocol=4))
    found = load_pickle(path)
    assert all(np.array_equal(found[n], t.detach().float().numpy()) for n, t in content.items())
    buffer = io.BytesIO()
    torch.save(value.storage(), buffer, _use_new_zipfile_serialization=False)
    for size, stride in (((1 << 40,), (0,)), ((4, 4), (4, 1)), ((-1,), (1,)), ((2,), (1 << 62,))):
        claim = _Call(torch._utils._rebuild_tensor_v2, (value.untyped_storage(), 0, size, stride, False, {}))
        path.write_bytes(_pickled(claim, buffer.getvalue()))
        with pytest.raises(InputError, match=r"tensor|unfold"):
            load_pickle(path)


class _Call:
    """Pickles as a call."""

    def __init__(self, function: Any, arguments: tuple[Any, ...]):
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def _pickled(claim: _Call, storage: bytes) -> bytes:
    """The claim with its storage as `torch.storage._load_from_bytes` of these bytes."""
    function, (_, *rest) = claim.call
    loaded = _Call(torch.storage._load_from_bytes, (storage,))
    return pickle.dumps(_Call(function, (loaded, *rest)), protocol=4)


def test_word_vectors_come_from_every_usual_file(tmp_path: Path) -> None:
    vectors = {"happy": [0.5, -1.0], "Happy": [1.0, 2.0], "surprising": [3.0, 4.0]}
    (tmp_path / "v.pt").write_bytes(pickle.dumps({w: np.asarray(v) for w, v in vectors.items()}, protocol=4))
    (tmp_path / "v.json").write_text(json.dumps(vectors))
    (tmp_path / "v.txt").write_text("".join(f"{w} {' '.join(map(str, v))}\n" for w, v in vectors.items()))
    np.savez(tmp_path / "v.npz", words=list(vectors), embedding=np.asarray(list(vectors.values())))
    for suffix in ("pt", "json", "txt", "npz"):
        found = read_word_vectors(tmp_path / f"v.{suffix}")
        assert {w: v.tolist() for w, v in found.items()} == vectors
    assert list(read_word_vectors(tmp_path / "v.txt", {"happy"})) == ["happy"]
    assert look_up(["happy", "surprised"], found) == {"happy": (0.5, -1.0), "surprised": (3.0, 4.0)}
    assert look_up(["happy"], found, capitalise=True) == {"happy": (1.0, 2.0)}
    with pytest.raises(InputError, match="no word vector for 'sad' among 3"):
        look_up(["sad"], found)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("v.csv", "", "its ending must be"),
        ("v.json", "[1]", "holds a list"),
        ("v.json", '{"a": [1], "b": [1, 2]}', r"widths \[1, 2\]"),
        ("v.json", '{"a": ["x"]}', "'a' is not made of numbers"),
        ("v.json", '{"a": [NaN]}', "'a' is empty or not finite"),
        ("v.txt", "a 1.0 x\n", "a line is not a word and numbers"),
        ("v.json", "{", "is not JSON"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: str, sentence: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=sentence):
        read_word_vectors(tmp_path / name)


def table(folder: Path, **changes: Any) -> DataSpec:
    (folder / "clips.csv").write_text("clip,label,split,said\na,x,train,hi\nb,y,train,yo\nc,x,test,hi\n")
    np.savez(
        folder / "f.npz",
        sound=np.arange(12.0).reshape(6, 2),
        ends=np.array([0, 1, 4, 6]),
        face=np.arange(9.0).reshape(3, 3),
        words=np.arange(16.0).reshape(2, 4, 2),
        sentences=np.array(["yo", "hi"]),
        one=np.array("hi"),
    )
    values: dict[str, Any] = {
        "unit": "utterance",
        "table": "clips.csv",
        "utterance": "clip",
        "label": "label",
        "label_names": ["x", "y"],
        "split": "split",
        "text": {"file": "f.npz", "array": "words", "keys": "sentences", "column": "said"},
        "audio": {"file": "f.npz", "array": "sound", "offsets": "ends"},
        "vision": {"file": "f.npz", "array": "face"},
    }
    return DataSpec.model_validate(values | changes)


def test_a_table_of_utterances_gives_each_utterance_its_steps(tmp_path: Path) -> None:
    corpus = open_corpus(tmp_path, table(tmp_path))
    a, b = corpus.split("train")
    assert (a.id, a.labels.tolist(), b.labels.tolist()) == ("a", [0], [1])
    assert a.inputs["audio"].tolist() == [[0, 1]]
    assert b.inputs["audio"].tolist() == [[2, 3], [4, 5], [6, 7]]
    assert b.inputs["vision"].tolist() == [[3, 4, 5]]
    assert a.inputs["text"].tolist() == np.arange(16.0).reshape(2, 4, 2)[1].tolist()
    only = open_corpus(tmp_path, table(tmp_path), ["x"])
    assert [s.id for s in only] == ["a", "c"], "a model trained on some labels reads the utterances that have them"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"utterance": "name"}, "has no column 'name'"),
        ({"audio": {"file": "f.npz", "array": "sound"}}, "has 6 rows, its table has 3"),
        ({"vision": {"file": "f.npz", "array": "face", "column": "said"}}, "holds no row numbers"),
        ({"vision": {"file": "f.npz", "array": "face", "column": "clip", "keys": "sentences"}}, "has no 'a'"),
        ({"audio": {"file": "f.npz", "array": "sound", "offsets": "sentences"}}, "are not ascending places"),
        ({"vision": {"file": "f.npz", "array": "ends"}}, r"expected numbers \(rows"),
        ({"vision": {"file": "g.npz"}}, "cannot be read"),
        (
            {"text": {"file": "f.npz", "array": "words", "keys": "one", "column": "said"}},
            r"one has shape \(\), keys are",
        ),
        ({"splits": ["dev"]}, "no utterances in the chosen splits"),
    ],
)
def test_a_table_of_utterances_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        open_corpus(tmp_path, table(tmp_path, **changes))


def test_a_cache_of_any_number_of_steps_is_found_and_of_several_one_is_chosen(tmp_path: Path) -> None:
    features = {m: torch.zeros(1, 3, 2) for m in ("text", "audio", "vision")}
    content = {**features, "labels": torch.tensor([[1.4]]), "id": ["a"]}
    (tmp_path / "processed_datasets").mkdir()
    write_cache(tmp_path / "processed_datasets", "mosi_20_train_noalign.pt", **content)
    assert inspect_file(tmp_path)["format"] == "mtee"
    assert len(open_corpus(tmp_path).split("train")) == 1
    assert not is_mtee(tmp_path, steps=30)
    assert not is_mtee(tmp_path, aligned=True)
    for steps in (20, 30):
        write_cache(tmp_path, f"mosi_{steps}_train.pt", **content)
    with pytest.raises(UsageError, match=r"caches of \[20, 30\] steps: choose with data.emotions.steps"):
        open_corpus(tmp_path)
    assert is_mtee(tmp_path, steps=30)
    part = {m: np.zeros((1, 3, 2)) for m in ("text", "audio", "vision")} | {"labels": np.ones((1, 1))}
    (tmp_path / "mosi_data.pkl").write_bytes(pickle.dumps({"train": part}))
    assert [s.id for s in stream_samples(tmp_path)] == ["train/0"], "raw files go before caches"


def is_mtee(path: Path, **emotions: object) -> bool:
    """Whether a directory is one of MTEE's as `emotions` says."""
    return known_format(path, DataSpec.model_validate({"emotions": emotions})) == "mtee"
