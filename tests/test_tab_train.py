"""Training tab: two stages, resuming with newbob, folds, published metrics, a bundle that takes transcripts."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.numpy import load_file
from small_tab import AUDIO, SENTENCES, TEXT, WIDTH, sentence_encoder, speech_tokenizer, text_tokenizer
from two_processes import stopped
from typer.testing import CliRunner

import cli
from mer_export import registry
from mer_export.bundle import WEIGHTS, Bundle
from mer_export.data.media.sound import write_sound
from mer_export.data.open import open_corpus
from mer_export.data.synthetic import synthesise
from mer_export.data.tokens.text_tokenizer import TextTokenizer
from mer_export.encoders.running import sentence_vectors
from mer_export.errors import InputError, UsageError
from mer_export.experiment import ExperimentResult
from mer_export.layers.bert.network import Bert
from mer_export.progress import SILENT
from train.config import PRESETS, TrainConfig, load_preset
from train.experiments.crossval import of_fold, plan_folds
from train.experiments.run import run
from train.fit import EVALUATION, fit
from train.prepared import prepare_run
from train.systems.tab import protocol as tab_protocol
from train.systems.tab.newbob import Newbob
from train.systems.tab.protocol import TabProtocol
from train.systems.tab.settings import TabSettings

MODEL = [
    f"model.text={json.dumps(TEXT)}",
    f"model.audio={json.dumps(AUDIO)}",
    f"model.sentence_dim={WIDTH}",
    "model.context=1",
    "data.context.size=1",
    "model.tab_width=8",
    "model.head_width=10",
    "model.buckets=[]",
    "protocol.text_encoder=random",
    "protocol.audio_encoder=random",
    "device=cpu",
    "epochs=2",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("iemocap")
    settings = {"width": WIDTH, "sizes": [1], "text_vocabulary": 60, "audio_vocabulary": 70}
    synthesise("tab", "iemocap", out, dialogues=60, seed=2, text_len=6, audio_len=8, context_signal=2.0, **settings)
    return out


def small(preset: str, *sets: str) -> TrainConfig:
    return load_preset(f"tab/{preset}", [*MODEL, *sets])


def test_all_presets_are_read() -> None:
    assert {n.removeprefix("tab/") for n in PRESETS if n.startswith("tab/")} == {
        *("iemocap", "iemocap_lhs", "iemocap_cv", "iemocap_text_tab", "iemocap_audio_tab", "iemocap_tab")
    }
    published = load_preset("tab/iemocap")
    assert (published.lr, published.batch, published.epochs, published.keep.patience) == (5e-5, 16, 100, 10)
    stage = load_preset("tab/iemocap_lhs")
    assert (stage.epochs, stage.keep.patience, stage.protocol["freeze"]) == (
        3,
        None,
        {"text": 9, "audio": 12, "dropout": True},
    )


def test_classes_are_matched_by_name_with_the_model(data: Path) -> None:
    spec = small("iemocap_tab").data
    own = open_corpus(data, spec)
    turned = open_corpus(data, spec, own.info["labels"][::-1])
    assert {int(a.labels[0] + b.labels[0]) for a, b in zip(own, turned, strict=True)} == {3}
    with pytest.raises(InputError, match=r"has the classes \['sad', 'neutral'\], the model knows"):
        open_corpus(data, spec, ["happy", "angry", "excited"])


def test_a_network_that_is_captured_for_compiling_trains_to_the_same_weights_for_batches_of_any_length(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fitted(compiled: bool) -> dict[str, np.ndarray]:
        config = small("iemocap_lhs", "protocol.freeze={text: 1, audio: 1}", "epochs=1", f"compile={compiled}")
        return load_file(fit(config, data, tmp_path / str(compiled), quiet=True).root / WEIGHTS)

    # Captured and run as it is: making machine code of it takes a minute.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, captured = fitted(False), fitted(True)
    assert all(np.array_equal(plain[n], captured[n]) for n in plain)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_the_second_stage_takes_the_fine_tuned_encoders_and_leaves_them_alone(data: Path, tmp_path: Path) -> None:
    lhs = fit(small("iemocap_lhs", "protocol.freeze={text: 1, audio: 1}"), data, tmp_path / "lhs", quiet=True)
    bundle = fit(small("iemocap", f"protocol.lhs={lhs.root}", "protocol.penalty=0.3"), data, tmp_path / "a", quiet=True)
    before, after = (load_file(b.root / WEIGHTS) for b in (lhs, bundle))
    encoders = [n for n in after if n.startswith("encoders.")]
    assert encoders
    assert all(np.array_equal(before[n], after[n]) for n in encoders)
    found = json.loads(bundle.path(EVALUATION).read_text())["test"]
    assert {"unweighted_accuracy", "accuracy"} <= set(found["single"])
    assert {"batch_mean/unweighted_accuracy", "batch_mean/weighted_accuracy"} <= set(found["batch"])
    record = json.loads(bundle.path("train/metrics.jsonl").read_text().splitlines()[0])
    assert record["train"]["total"] == pytest.approx(record["train"]["class_loss"] + record["train"]["penalty"])
    with pytest.raises(UsageError, match=r"model\.text\.heads is 4, the bundle's is 2"):
        fit(small("iemocap", f"protocol.lhs={lhs.root}", "model.text.heads=4"), data, tmp_path / "b", quiet=True)
    with pytest.raises(UsageError, match="does not fit the encoders"):
        fit(small("iemocap", f"protocol.lhs={lhs.root}", "model.text.hidden=8"), data, tmp_path / "b", quiet=True)


def test_freezing_layers_leaves_the_embeddings_in_training() -> None:
    config = registry.get("tab").parse(small("iemocap_lhs").model)
    model: Any = registry.get("tab").build(config)
    TabProtocol(TabSettings(freeze={"text": 1, "audio": "all"})).prepare(model, [], torch.device("cpu"))
    trained = {n.removeprefix("encoders.") for n, p in model.named_parameters() if p.requires_grad}
    assert "text.embeddings.word_embeddings.weight" in trained
    assert any(n.startswith("text.layers.1.") for n in trained)
    assert not any(n.startswith(("text.layers.0.", "audio.")) for n in trained)
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        TabSettings(freeze={"text": -1})
    with pytest.raises(UsageError, match="penalty is for variants with a context"):
        TabProtocol(TabSettings(penalty=0.3)).check(config)


def test_an_interrupted_run_with_newbob_goes_on_as_if_nothing_had_happened(data: Path, tmp_path: Path) -> None:
    rule = "protocol.newbob={metric: accuracy, restore: true, threshold: 0.5}"
    config = small("iemocap_tab", rule, "epochs=4", "lr=0.05")
    whole = fit(config, data, tmp_path / "whole", quiet=True)
    stopped(config, data, tmp_path / "parts", after=3)
    parts = fit(config, data, tmp_path / "parts", quiet=True)
    a, b = (load_file(x.root / WEIGHTS) for x in (whole, parts))
    assert all(np.array_equal(a[n], b[n]) for n in a)
    rates = [json.loads(line)["lr"] for line in whole.path("train/metrics.jsonl").read_text().splitlines()]
    assert rates[0] > rates[-1]


def test_newbob_goes_back_to_the_best_weights_after_an_epoch_without_gain() -> None:
    model = torch.nn.Linear(1, 1)
    adam = torch.optim.Adam(model.parameters(), lr=0.4)
    protocol = TabProtocol(TabSettings(newbob={"metric": "accuracy", "restore": True}))
    for value, accuracy in ((1.0, 60.0), (2.0, 50.0)):
        torch.nn.init.constant_(model.weight, value)
        protocol.end_epoch({"splits": {"valid": {"accuracy": accuracy}}}, model, adam, passed=False)
    assert model.weight.item() == 1.0
    assert adam.param_groups[0]["lr"] == 0.2
    with pytest.raises(UsageError, match="f1 of split valid is not measured"):
        TabProtocol(TabSettings(newbob={"metric": "f1"})).end_epoch({"splits": {}}, model, adam, passed=False)


@pytest.mark.parametrize(
    ("sets", "sentence"),
    [
        (["protocol.newbob.split=dev"], r"protocol\.newbob\.split 'dev' is not evaluated"),
        (["protocol.newbob.metric=loss"], r"protocol\.newbob\.metric 'loss' is no metric of which more is better"),
        (["protocol.newbob.restore=true", "warm_up=0.1"], r"warm_up and protocol\.newbob both set the learning rate"),
    ],
)
def test_newbob_is_held_against_what_is_measured_before_training(data: Path, sets: list[str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        prepare_run(small("iemocap_tab", *sets), data, draws_weights=True)


def test_newbob_declines_for_good_after_many_steps() -> None:
    schedule = Newbob(1.0, ramp_from=2)
    assert [schedule.step(m) for m in (0.5, 0.5, 0.9, 0.95)] == [1.0, 0.5, 0.25, 0.125]


def test_patience_ends_a_run_that_keeps_its_last_weights(data: Path, tmp_path: Path) -> None:
    config = small("iemocap_tab", "epochs=12", "keep.patience=1", "lr=3", "device_data=always")
    bundle = fit(config, data, tmp_path / "a", quiet=True)
    epochs = len(bundle.path("train/metrics.jsonl").read_text().splitlines())
    assert epochs < 12
    assert bundle.manifest.provenance["epoch"] == epochs
    assert bundle.manifest.provenance["computed"][0]["device_data"] is True


def test_folds_are_trained_one_by_one_and_averaged(data: Path, tmp_path: Path) -> None:
    planned = plan_folds(small("iemocap_tab", "epochs=1"), [0, 5])
    found = run(planned, data, tmp_path / "cv", SILENT)
    again = run(planned, data, tmp_path / "cv", SILENT)
    assert again == found == ExperimentResult.model_validate_json((tmp_path / "cv" / "experiment.json").read_bytes())
    (row,) = found.rows
    evaluations = [json.loads((tmp_path / "cv" / f"fold{k}" / EVALUATION).read_text()) for k in (0, 5)]
    accuracies = [e["test"]["single"]["accuracy"] for e in evaluations]
    assert row.metrics["accuracy"].mean == pytest.approx(np.mean(accuracies))
    assert {"accuracy", "unweighted_accuracy"} <= {n for n, s in row.metrics.items() if s.values}
    sizes = [Bundle.open(tmp_path / "cv" / f"fold{k}").manifest.provenance["data"]["splits"] for k in (0, 5)]
    assert sizes[0]["valid"] == sizes[1]["test"]
    with pytest.raises(UsageError, match="have no folds"):
        of_fold(load_preset("cmerc/meld"), 0)


def test_folds_of_data_with_splits_of_their_own_are_refused_and_not_the_same_run_again(tmp_path: Path) -> None:
    said = [{"id": f"u{i}", "label": ("angry", "sad")[i % 2], "text": [0.5] * WIDTH} for i in range(4)]
    lines = [{"dialogue": f"d{n}", "split": n, "utterances": said} for n in ("train", "valid", "test")]
    path = tmp_path / "calls.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UsageError, match=r"fold is 3, .*calls.jsonl has splits of its own and no folds: leave --fold"):
        prepare_run(of_fold(small("iemocap_tab"), 3), path, draws_weights=True)
    assert prepare_run(small("iemocap_tab", "data.context.fold=null"), path, draws_weights=True).samples


def test_a_bundle_keeps_its_tokenizers_and_labels_transcripts_and_recordings(data: Path, tmp_path: Path) -> None:
    text_tokenizer(tmp_path / "text")
    speech_tokenizer(tmp_path / "speech")
    sentence_encoder(tmp_path / "sentences")
    sets = ["model.text.vocabulary=300", f"data.tokenizer={tmp_path / 'text'}", "epochs=1"]
    sets += [f"data.context.speech={tmp_path / 'speech'}", f"data.context.encoder={tmp_path / 'sentences'}"]
    bundle = fit(small("iemocap", *sets, "model.audio.positions=2050"), data, tmp_path / "a", quiet=True)
    kept = {"tokenizer/vocab.json", "tokenizer/merges.txt", "encoders/sentences/tokenizer/vocab.txt"}
    kept |= {f"encoders/speech/{n}" for n in ("bundle.json", "tokenizer/dict.txt")}
    assert kept <= set(bundle.manifest.files)
    assert not [n for n in bundle.manifest.files if n.startswith("encoders/") and n.endswith(WEIGHTS)]
    for name in ("text", "speech", "sentences"):
        (tmp_path / name).rename(tmp_path / f"{name}_gone")
    (tmp_path / "a").rename(tmp_path / "moved")
    sound = (2000 * np.random.default_rng(0).standard_normal(4000)).astype(np.int16)
    write_sound(tmp_path / "one.wav", sound, 16000)
    spoken = [{"id": f"u{i}", "sentence": s, "recording": "one.wav"} for i, s in enumerate(SENTENCES)]
    (tmp_path / "calls.jsonl").write_text(json.dumps({"dialogue": "d", "utterances": spoken}) + "\n")
    arguments = ["infer", str(tmp_path / "moved"), str(tmp_path / "calls.jsonl"), "-o", str(tmp_path / "out.jsonl")]
    result = CliRunner().invoke(cli.app, [*arguments, "--runtime", "torch"])
    assert result.exit_code == 0, result.output
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [a["unit"] for a in answers] == [f"u{i}" for i in range(len(SENTENCES))]
    assert all(a["modalities"] == ["text", "audio"] for a in answers)
    # The words tell the utterances apart, the recording is the same.
    assert len({a["probabilities"]["sad"] for a in answers}) == len(SENTENCES)


def test_sentence_vectors_are_berts_whatever_stands_beside_a_sentence_and_behind_it(tmp_path: Path) -> None:
    bert = sentence_encoder(tmp_path / "sentences")
    sentences = [*SENTENCES, "", "no " * 50]
    tokenizer = TextTokenizer.load(tmp_path / "sentences" / "tokenizer")
    ids = [torch.from_numpy(tokenizer.encode(s)) for s in sentences]
    ids = [i if len(i) <= 20 else torch.cat([i[:19], i[-1:]]) for i in ids]
    assert len({len(i) for i in ids}) > 3
    with torch.no_grad():
        wanted = [bert.first(i[None], None, torch.tensor([len(i)]))[0].numpy() for i in ids]
    np.testing.assert_allclose(sentence_vectors(str(tmp_path / "sentences"), sentences), wanted, atol=1e-5)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "model.onnx").touch()
    with pytest.raises(InputError, match="old was made by an earlier version: make it again with mer encoder"):
        sentence_vectors(str(tmp_path / "old"), ["no"])


@pytest.mark.parametrize("dropout", [True, False])
def test_what_frozen_encoders_give_is_computed_once_in_a_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropout: bool
) -> None:
    class Forgetful(dict[Any, Any]):
        def setdefault(self, key: Any, default: Any = None) -> Any:
            return default

    encoded: list[int] = []

    def first(self: Bert, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        encoded.append(len(ids))
        return run_first(self, ids, *rest)

    def fitted(name: str) -> tuple[list[Any], int]:
        encoded.clear()
        bundle = fit(
            small("iemocap", f"protocol.freeze.dropout={dropout}", "epochs=3"), data, tmp_path / name, quiet=True
        )
        return [json.loads(line) for line in bundle.path("train/metrics.jsonl").read_text().splitlines()], sum(encoded)

    run_first = Bert.first
    monkeypatch.setattr(Bert, "first", first)
    records, rows = fitted("once")
    monkeypatch.setattr(tab_protocol, "nothing_known", Forgetful)
    again, all_rows = fitted("again")
    for name in ("train", "splits"):
        assert [flat(r[name]) for r in records] == [
            pytest.approx(flat(r[name]), abs=1e-4, rel=1e-5, nan_ok=True) for r in again
        ]
    corpus = prepare_run(small("iemocap"), data, draws_weights=False).corpus
    train, measured = len(corpus.split("train")), len(corpus.split("valid")) + len(corpus.split("test"))
    per_encoder = 3 * train + measured if dropout else train + measured
    final = all_rows - 2 * 3 * (train + measured)
    assert rows <= 2 * per_encoder + final < all_rows


def flat(found: dict[str, Any]) -> list[float]:
    return [x for v in found.values() for x in (flat(v) if isinstance(v, dict) else [v])]


def test_dropout_is_left_out_of_encoders_that_are_frozen_as_a_whole(data: Path) -> None:
    with pytest.raises(UsageError, match=r"of text protocol\.freeze\.text says 1"):
        prepare_run(small("iemocap", "protocol.freeze={text: 1, dropout: false}"), data, draws_weights=False)
