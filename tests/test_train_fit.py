"""A run can be killed, resumed, refused and repeated; what it leaves is always a valid bundle."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Mer
from safetensors.numpy import load_file

import mer_export
from mer_export import registry
from mer_export.bundle import CONFIG, MANIFEST, WEIGHTS, Bundle
from mer_export.data.open import open_corpus
from mer_export.data.samples import Sample
from mer_export.data.synthetic import synthesise
from mer_export.errors import BundleError, InputError, NotAvailableError, UsageError
from train import prepared
from train.config import load_preset
from train.evaluate import evaluate, evaluate_published
from train.fit import EVALUATION, fit
from train.provenance import git_revision
from train.state import DIFFICULTY, METRICS, STATE, TENSORS
from train.systems.cmerc.protocol import CmercProtocol
from train.systems.cmerc.settings import CmercSettings
from train.tracking import parse_trackers

ROOT = Path(__file__).parents[1]
DIMS = {"text_dim": 8, "audio_dim": 8, "vision_dim": 8}
SMALL = [
    *(f"model.{name}={dim}" for name, dim in DIMS.items()),
    *("model.width=8", "model.hidden=8", "epochs=6", "batch=4", "device=cpu"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synth")
    synthesise("cmerc", "meld", folder, dialogues=20, seed=3, **DIMS)
    return folder


def small(*sets: str):
    return load_preset("sample/demo", [*SMALL, *sets])


def weights(root: Path) -> dict[str, np.ndarray]:
    return load_file(root / WEIGHTS)


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "a"
    fit(small(), data, out, quiet=True)
    return out


def test_a_finished_bundle_says_where_it_comes_from(trained: Path):
    bundle = Bundle.open(trained)
    manifest = bundle.manifest
    assert bundle.verify() == len(manifest.files)
    assert set(manifest.features) == {"text", "audio", "vision"}
    assert manifest.provenance["versions"]["torch"]
    assert manifest.provenance["versions"]["mer"] == mer_export.__version__
    assert manifest.provenance["data"]["splits"]["train"]["items"] == 16
    assert {CONFIG, WEIGHTS, METRICS, STATE, EVALUATION, DIFFICULTY} == set(manifest.files)
    assert TENSORS not in manifest.files
    lines = [json.loads(line) for line in bundle.path(METRICS).read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 7))
    assert {"class_loss", "rank", "mscl", "cscl", "total"} == set(lines[0]["train"])
    assert manifest.provenance["result"]["split"] == "test"


def test_a_checkout_that_does_not_know_this_code_is_not_its_revision(tmp_path: Path):
    folder = tmp_path / ".venv" / "train"
    folder.mkdir(parents=True)
    name = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (("init", "-q"), (*name, "commit", "-q", "--allow-empty", "-m", "m")):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    assert git_revision(folder) is None
    (folder / "own.py").write_text("")
    for words in (("add", "."), (*name, "commit", "-q", "-m", "m")):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    assert re.fullmatch("[0-9a-f]{40}", str(git_revision(folder)))


def test_training_is_repeatable(trained: Path, data: Path, tmp_path: Path):
    fit(small(), data, tmp_path / "b", quiet=True)
    assert same(weights(trained), weights(tmp_path / "b"))


def test_the_final_weights_are_those_that_were_evaluated(trained: Path, data: Path):
    bundle = Bundle.open(trained)
    samples = open_corpus(data).split("test")
    stored = json.loads(bundle.path(EVALUATION).read_text())["test"]["single"]
    assert evaluate(bundle, samples).metrics == stored
    assert evaluate(bundle, samples, batch=1).metrics | {"loss": 0} == stored | {"loss": 0}
    assert set(evaluate_published(bundle, samples).metrics) == set(stored)


def run_until_epoch(data: Path, out: Path, epoch: int, sets: list[str]) -> None:
    """Trains in a process of its own and kills it once `epoch` epochs are committed."""
    code = (
        "import sys; from train.config import load_preset; from train.fit import fit; "
        "fit(load_preset('sample/demo', sys.argv[3:]), sys.argv[1], sys.argv[2], quiet=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(data), str(out), *sets], cwd=ROOT)
    try:
        for _ in range(2400):
            time.sleep(0.05)
            assert process.poll() is None, f"training ended with {process.returncode} before it could be killed"
            if (out / STATE).is_file() and json.loads((out / STATE).read_text())["epoch"] >= epoch:
                return
        pytest.fail("training made no progress")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_a_killed_run_resumes_to_the_weights_of_an_uninterrupted_one(data: Path, tmp_path: Path):
    sets = [*SMALL, "epochs=20", "keep.rule=best", "average=0.9"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = 0
    for _ in range(2):
        run_until_epoch(data, killed, done + 2, sets)
        after_kill = Bundle.open(killed)
        assert after_kill.verify() == len(after_kill.manifest.files)
        done = json.loads((killed / STATE).read_text())["epoch"]
    config = load_preset("sample/demo", sets)
    bundle = fit(config, data, killed, quiet=True)
    fit(config, data, whole, quiet=True)
    assert json.loads(bundle.path(STATE).read_text())["finished"]
    assert same(weights(whole), weights(killed))
    assert (whole / EVALUATION).read_bytes() == (killed / EVALUATION).read_bytes()
    epochs = [json.loads(line)["epoch"] for line in bundle.path(METRICS).read_text().splitlines()]
    assert epochs == list(range(1, 21))


def test_a_finished_run_is_returned_as_it_is(trained: Path, data: Path):
    before = (trained / MANIFEST).stat().st_mtime_ns
    fit(small(), data, trained, quiet=True)
    assert (trained / MANIFEST).stat().st_mtime_ns == before


def test_of_several_processes_the_first_alone_writes_after_training_and_speaks(
    mer: Mer, trained: Path, data: Path, monkeypatch: pytest.MonkeyPatch
):
    attached = []
    monkeypatch.setattr("train.fit.fit", lambda *_, **__: Bundle.open(trained))
    monkeypatch.setattr("mer_export.encoders.attached.attach", lambda bundle, _: attached.append(bundle))
    said = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        said.append(
            mer("train", "cmerc", "--preset", "sample/demo", "--data", data, "--out", trained)[1].count("epoch")
        )
    assert (said, len(attached)) == ([1, 0], 1)


def test_another_configuration_is_refused_by_the_field_that_differs(trained: Path, data: Path):
    with pytest.raises(UsageError, match=r"lr: 0.003, now 0.01"):
        fit(small("lr=0.01"), data, trained, quiet=True)
    with pytest.raises(UsageError, match="already holds a bundle"):
        fit(small(), data, trained, resume=False, quiet=True)


def test_other_data_are_refused(trained: Path, tmp_path: Path):
    synthesise("cmerc", "meld", tmp_path, dialogues=20, seed=4, **DIMS)
    with pytest.raises(UsageError, match="other data"):
        fit(small(), tmp_path, trained, quiet=True)


def test_a_run_that_started_from_other_weights_than_stand_there_now_is_refused(
    trained: Path, data: Path, tmp_path: Path
):
    names = ("init", "protocol.curriculum.difficulty")
    config = small("epochs=1", *(f"{name}={trained}" for name in names))
    bundle = fit(config, data, tmp_path / "tuned", quiet=True)
    fit(config, data, tmp_path / "tuned", quiet=True)
    for name in names:
        with bundle.commit() as change:
            assert change.manifest.provenance[name] == Bundle.open(trained).manifest.weights.sha256
            change.manifest.provenance[name] = "0" * 64
        with pytest.raises(UsageError, match=f"started from other weights than {name} has now: pass --force"):
            fit(config, data, tmp_path / "tuned", quiet=True)
        with bundle.commit() as change:
            change.manifest.provenance[name] = Bundle.open(trained).manifest.weights.sha256


def test_force_starts_over(trained: Path, data: Path, tmp_path: Path):
    out = tmp_path / "copy"
    shutil.copytree(trained, out)
    fit(small("epochs=1"), data, out, force=True, quiet=True)
    assert len((out / METRICS).read_text().splitlines()) == 1


def test_a_second_trainer_is_locked_out(trained: Path, data: Path, tmp_path: Path):
    out = tmp_path / "copy"
    shutil.copytree(trained, out)
    with Bundle.open(out).lock(), pytest.raises(BundleError, match="is being written by"):
        fit(small("epochs=1"), data, out, force=True, quiet=True)


def test_patience_ends_training_and_the_best_epoch_is_kept(data: Path, tmp_path: Path):
    out = tmp_path / "p"
    bundle = fit(small("epochs=60", "keep.rule=best", "keep.patience=2", "lr=0.05"), data, out, quiet=True)
    state = json.loads(bundle.path(STATE).read_text())
    values = [
        json.loads(line)["splits"]["test"]["weighted_f1"] for line in bundle.path(METRICS).read_text().splitlines()
    ]
    assert state["epoch"] == state["best_epoch"] + 2 < 60
    assert max(values) == values[state["best_epoch"] - 1] == state["best_value"]
    assert evaluate(bundle, open_corpus(data).split("test")).metrics["weighted_f1"] == max(values)


def test_the_staged_recipe_measures_its_own_difficulties(data: Path, tmp_path: Path):
    sets = ("protocol.curriculum.difficulty=measure", "protocol.curriculum.measure_epochs=2", "epochs=2")
    bundle = fit(small(*sets), data, tmp_path / "m", quiet=True)
    measured = json.loads(bundle.path(DIFFICULTY).read_text())
    assert set(measured) == {s.id for s in open_corpus(data).split("train")}
    lines = [json.loads(line) for line in bundle.path(METRICS).read_text().splitlines()]
    assert [line["dialogues"] for line in lines] == [6, 12]


def test_published_training_reports_both_semantics(data: Path, tmp_path: Path):
    dims = ["model.text_linear=true", "model.width=8", "model.hidden=8", *SMALL[:3], "epochs=2", "device=cpu"]
    bundle = fit(load_preset("cmerc/meld", dims), data, tmp_path / "pub", quiet=True)
    found = json.loads(bundle.path(EVALUATION).read_text())["test"]
    assert set(found) == {"single", "batch", "classes"}
    state = json.loads(bundle.path(STATE).read_text())
    assert found["batch"]["weighted_f1"] == state["best_value"]


def test_a_run_is_followed_by_every_tracker_that_is_asked_for(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("wandb")
    # Its own default, a database, takes longer to make than the run.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    fit(small("epochs=2"), data, tmp_path / "t", quiet=True, tensorboard=True, track=("mlflow", "wandb"))
    assert list((tmp_path / "t-tensorboard").glob("events*"))
    (run,) = mlflow.search_runs(experiment_names=["cmerc"], output_format="list")
    records = [json.loads(line) for line in (tmp_path / "t" / METRICS).read_text().splitlines()]
    assert run.data.params["system"] == "cmerc"
    assert run.data.params["model.hidden"] == str(small().model["hidden"])
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "test/weighted_f1")
    assert [(m.step, m.value) for m in history] == [(r["epoch"], r["splits"]["test"]["weighted_f1"]) for r in records]
    (offline,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert b"train/total" in offline.read_bytes()


def test_a_tracker_that_is_missing_is_refused_before_the_data_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from accelerate import tracking

    monkeypatch.setattr(tracking, "_available_trackers", [])
    with pytest.raises(NotAvailableError, match=r"^mlflow is not installed: pip install 'mer-export\[mlflow\]'$"):
        fit(small(), tmp_path / "nothing", tmp_path / "t", track=("mlflow",))
    with pytest.raises(
        UsageError, match=r"--track 'neptune' is no tracker, there are \['tensorboard', 'mlflow', 'wandb'"
    ):
        parse_trackers("mlflow, neptune")
    assert parse_trackers("wandb,wandb, mlflow") == ("wandb", "mlflow")


def test_features_of_another_width_are_refused(data: Path, tmp_path: Path):
    with pytest.raises(InputError, match="text is 8 wide, the model was made for 9"):
        fit(small("model.text_dim=9"), data, tmp_path / "w", quiet=True)
    with pytest.raises(InputError, match=r"set model.text_dim=8"):
        fit(small("model.text_dim=9", "model.standardise=[text]"), data, tmp_path / "w", quiet=True)


def test_a_split_that_is_missing_is_named(data: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="no split 'dev'"):
        fit(small("train_splits=[train, dev]"), data, tmp_path / "s", quiet=True)
    with pytest.raises(UsageError, match=r"keep\.split 'dev' is not evaluated"):
        fit(small("keep.rule=best", "keep.split=dev"), data, tmp_path / "s", quiet=True)


def test_a_split_to_measure_without_labels_is_refused_before_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def unlabelled(*given, **named):
        corpus = open_corpus(*given, **named)
        return replace(corpus, splits=corpus.splits | {"test": [replace(s, labels=None) for s in corpus.split("test")]})

    monkeypatch.setattr(prepared, "open_corpus", unlabelled)
    with pytest.raises(UsageError, match="split 'test' has no labels to measure by: leave it out of evaluate_splits"):
        fit(small(), data, tmp_path / "u", quiet=True)
    assert not prepared.prepare_run(small("evaluate_splits=[]"), data, draws_weights=True).measured


def test_two_rules_for_one_learning_rate_are_refused(data: Path):
    with pytest.raises(UsageError, match="plateau and warm_up both set the learning rate: leave one out"):
        prepared.prepare_run(small("warm_up=0", "plateau.split=test"), data, draws_weights=True)


@pytest.mark.parametrize("used", [["text"], ["audio", "vision"]])
def test_an_utterance_left_over_joins_the_batch_before_it_for_batch_norm(used: list[str]):
    system = registry.get("cmerc")
    model = system.parse({"labels": ["a", "b"], "norm": "BN", "modalities": used})
    protocol = CmercProtocol(CmercSettings())
    dialogues = [Sample(str(i), {}, ("u",) * units) for i, units in enumerate((2, 3, 1))]

    def sizes(size: int) -> list[int]:
        return [len(batch) for batch in protocol.batches(dialogues, size, model)]

    if used == ["text"]:
        assert sizes(2) == [3]
        with pytest.raises(UsageError, match=r"2 alone .* batch norm needs two: raise batch, or set model\.norm=LN"):
            sizes(1)
    else:
        assert (sizes(2), sizes(1)) == ([2, 1], [1, 1, 1]), "the norm is of text alone"


def test_diverging_training_ends_with_one_sentence(data: Path, tmp_path: Path):
    from mer_export.errors import MerError

    with pytest.raises(MerError, match="diverged in epoch"):
        fit(small("lr=1e30"), data, tmp_path / "d", quiet=True)


def test_bf16_autocast_keeps_float32_weights(data: Path, tmp_path: Path):
    fit(small("precision=bf16", "epochs=2"), data, tmp_path / "h", quiet=True)
    found = weights(tmp_path / "h")
    assert {a.dtype for a in found.values() if a.dtype.kind == "f"} == {np.dtype("float32")}
    assert all(np.isfinite(a).all() for a in found.values())
