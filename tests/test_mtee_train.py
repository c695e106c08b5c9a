"""MTEE end to end: trains, transfers to an emotion it never saw, imports the authors' files, resumes exactly."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import mtee_bundles as tiny
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from two_processes import stopped

from mer_export import registry
from mer_export.bundle import WEIGHTS, Bundle
from mer_export.data.open import open_corpus
from mer_export.data.spec import DataSpec
from mer_export.data.synthetic import synthesise
from mer_export.data.word_vectors import read_word_vectors
from mer_export.errors import InputError, UsageError
from mer_export.importer import import_checkpoint
from mer_export.models.mtee.emotions import look_up
from mer_export.weights import export_weights
from runtimes.predict.evaluate import evaluate
from runtimes.predict.predictor import Predictor
from train.config import PRESETS, load_preset
from train.fit import EVALUATION, fit
from train.state import METRICS
from train.systems.mtee.losses import LOSSES, positive_weights

pytest.importorskip("h5py", reason="CMU-MOSEI's files are HDF5")
DIMS = {"text_dim": 12, "audio_dim": 10, "vision_dim": 8, "word_dim": 16, "steps": 6}
SMALL = [
    *(f"model.{m}_dim={DIMS[f'{m}_dim']}" for m in ("text", "audio", "vision")),
    *("model.hidden_sizes=[16,12,8]", "model.layers=1", "model.buckets=[6]", "model.dropout=0.0"),
    *("batch=32", "lr=0.01", "device=cpu"),
]
MOSEI = ("anger", "disgust", "fear", "happy", "sad", "surprise")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synth")
    synthesise("mtee", "mosei_emo", folder, dialogues=900, seed=5, **DIMS)
    return folder


@pytest.fixture(scope="module")
def five(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Trained on five emotions, without `sad`."""
    config = load_preset("mtee/mosei_zsl4", [*SMALL, "epochs=12"])
    return fit(config, data, tmp_path_factory.mktemp("run") / "five", quiet=True)


def test_every_preset_of_mtee_is_as_published() -> None:
    sentiment = {"mtee/mosi": (10, 5, 20), "mtee/mosei_senti": (8, 74, 35)}
    names = [n for n in PRESETS if n.startswith("mtee/") and n not in sentiment]
    assert len(names) == 3 + 6 + 6 + 3
    for name, (heads, *widths) in sentiment.items():
        config = load_preset(name)
        mult = config.model["mult"]
        assert (mult["heads"], mult["layers"], mult["masked"], mult["embedding_dropout"]) == (heads, 4, True, 0.2)
        assert mult["attention_dropout"] == {"text": 0.2, "audio": 0.0, "vision": 0.0}
        assert [config.model["audio_dim"], config.model["vision_dim"]] == widths
        assert (config.protocol["loss"], config.keep.metric) == ("l1", "acc_7")
    for name in names:
        config = load_preset(name)
        assert (config.batch, config.lr, config.epochs, config.clip) == (64, 1e-3, 100, 1.0)
        assert (config.plateau.patience, config.keep.patience, config.model["dropout"]) == (5, 8, 0.15)
        assert config.keep.metric == ("accuracy" if "iemocap" in name else "weighted_accuracy")
        zsl = config.data.emotions.zsl
        words = MOSEI if config.data.dataset == "mosei_emo" else ("neutral", "happy", "sad", "angry")
        expected = len(words) + (0 if zsl is None else -1 if "mosei" in name else 1)
        assert len(config.model["labels"]) == expected


def test_it_learns_and_an_emotion_never_seen_is_recognised_by_its_word(five: Bundle, data: Path) -> None:
    seen = json.loads(five.path(EVALUATION).read_text())["test"]["single"]
    assert seen["auc"] > 85
    vectors = read_word_vectors(data / "glove.emotions.840B.300d.pt")
    table = look_up(MOSEI, vectors)
    samples = open_corpus(data, DataSpec(), MOSEI).split("test")
    with Predictor(five, "torch", batch=32, shared={"emotions": table}) as predictor:
        found = evaluate(predictor, samples).metrics
        assert predictor.task.labels == MOSEI
    assert found["auc/sad"] > 75, "chance is 50"
    wrong = table | {"sad": tuple(np.random.default_rng(0).normal(size=16))}
    with Predictor(five, "torch", batch=32, shared={"emotions": wrong}) as predictor:
        assert evaluate(predictor, samples).metrics["auc/sad"] < found["auc/sad"]


def test_a_few_examples_of_an_unseen_emotion_fine_tune_a_trained_model(
    five: Bundle, data: Path, tmp_path: Path
) -> None:
    few = [*SMALL, "lr=0.003", "epochs=3", "data.emotions.balanced=true", f"init={five.root}"]
    tuned = fit(load_preset("mtee/mosei_fsl4", few), data, tmp_path / "tuned", quiet=True)
    provenance = tuned.manifest.provenance
    assert provenance["init"] == five.manifest.files[WEIGHTS].sha256
    assert provenance["data"]["splits"]["train"]["items"] < 20
    found = json.loads(tuned.path(EVALUATION).read_text())["test"]["single"]
    scratch = fit(load_preset("mtee/mosei_fsl4", few[:-1]), data, tmp_path / "scratch", quiet=True)
    alone = json.loads(scratch.path(EVALUATION).read_text())["test"]["single"]
    assert found["auc"] > alone["auc"] + 10
    wider = [*few, "model.hidden_sizes=[16,12,10]"]
    with pytest.raises(UsageError, match="another network"):
        fit(load_preset("mtee/mosei_fsl4", wider), data, tmp_path / "wider", quiet=True)


def test_old_samples_keep_an_emotion_from_being_forgotten(five: Bundle, data: Path, tmp_path: Path) -> None:
    few = [
        *SMALL,
        "lr=0.1",
        "epochs=6",
        "batch=4",
        "data.emotions.balanced=true",
        f"init={five.root}",
        "keep.rule=last",
        "keep.patience=null",
    ]

    def old_emotions(name: str, *sets: str) -> float:
        tuned = fit(load_preset("mtee/mosei_fsl4", [*few, *sets]), data, tmp_path / name, quiet=True)
        found = json.loads(tuned.path(EVALUATION).read_text())["test"]["single"]
        return float(np.mean([found[f"auc/{emotion}"] for emotion in MOSEI if emotion != "sad"]))

    naive = old_emotions("naive")
    for rule in ("joint", "gem"):
        kept = old_emotions(rule, "data.emotions.old=true", f"protocol.rehearsal={{rule: {rule}, new: 4}}")
        assert kept > naive + 3, rule


def test_the_schedule_and_early_stopping_follow_the_validation_split(data: Path, tmp_path: Path) -> None:
    sets = ["epochs=30", "plateau.patience=0", "keep.patience=2", "lr=0.05"]
    bundle = fit(load_preset("mtee/mosei", [*SMALL, *sets]), data, tmp_path / "b", quiet=True)
    records = [json.loads(line) for line in bundle.path(METRICS).read_text().splitlines()]
    best = max(records, key=lambda r: r["splits"]["valid"]["weighted_accuracy"])
    assert bundle.manifest.provenance["epoch"] == best["epoch"]
    assert len(records) == best["epoch"] + 2 < 30
    losses, rates = [r["splits"]["valid"]["loss"] for r in records], [r["lr"] for r in records]
    lowest, expected = float("inf"), []
    rate = 0.05
    for loss in losses:
        expected.append(rate)
        if loss < lowest * (1 - 1e-4):
            lowest = loss
        else:
            rate *= 0.1
    assert rates == pytest.approx(expected)
    assert rates[-1] < rates[0]


def test_a_resumed_run_ends_with_the_same_weights_and_learning_rate(data: Path, tmp_path: Path) -> None:
    config = load_preset("mtee/mosei", [*SMALL, "epochs=6", "plateau.patience=0", "lr=0.05", "keep.rule=last"])
    whole = fit(config, data, tmp_path / "whole", quiet=True)
    stopped(config, data, tmp_path / "parts", after=3)
    parts = fit(config, data, tmp_path / "parts", quiet=True)
    a, b = load_file(whole.root / WEIGHTS), load_file(parts.root / WEIGHTS)
    assert all(np.array_equal(a[n], b[n]) for n in a)

    def rates(bundle: Bundle) -> list[float]:
        return [json.loads(line)["lr"] for line in bundle.path(METRICS).read_text().splitlines()]

    assert rates(whole) == rates(parts)


@pytest.mark.parametrize(
    ("sets", "sentence"),
    [
        (["protocol.semantics=batch"], "eea has single only"),
        (["protocol.loss=hinge"], "protocol"),
        (["keep.metric=wacc"], "keep.metric 'wacc' is not measured"),
        (["plateau.split=dev"], "plateau.split 'dev' is not evaluated"),
        (["data.emotions.vectors=nowhere.pt"], "name their file in data.emotions.vectors"),
        (["model.hidden_sizes=[20,12,8]"], "has 16 values, the model was made for 20"),
        (["model.labels=[anger,bored]"], r"no labels \['bored'\]"),
    ],
)
def test_what_does_not_fit_is_refused_before_or_in_the_first_epoch(
    data: Path, tmp_path: Path, sets: list[str], sentence: str
) -> None:
    with pytest.raises((UsageError, InputError), match=sentence):
        fit(load_preset("mtee/mosei", [*SMALL, "epochs=1", *sets]), data, tmp_path / "b", quiet=True)


@pytest.mark.parametrize(
    "sets",
    [
        ["model.model=rnn", "model.fusion=eflf", "protocol.loss=l1", "optimizer=sgd"],
        ["model.model=mult", "model.mult.width=8", "model.mult.heads=2", "model.mult.layers=1", "protocol.loss=mse"],
        ["model.model=transformer", "model.transformer.width=8", "protocol.semantics=batch", "protocol.loss=ce"],
    ],
)
def test_the_baselines_train_in_every_form(data: Path, tmp_path: Path, sets: list[str]) -> None:
    bundle = fit(load_preset("mtee/mosei", [*SMALL, "epochs=1", *sets]), data, tmp_path / "b", quiet=True)
    found = json.loads(bundle.path(EVALUATION).read_text())["test"]
    semantics = {"single", "batch"} if "protocol.semantics=batch" in sets else {"single"}
    assert set(found) == semantics | {"classes"}
    assert set(found["classes"]) == semantics
    assert np.isfinite(found["single"]["loss"])


def test_a_plain_pickled_checkpoint_becomes_a_bundle_with_its_own_or_given_emotions(tmp_path: Path) -> None:
    config = tiny.config_of("eea")
    table = registry.resolve(registry.get("mtee").weights)
    state = dict(export_weights(tiny.randomised(config), table, config))
    state["textEmoEmbs.weight"] = torch.arange(18.0).reshape(3, 6)
    (tmp_path / "model.pt").write_bytes(pickle.dumps(state, protocol=4))
    values = {"model": config.model_dump(mode="json")}
    bundle, report = import_checkpoint("mtee", tmp_path / "model.pt", values, tmp_path / "own")
    assert report["own"] == 0
    assert bundle.manifest.contract.shared["emotions"]["fear"] == (6.0, 7.0, 8.0, 9.0, 10.0, 11.0)
    words = {n: [float(i)] * 6 for i, n in enumerate((*config.labels, "sad"))}
    (tmp_path / "words.json").write_text(json.dumps(words))
    more = {
        "model": config.model_dump(mode="json") | {"labels": [*config.labels, "sad"]},
        "data": {"emotions": {"vectors": "words.json"}},
    }
    bundle, _ = import_checkpoint("mtee", tmp_path / "model.pt", more, tmp_path / "more")
    assert list(bundle.manifest.contract.shared["emotions"]) == [*config.labels, "sad"]
    with pytest.raises(InputError, match="knows 3 emotions, the config names 4 labels"):
        import_checkpoint("mtee", tmp_path / "model.pt", {"model": more["model"]}, tmp_path / "none")
    (tmp_path / "bad.pt").write_bytes(pickle.dumps({"a": print}))
    with pytest.raises(UsageError, match="print"):
        import_checkpoint("mtee", tmp_path / "bad.pt", values, tmp_path / "bad")


def test_positive_weights_are_those_of_the_filtered_training_set() -> None:
    labels = np.array([[1, 0], [0, 0], [0, 0], [1, 0]], dtype=np.float32)
    assert positive_weights(labels).tolist() == [1.0, np.inf]
    logits = torch.zeros(2, 3)
    targets = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert LOSSES["ce"](logits, targets, None).item() == pytest.approx(np.log(3))
