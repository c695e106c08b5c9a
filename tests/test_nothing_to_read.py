"""A unit of which a variant can read nothing stays in the output without a label, is counted, and is never made up."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import mtee_bundles
import numpy as np
import pytest
import small_bundle
import small_emt
import small_facialmmt
import small_live
import small_tab
import torch
from conftest import Mer

from mer_export.bucket import Bucket
from mer_export.bundle import Bundle
from mer_export.data.bundle_data import bundle_spec
from mer_export.data.dialogues import Dialogue, Utterance
from mer_export.data.labels import LabelReader
from mer_export.data.open import Through, open_corpus, stream_samples
from mer_export.data.samples import Sample
from mer_export.data.shapes import context, sequences
from mer_export.data.spec import ContextData, DataSpec
from mer_export.data.synthetic import synthesise
from mer_export.errors import BundleError, InputError
from mer_export.exporters import export_variant
from mer_export.metrics.measure import measure
from mer_export.task import Task
from runtimes.backends.way import find_ways
from runtimes.features.completed import Completion
from runtimes.features.encoded import Outcome
from runtimes.parity.run import run_parity
from runtimes.predict.evaluate import evaluate
from runtimes.predict.prediction import Prediction
from runtimes.predict.predictor import Predictor
from train.config import load_preset
from train.evaluate import evaluate as evaluate_in_torch
from train.fit import EVALUATION, fit

SMALL = Path(__file__).parent / "data"
Made = tuple[Bundle, list[Sample]]


def _cmerc(root: Path) -> Made:
    return small_bundle.make_bundle(root), small_bundle.make_samples(3)


def _emt(name: str) -> Callable[[Path], Made]:
    def make(root: Path) -> Made:
        bundle = small_emt.make_emt(root, name)
        return bundle, [small_emt.utterance(bundle.manifest.contract, seed) for seed in range(3)]

    return make


def _facialmmt(variant: str) -> Callable[[Path], Made]:
    def make(root: Path) -> Made:
        bundle = small_facialmmt.make(root, variant)
        return bundle, small_facialmmt.utterances(bundle.manifest.contract, 3)

    return make


def _mtee(name: str) -> Callable[[Path], Made]:
    def make(root: Path) -> Made:
        return mtee_bundles.make_bundle(root, name), mtee_bundles.make_samples(mtee_bundles.config_of(name), 3)

    return make


def _tab(variant: str) -> Callable[[Path], Made]:
    def make(root: Path) -> Made:
        bundle = small_tab.make_tab(root, variant)
        return bundle, [small_tab.spoken(bundle.manifest.contract, seed) for seed in range(3)]

    return make


MODELS: dict[str, Callable[[Path], Made]] = {
    "cmerc": _cmerc,
    **{name: _emt(name) for name in ("emt", "emt vectors", "mult", "tfr_net")},
    **{f"facialmmt {variant}": _facialmmt(variant) for variant in ("fusion", "vision")},
    **{f"mtee {name}": _mtee(name) for name in ("eea", "rnn_lf", "mult", "regression", "eea_audio")},
    **{f"tab {variant}": _tab(variant) for variant in ("fusion", "lhs", "text_tab", "audio_tab", "tab")},
}


def emptied(sample: Sample, bundle: Bundle) -> Sample:
    """Without any modality; who speaks is still known."""
    given = {s.name for s in bundle.manifest.contract.features if s.modality}
    return replace(sample, inputs={n: a for n, a in sample.inputs.items() if n not in given})


@pytest.mark.parametrize("model", MODELS)
def test_it_has_no_label_on_any_model_and_its_neighbours_have_theirs(model: str, tmp_path: Path) -> None:
    bundle, samples = MODELS[model](tmp_path / "bundle")
    first, second, third = samples
    with Predictor(bundle, "torch", batch=3) as running:
        wanted = list(running.predict([first, third]))
        found = list(running.predict([first, emptied(second, bundle), third]))
    empty = [p for p in found if p.sample == second.id]
    assert [p.unit for p in empty] == list(second.units)
    assert {(p.label, p.index, p.score, p.labels, p.numbers, p.modalities) for p in empty} == {(None,) * 3 + ((),) * 3}
    assert [p for p in found if p.sample != second.id] == wanted


class Broken:
    """Encoders that cannot read the file of one utterance, and make nothing of the others."""

    def outcomes(self, blocks: Iterable[Iterable[Dialogue]]) -> Iterator[Outcome]:
        for utterance in (u for dialogues in blocks for d in dialogues for u in d.utterances):
            yield Outcome(problem="u1.wav was cut off" if utterance.id == "u1" else "")


@pytest.mark.parametrize(
    ("system", "words"), [("cmerc", False), ("tab", False), ("tab", True), ("facialmmt", True), ("emt", False)]
)
def test_an_utterance_whose_file_cannot_be_read_has_no_label_and_its_words_stay_with_its_neighbours(
    system: str, words: bool, tmp_path: Path
) -> None:
    bundle, draw = small_live.MAKERS[system](tmp_path / "bundle")
    random = np.random.default_rng(0)
    said = [draw(random) | {"id": f"u{i}", "speaker": "AAB"[i]} for i in range(3)]
    if not words:
        del said[1]["text"]
    whole = said if words else [said[0], said[2]]

    with Predictor(bundle, "torch", batch=3) as running:

        def answers(utterances: list[dict[str, Any]], through: Through | None = None) -> list[Prediction]:
            path = tmp_path / "d.jsonl"
            path.write_text(json.dumps({"dialogue": "d", "utterances": utterances}) + "\n")
            spec = bundle_spec(bundle, path)
            return list(running.predict(stream_samples(path, spec, running.task.labels, through=through)))

        wanted = {p.unit: p for p in answers(whole)}
        completion = Completion(cast(Any, Broken()))
        found = answers(said, completion)
    assert [(p.unit, p.label is None, p.modalities == ()) for p in found] == [
        ("u0", False, False),
        ("u1", True, True),
        ("u2", False, False),
    ]
    for own in (found[0], found[2]):
        assert own.numbers == pytest.approx(wanted[own.unit].numbers, abs=1e-6)
    assert completion.unreadable == 1


def test_what_cannot_be_read_is_not_answered_from_its_words_alone(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a"]) + "\n")
    spec = DataSpec(unit="utterance", tokenizer=str(tmp_path))
    said = [Utterance("u", sentence="a a"), Utterance("v", sentence="a", unreadable=True)]
    read = sequences.samples(Dialogue("d", "all", said, "here"), spec, LabelReader("here", ["a"]))
    assert [sorted(s.inputs) for s in read] == [["input_ids"], []]


def test_what_a_variant_does_not_read_does_not_count(tmp_path: Path) -> None:
    bundle, samples = _mtee("eea_audio")(tmp_path / "bundle")
    other = replace(samples[1], inputs={"text": np.ones((4, 6), np.float32)})
    with Predictor(bundle, "torch") as running:
        assert [p.label is None for p in running.predict([samples[0], other])] == [False, True]


def test_metrics_say_how_many_they_left_out(tmp_path: Path) -> None:
    bundle, samples = _cmerc(tmp_path / "bundle")
    with Predictor(bundle, "torch") as running:
        without = evaluate(running, samples[:2])
        found = evaluate(running, [*samples[:2], emptied(samples[2], bundle)])
    assert found.metrics == without.metrics
    assert found.counts == {"units": 3, "left_out": 3}
    assert without.counts == {"units": 3}


def test_the_original_takes_the_first_class_where_all_scores_are_nan() -> None:
    assert torch.full((2, 7), torch.nan).argmax(dim=1).tolist() == [0, 0]


def test_an_utterance_without_a_face_counts_as_the_original_counts_it(tmp_path: Path) -> None:
    bundle, samples = _facialmmt("vision")(tmp_path / "bundle")
    samples = [*samples, *small_facialmmt.utterances(bundle.manifest.contract, 3, seed=1)]
    given = [emptied(s, bundle) if i in (1, 4) else s for i, s in enumerate(samples)]
    task = bundle.manifest.task
    with Predictor(bundle, "torch") as running:
        answers = list(running.predict(given))
        found = evaluate(running, given)
    assert [p.label is None for p in answers] == [i in (1, 4) for i in range(6)]
    decided = np.asarray([0 if p.index is None else p.index for p in answers])
    truth = np.concatenate([s.labels for s in given if s.labels is not None])
    assert found.metrics == measure(task, truth, np.eye(len(task.labels), dtype=np.float32)[decided])
    assert found.counts == {"units": 6, "scored_as_original": 2}
    measured = evaluate_in_torch(bundle, given).metrics
    assert measured == {n: pytest.approx(v, abs=0.01) for n, v in found.metrics.items() if n in measured}


def test_a_label_for_what_is_unanswered_is_one_of_the_classes() -> None:
    assert Task(labels=("a", "b"), unanswered="b").unanswered_scores(2).argmax(1).tolist() == [1, 1]
    assert np.isnan(Task(labels=("a", "b")).unanswered_scores(1)).all()
    with pytest.raises(ValueError, match="'c', which is none of the classes"):
        Task(labels=("a", "b"), unanswered="c")


@pytest.fixture(scope="module")
def faceless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of FacialMMT; in every split some utterances, the first at least, have no face."""
    root = tmp_path_factory.mktemp("faceless")
    synthesise("facialmmt", "meld", root, 8, seed=1, audio_dim=5, vision_dim=4, audio_len=6, vision_len=5, image_size=8)
    for file in (root / "V").glob("*.pkl"):
        content = pickle.loads(file.read_bytes())
        for part in content.values():
            part["vision_utt_mask"][0] = 0
        file.write_bytes(pickle.dumps(content))
    return root


def without_face(root: Path, split: str) -> list[bool]:
    (part,) = pickle.loads((root / "V" / f"meld_{split}_vision_utt.pkl").read_bytes()).values()
    return (np.asarray(part["vision_utt_mask"]).sum(axis=1) == 0).tolist()


def test_an_utterance_without_a_face_is_read(faceless: Path) -> None:
    corpus = open_corpus(faceless, DataSpec(modalities=["vision"]))
    for split, samples in corpus.splits.items():
        assert [dict(s.inputs) == {} for s in samples] == without_face(faceless, split)
        assert all(s.labels is not None for s in samples)


def test_training_does_without_it_and_measures_as_the_original(
    faceless: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = small_facialmmt.SMALL
    names = ("vision_dim", "width", "heads", "feed_forward", "vision_len", "vision_layers")
    sets = [f"model.{n}={json.dumps(small[n])}" for n in names]
    config = load_preset("facialmmt/meld_vision", [*sets, "epochs=1", "batch=4", "device=cpu"])
    bundle = fit(config, faceless, tmp_path / "bundle", quiet=True)
    missing = {split: sum(without_face(faceless, split)) for split in ("train", "test")}
    for split, count in missing.items():
        assert f"{split}: {count} items have none of vision: not trained on, counted as neutral" in caplog.text
    kept = json.loads(bundle.path(EVALUATION).read_text())["test"]["single"]
    samples = open_corpus(faceless, config.data).split("test")
    with Predictor(bundle, "torch") as running:
        found = evaluate(running, samples)
    assert (found.units, found.as_original) == (len(samples), missing["test"])
    assert kept["weighted_f1"] == pytest.approx(found.metrics["weighted_f1"], abs=0.01)


def test_an_utterance_without_words_and_sound_is_read_and_one_that_nothing_reads_is_an_error() -> None:
    spec, labels = DataSpec(context=ContextData()), LabelReader("here", ["a"])
    silent = Dialogue("d", "all", [Utterance("u")], "here")
    (sample,) = context.samples(silent, spec, labels)
    assert dict(sample.inputs) == {}
    spoken = Dialogue("d", "all", [Utterance("u", sentence="words")], "here")
    with pytest.raises(InputError, match="neither tokens nor anything to make them of"):
        list(context.samples(spoken, spec, labels))


def test_parity_leaves_it_out_and_says_so(tmp_path: Path) -> None:
    bundle, samples = _cmerc(tmp_path / "bundle")
    export_variant(bundle, "torchscript", Bucket(utterances=4))
    ways = [w for w in find_ways(bundle) if w.why_not is None]
    report = run_parity(bundle, [*samples, emptied(samples[0], bundle)], candidates=ways)
    assert (report.samples, report.left_out, report.verdict) == (3, 1, "pass")
    assert "1 samples have nothing to read and are left out" in report.page()


def jsonl(path: Path, utterances: list[dict[str, object]]) -> Path:
    lines = [{"unit": "utterance"}, {"dialogue": "d", "split": "test", "utterances": utterances}]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def test_a_file_keeps_its_rows_and_the_summary_counts_them(mer: Mer, tmp_path: Path) -> None:
    audio = [[0.1] * 5] * 4
    data = jsonl(tmp_path / "d.jsonl", [{"audio": audio, "score": 1.0}, {"sentence": "no features"}, {"audio": audio}])
    words = ["infer", SMALL / "bundles" / "emt", data, "-o", tmp_path / "o.jsonl", "--quiet", "--json"]
    code, out, err = mer(*words)
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [r["label"] is None for r in rows] == [False, True, False]
    assert (rows[1]["score"], rows[1]["modalities"]) == (None, [])
    summary = json.loads(out)
    assert (summary["units"], summary["without_prediction"], summary["nothing_to_read"]) == (3, 1, 1)


def test_data_without_anything_to_read_are_an_error(mer: Mer, tmp_path: Path) -> None:
    data = jsonl(tmp_path / "d.jsonl", [{"sentence": "a"}, {"sentence": "b"}])
    code, _, err = mer("infer", SMALL / "bundles" / "emt", data, "-o", tmp_path / "o.jsonl", "--quiet")
    assert (code, "nothing to read of any of the 2 units" in err) == (2, True)
    assert not (tmp_path / "o.jsonl").exists()


def test_a_manifest_with_another_label_for_it_is_refused(tmp_path: Path) -> None:
    bundle = _facialmmt("vision")(tmp_path / "bundle")[0]
    assert bundle.manifest.task.unanswered == "neutral"
    copy = shutil.copytree(bundle.root, tmp_path / "copy")
    content = json.loads((copy / "bundle.json").read_text())
    content["schema_version"] = 1
    content.pop("checksum")
    content["task"]["unanswered"] = "calm"
    (copy / "bundle.json").write_text(json.dumps(content))
    with pytest.raises(BundleError, match="unanswered is 'calm'"):
        Bundle.open(copy)
