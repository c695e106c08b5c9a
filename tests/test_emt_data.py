"""MMSA pickles, missing steps, normalisation, word pieces and tables of utterances."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
from conftest import CASES
from typer.testing import CliRunner

import cli
from mer_export.data.formats.mmsa import reader as mmsa
from mer_export.data.formats.mmsa.normalise import write_normalised
from mer_export.data.missing import incomplete
from mer_export.data.open import open_corpus
from mer_export.data.samples import Sample
from mer_export.data.spec import DataSpec
from mer_export.data.synthetic import synthesise
from mer_export.errors import InputError, UsageError
from mer_export.untrusted.pickles import load_pickle

SMALL = {"text_len": 12, "audio_len": 9, "vision_len": 7, "audio_dim": 3, "vision_dim": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mmsa")
    synthesise("emt", "sims", out, dialogues=20, seed=1, **SMALL)
    return out


def test_the_pickle_is_read_without_its_padding_and_with_its_array_lengths(folder: Path) -> None:
    corpus = open_corpus(folder)
    assert corpus.format == "mmsa"
    assert corpus.info["dataset"] == "sims"
    assert corpus.info["arrays"]["test"] == {"text_len": 12, "audio_len": 9, "vision_len": 7}
    raw = load_pickle(folder / "SIMS" / "Processed" / "unaligned_39.pkl")["train"]
    for row, sample in enumerate(corpus.split("train")):
        n = int(raw["text_bert"][row, 1].sum())
        assert sample.inputs["input_ids"].tolist() == raw["text_bert"][row, 0, :n].tolist()
        assert sample.inputs["audio"].shape == (raw["audio_lengths"][row], 3)
        assert sample.labels is not None
        assert sample.labels[0] == raw["regression_labels"][row]


def test_a_file_that_is_not_the_published_one_is_read_with_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="mer"):
        open_corpus(folder / "SIMS" / "Processed" / "unaligned_39.pkl")
    assert "results are not comparable" in caplog.text


def write(path: Path, **changes: object) -> Path:
    split = {
        "text_bert": np.array([[[101, 7, 102, 0], [1, 1, 1, 0], [0, 0, 0, 0]]], dtype=np.float32),
        "audio": np.array([[[-np.inf, 1.0], [2.0, 3.0]]]),
        "vision": np.ones((1, 3, 2)),
        "audio_lengths": [2],
        "vision_lengths": [1],
        "regression_labels": np.array([0.4]),
        "id": ["a$_$1"],
    }
    path.write_bytes(pickle.dumps({"train": {**split, **changes}}, protocol=4))
    return path


def test_minus_infinity_in_audio_is_read_as_zero(tmp_path: Path) -> None:
    corpus = open_corpus(write(tmp_path / "x.pkl"), DataSpec(format="mmsa", dataset="mosi"))
    assert corpus.split("train")[0].inputs["audio"].tolist() == [[0.0, 1.0], [2.0, 3.0]]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"audio_lengths": [3]}, "audio_lengths is 3, the array has 2 frames"),
        ({"vision_lengths": [0]}, "vision_lengths is 0"),
        ({"text_bert": np.array([[[101, 7, 102], [1, 0, 1], [0, 0, 0]]])}, "ones, then zeros"),
        ({"id": ["a", "b"]}, "1 utterances"),
        ({"audio": None}, "malformed"),
        ({"audio_lengths": [np.inf]}, "malformed"),
        ({"id": 1}, "malformed"),
        ({"regression_labels": np.float64(0.4)}, "malformed"),
    ],
)
def test_a_damaged_pickle_gives_one_sentence(tmp_path: Path, changes: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        open_corpus(write(tmp_path / "x.pkl", **changes), DataSpec(format="mmsa", dataset="mosi"))


@pytest.mark.parametrize("part", [np.ones(2), [1], 0])
def test_a_split_that_holds_no_arrays_by_name_is_named(tmp_path: Path, part: object) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"train": part}))
    with pytest.raises(InputError, match=r"train is a .*, expected arrays by name"):
        open_corpus(tmp_path / "x.pkl", DataSpec(format="mmsa", dataset="mosi"))


def test_two_data_sets_in_one_place_ask_which_one(tmp_path: Path) -> None:
    write(tmp_path / "unaligned_50.pkl")
    with pytest.raises(UsageError, match=r"data\.dataset"):
        open_corpus(tmp_path)


def test_normalisation_uses_real_frames_of_train_only(folder: Path, tmp_path: Path) -> None:
    source = folder / "SIMS" / "Processed" / "unaligned_39.pkl"
    target = write_normalised(source, tmp_path / "unaligned_39_normalized.pkl")
    samples = open_corpus(target, DataSpec(format="mmsa", dataset="sims")).split("train")
    frames = np.concatenate([s.inputs["audio"] for s in samples])
    np.testing.assert_allclose(frames.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(frames.std(0), 1, atol=1e-3)


def test_missing_steps_are_nested_and_special_tokens_stay(folder: Path) -> None:
    corpus = open_corpus(folder)
    samples, arrays = corpus.split("train"), corpus.info["arrays"]["train"]
    low, high, all_ = (
        incomplete(samples, dict.fromkeys(("text", "audio", "vision"), r), arrays) for r in (0.3, 0.7, 1.0)
    )
    for a, b, c in zip(low, high, all_, strict=True):
        for m in ("text", "audio", "vision"):
            assert not (b.kept[m] & ~a.kept[m]).any()
        assert c.inputs["input_ids"][[0, -1]].tolist() == [101, 102]
        assert set(c.inputs["input_ids"][1:-1]) <= {100}
        assert not c.inputs["audio"].any()
        assert c.complete["audio"].any()


def test_a_rate_outside_0_to_1_is_refused() -> None:
    sample = Sample("a", {"audio": np.ones((2, 3), dtype=np.float32)}, ("a",))
    with pytest.raises(UsageError, match=r"missing rate 1\.5"):
        incomplete([sample], {"audio": 1.5})


def test_a_table_of_utterances_gives_sequences_scores_and_tokens(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("video,part,text,score,split\nv,1,hi ho,1.5,train\nv,2,ho,,test\n")
    (tmp_path / "vocab.txt").write_text("[CLS]\n[SEP]\n[UNK]\nhi\nho\n")
    rows = np.arange(10, dtype=np.float32).reshape(5, 2)
    np.savez(tmp_path / "f.npz", frames=rows, at=np.array([0, 3, 5]), clip=np.ones((2, 3)))
    np.savez(tmp_path / "k.npz", v=np.array([[1.0], [2.0]]), names=np.array(["ho", "hi ho"]))
    spec = DataSpec(
        unit="utterance",
        table="t.csv",
        dialogue="video",
        utterance="part",
        score="score",
        split="split",
        sentence="text",
        tokenizer=str(tmp_path),
        audio=({"file": "f.npz", "array": "frames", "offsets": "at"}, {"file": "f.npz", "array": "clip"}),
        vision=({"file": "k.npz", "array": "v", "keys": "names", "column": "text"},),
    )
    corpus = open_corpus(tmp_path, spec)
    (first,), (second,) = corpus.split("train"), corpus.split("test")
    assert first.id == "v/1"
    assert first.inputs["audio"].tolist() == [[0, 1, 1, 1, 1], [2, 3, 1, 1, 1], [4, 5, 1, 1, 1]]
    assert first.inputs["vision"].tolist() == [[2.0]]
    assert first.inputs["input_ids"].tolist() == [0, 3, 4, 1]
    assert first.labels is not None
    assert first.labels.tolist() == [1.5]
    assert second.labels is not None
    assert np.isnan(second.labels).all()


def test_the_command_normalises_beside_the_original_which_it_then_stands_for(folder: Path) -> None:
    source = folder / "SIMS" / "Processed" / "unaligned_39.pkl"
    run = CliRunner().invoke(cli.app, ["data", "normalise", str(source)])
    assert run.exit_code == 0, run.output
    made = source.with_name("unaligned_39_normalized.pkl")
    try:
        assert mmsa.files(folder, DataSpec(format="mmsa", dataset="sims")) == [made]
    finally:
        made.unlink()


def aligned(folder: Path, name: str, **changes: object) -> Path:
    """A file as MMSA aligns it, one frame for each word piece: no lengths beside it."""
    text = np.zeros((3, 3, 5), dtype=np.float32)
    frames = np.arange(3 * 5 * 2, dtype=np.float64).reshape(3, 5, 2) + 1
    for row, size in enumerate((3, 5, 4)):
        text[row, :2, :size] = [[101, *range(7, 5 + size), 102], [1] * size]
        frames[row, size:] = 0
    split = {"text_bert": text, "audio": frames, "vision": frames, "regression_labels": np.array([0.4, 1, -1])}
    split = {k: v for k, v in {**split, **changes}.items() if v is not None}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(pickle.dumps({"train": split, "test": {}}, protocol=4))
    return folder


def test_aligned_frames_are_as_long_as_the_text(tmp_path: Path) -> None:
    root = aligned(tmp_path / "MOSI" / "Processed", "aligned_50.pkl").parent.parent
    corpus = open_corpus(root)
    assert (corpus.format, corpus.info["dataset"], list(corpus.splits)) == ("mmsa", "mosi", ["train"])
    sizes = [{n: len(a) for n, a in s.inputs.items()} for s in corpus.split("train")]
    assert sizes == [dict.fromkeys(("input_ids", "token_type_ids", "audio", "vision"), n) for n in (3, 5, 4)]


def test_an_unaligned_file_goes_before_an_aligned_one(tmp_path: Path) -> None:
    both = aligned(tmp_path / "MOSI" / "Processed", "aligned_50.pkl")
    write(both / "unaligned_50.pkl")
    assert mmsa.files(tmp_path, DataSpec()) == [both / "unaligned_50.pkl"]


@pytest.mark.parametrize("place", ["MOSI", "calls"])
def test_what_mmsa_fet_extracts_is_read_whatever_data_it_is_of(tmp_path: Path, place: str) -> None:
    folder = aligned(tmp_path / place, "feature.pkl", audio_lengths=[1, 2, 3], vision_lengths=[3, 2, 1])
    corpus = open_corpus(folder)
    assert corpus.info["dataset"] == ("mosi" if place == "MOSI" else "own")
    assert [len(s.inputs["audio"]) for s in corpus.split("train")] == [1, 2, 3]


def test_a_feature_file_may_lack_modalities_and_have_text_vectors(tmp_path: Path) -> None:
    vectors = np.ones((3, 5, 4))
    vectors[1, 2:] = 0
    folder = aligned(tmp_path / "own", "feature.pkl", text_bert=None, vision=None, text=vectors)
    samples = open_corpus(folder).split("train")
    assert [{n: a.shape for n, a in s.inputs.items()} for s in samples] == [
        {"text": (n, 4), "audio": (n, 2)} for n in (5, 2, 5)
    ]


def test_the_aligned_file_of_the_shared_case_is_found_by_its_name() -> None:
    case = CASES / "08-mmsa-aligned"
    if not case.is_dir():
        pytest.skip("the cases that are shared between projects are not here: set MER_CASES")
    corpus = open_corpus(case)
    assert {n: len(s) for n, s in corpus.splits.items()} == {"train": 6, "valid": 3, "test": 3}
    for sample in corpus:
        assert len(sample.inputs["audio"]) == len(sample.inputs["vision"]) == len(sample.inputs["input_ids"])


def test_an_utterance_of_a_dialogue_is_missing_with_all_its_vectors() -> None:
    inputs = {"text": np.ones((2, 4, 3), np.float32), "audio": np.ones((4, 5), np.float32)}
    sample = Sample("d", inputs, tuple("abcd"))
    (found,) = incomplete([sample], {"text": 0.5, "audio": 1.0})
    kept = found.kept["text"]
    assert 0 < kept.sum() < 4
    assert np.array_equal(found.inputs["text"], np.broadcast_to(kept[:, None], (2, 4, 3)))
    assert not found.inputs["audio"].any()
