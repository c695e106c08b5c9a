"""Synthetic corpora: the authors' layout, the same for the same seed, learnable, with a known best."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from mer_export.data.formats.cmerc.difficulty import read_difficulty
from mer_export.data.formats.format import synthesisers
from mer_export.data.inspect import inspect_file
from mer_export.data.open import open_corpus
from mer_export.data.synthetic import synthesise
from mer_export.errors import InputError, UsageError

SMALL = {"text_dim": 16, "audio_dim": 12, "vision_dim": 8}


def test_the_same_seed_gives_the_same_files_in_any_process(tmp_path):
    script = (
        "import sys; from mer_export.data.synthetic import synthesise; "
        "synthesise('cmerc', 'iemocap', sys.argv[1], 4, 5, text_dim=16, audio_dim=12, vision_dim=8)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "b")], check=True)
    files = synthesise("cmerc", "iemocap", tmp_path / "a", 4, 5, **SMALL)
    for file in files:
        assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()
    other = synthesise("cmerc", "iemocap", tmp_path / "c", 4, 6, **SMALL)
    assert files[0].read_bytes() != other[0].read_bytes()


def test_files_have_the_authors_layout(tmp_path):
    synthesise("cmerc", "meld", tmp_path, 8, **SMALL)
    raw = (tmp_path / "data" / "MELD_features_raw1.pkl").read_bytes()
    assert b"numpy.core.multiarray" in raw
    assert b"numpy._core" not in raw
    features = pickle.loads(raw, encoding="latin1")
    roberta = pickle.loads((tmp_path / "data" / "meld_features_roberta.pkl").read_bytes(), encoding="latin1")
    assert (type(features), len(features), type(roberta), len(roberta)) == (tuple, 10, list, 11)
    assert all(sum(row) == 1 and len(row) == 9 for row in features[1][0])
    assert features[7] == list(range(6))
    assert roberta[3][0][0].shape == (16,)
    assert list(read_difficulty(tmp_path / "caldiff" / "MELD_diff.pkl")) == [str(i) for i in range(6)]


@pytest.mark.parametrize(("dataset", "dialogues", "longest"), [("meld", 150, 33), ("iemocap", 40, 110)])
def test_a_linear_model_learns_and_context_would_help(tmp_path, dataset, dialogues, longest):
    files = synthesise("cmerc", dataset, tmp_path, dialogues, **SMALL)
    bounds = json.loads(files[-1].read_text())["bounds"]["test"]
    corpus = open_corpus(tmp_path)
    assert max(len(s.units) for s in corpus) <= longest

    def flat(split: str, modalities: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        rows = []
        for s in corpus.split(split):
            parts = [s.inputs[m].mean(0) if m == "text" else s.inputs[m] for m in modalities]
            rows.append(np.concatenate([*parts, np.ones((len(s.units), 1))], axis=1))
        return np.concatenate(rows), np.concatenate([s.labels for s in corpus.split(split) if s.labels is not None])

    def ridge(*modalities: str) -> float:
        x, y = flat("train", modalities)
        weights = np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ np.eye(y.max() + 1)[y])
        test, truth = flat("test", modalities)
        return float(((test @ weights).argmax(1) == truth).mean())

    everything = ridge("text", "audio", "vision")
    assert bounds["majority_accuracy"] + 0.15 < everything
    assert everything < bounds["best_accuracy_without_context"] + 0.03
    assert bounds["best_accuracy_without_context"] + 0.05 < bounds["best_accuracy_with_context"] < 1
    assert everything > ridge("text") > ridge("vision")


def test_wrong_requests_are_usage_errors(tmp_path):
    for arguments, message in [
        (("bert", "meld"), "no synthetic data for 'bert'"),
        (("cmerc", "mosi"), "no synthetic 'mosi'"),
        (("cmerc", "meld", tmp_path, 1), "at least 2"),
    ]:
        with pytest.raises(UsageError, match=message):
            synthesise(*arguments, **({} if len(arguments) > 2 else {"out": tmp_path}))
    with pytest.raises(UsageError, match="text_width"):
        synthesise("cmerc", "meld", tmp_path, 4, text_width=3)
    assert {"cmerc", "emt", "mult", "tfr_net"} <= set(synthesisers())


# --- inspection


def test_inspect_counts_what_a_data_set_holds(tmp_path):
    files = synthesise("cmerc", "meld", tmp_path, 20, **SMALL)
    report = inspect_file(tmp_path)
    json.dumps(report, allow_nan=False)
    corpus = open_corpus(tmp_path)
    train = report["splits"]["train"]
    assert report["format"] == "cmerc"
    assert train["dialogues"] == len(corpus.split("train"))
    assert sum(train["labels"].values()) == train["utterances"] == sum(len(s.units) for s in corpus.split("train"))
    assert train["modalities"]["text"]["width"] == 16
    assert train["modalities"]["text"]["vectors"] == 4
    text = np.concatenate([s.inputs["text"].ravel() for s in corpus.split("train")])
    assert train["modalities"]["text"]["std"] == pytest.approx(text.std(), rel=1e-4)
    lengths = sorted(len(s.units) for s in corpus.split("train"))
    assert (train["length"]["min"], train["length"]["max"]) == (lengths[0], lengths[-1])
    assert set(report["files"]) == {"data/MELD_features_raw1.pkl", "data/meld_features_roberta.pkl"}
    assert inspect_file(files[2])["kind"] == "difficulty file"
    assert inspect_file(files[0])["outline"]["is"] == "tuple of 10"


def test_inspect_counts_nan_and_names_the_dialogue(tmp_path):
    line = {"dialogue": "broken", "utterances": [{"text": [1.0, float("nan")]}, {"text": [float("inf"), 2.0]}]}
    (tmp_path / "x.jsonl").write_text(json.dumps(line))
    text = inspect_file(tmp_path / "x.jsonl")["splits"]["all"]["modalities"]["text"]
    assert (text["nan"], text["infinite"], text["not_finite_in"]) == (1, 1, ["broken"])
    assert (text["min"], text["max"]) == (1.0, 2.0)


def test_inspect_reads_single_files_and_refuses_damaged_ones(tmp_path):
    from safetensors.numpy import save_file

    np.savez(tmp_path / "x.npz", a=np.array([1.0, np.nan]))
    save_file({"w": np.zeros((2, 3), np.float32)}, tmp_path / "w.safetensors")
    assert inspect_file(tmp_path / "x.npz")["arrays"]["a"] == {
        "shape": [2],
        "dtype": "float64",
        "nan": 1,
        "infinite": 0,
    }
    assert inspect_file(tmp_path / "w.safetensors")["arrays"]["w"] == {"shape": [2, 3], "dtype": "F32"}
    for name in ("x.npz", "x.npy", "x.safetensors", "x.pkl", "x.json", "x.parquet", "x.jsonl", "x.txt"):
        (tmp_path / name).write_bytes(b"\x80nonsense")
        with pytest.raises(InputError) as caught:
            inspect_file(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_reading_data_imports_no_torch(tmp_path):
    synthesise("cmerc", "meld", tmp_path, 4, **SMALL)
    script = (
        "import sys; from mer_export.data.inspect import inspect_file; inspect_file(sys.argv[1]); "
        "import mer_export.data.overflow, mer_export.data.formats.cmerc.synthetic; "
        "assert not {'torch', 'transformers', 'pyarrow', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
