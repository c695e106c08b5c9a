"""Bundles side by side: intervals and p values by dialogue, the same in every run, and what is not comparable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Mer
from safetensors.numpy import load_file, save_file

from mer_export.bundle import WEIGHTS, Bundle
from mer_export.data.open import open_corpus
from mer_export.data.spec import DataSpec
from mer_export.data.synthetic import synthesise
from mer_export.errors import UsageError
from mer_export.metrics.resampling import resolution
from mer_export.task import Task
from runtimes.pages.evaluation import write_evaluation
from runtimes.predict.comparison import Comparison, Contender, compare
from runtimes.predict.evaluate import Answers

DATA = Path(__file__).parent / "data"
BUNDLE, DIALOGUES = DATA / "bundles" / "cmerc", DATA / "small" / "dialogues.jsonl"
MELD = Task(labels=("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"))


def answers(task: Task = MELD, dialogues: int = 280, each: int = 9, right: float = 0.6, seed: int = 0) -> Answers:
    """Answers for a split of the size of MELD's, right as often as said; the labels are those of seed 0."""
    truth, draw = np.random.default_rng(0), np.random.default_rng(seed + 1)
    units = dialogues * each
    labels = truth.integers(0, len(task.labels), units)
    said = np.where(draw.random(units) < right, labels, draw.integers(0, len(task.labels), units))
    names = tuple(f"d{i // each}/{i % each}" for i in range(units))
    scores = np.eye(len(task.labels), dtype=np.float32)[said]
    return Answers(task, names, tuple(n.split("/")[0] for n in names), labels, scores, np.zeros(units, bool))


def beside(*found: Answers, rounds: int = 1000, seed: int = 0) -> Comparison:
    named = [
        (Contender(bundle=name, system="cmerc", runtime="torch", precision="fp32"), a)
        for name, a in zip("abc", found, strict=False)
    ]
    return compare(named, "data", "test", rounds, seed)


def test_a_bundle_beside_itself_differs_in_nothing_and_a_better_one_beyond_chance() -> None:
    found = beside(answers(), answers(), answers(right=0.8, seed=1), rounds=10_000)
    same, better = ({d.metric: d for d in found.differences if d.bundle == name} for name in "bc")
    assert {(d.difference, d.low, d.high, d.p) for d in same.values()} == {(0.0, 0.0, 0.0, 1.0)}
    accuracy = better["accuracy"]
    assert 10 < accuracy.low < accuracy.difference < accuracy.high < 25
    assert accuracy.p == found.least_p == pytest.approx(1 / 10_001)
    assert (found.grouped, found.groups, found.units) == (True, 280, 2520)
    assert beside(answers(), answers(), answers(right=0.8, seed=1), rounds=10_000) == found


def test_an_interval_of_accuracy_is_as_wide_as_the_binomial_says_where_units_are_independent() -> None:
    (one, _), width = beside(answers(), answers(seed=1)).contenders, 2 * 196 * np.sqrt(0.66 * 0.34 / 2520)
    found = one.metrics["accuracy"]
    assert found.high - found.low == pytest.approx(width, rel=0.15)


def test_whole_dialogues_are_drawn_so_dependent_utterances_say_less() -> None:
    flat = answers()
    dialogue = np.repeat(np.random.default_rng(5).random(280) < 0.66, 9)
    said = np.where(dialogue, flat.labels, (flat.labels + 1) % 7)
    alike = flat._replace(scores=np.eye(7, dtype=np.float32)[said])
    widths = [
        found.high - found.low
        for one in (flat, alike)
        for found in [beside(one, answers(seed=1)).contenders[0].metrics["accuracy"]]
    ]
    assert widths[1] > 2 * widths[0]


def test_two_equally_good_bundles_are_rarely_told_apart() -> None:
    p = [
        next(d.p for d in beside(answers(dialogues=40, seed=s), answers(dialogues=40, seed=100 + s)).differences)
        for s in range(20)
    ]
    assert sum(v < 0.05 for v in p) <= 4
    assert 0.2 < np.mean(p) < 0.8


def test_few_dialogues_cannot_give_a_small_p() -> None:
    assert resolution(5, 10_000) == 1 / 16
    assert beside(answers(dialogues=5), answers(dialogues=5, right=1.0)).least_p == 1 / 16


def test_units_are_matched_by_name_and_those_without_an_answer_are_left_out_of_both() -> None:
    first, order = answers(), np.random.default_rng(2).permutation(2520)
    shuffled = Answers(
        MELD,
        *(tuple(np.array(v)[order]) for v in (first.units, first.groups)),
        labels=first.labels[order],
        scores=first.scores[order].copy(),
        empty=first.empty,
    )
    shuffled.scores[:3] = np.nan
    found = beside(first, shuffled)
    assert (found.units, found.left_out) == (2517, 3)
    assert {d.difference for d in found.differences} == {0.0}
    assert "3 that some bundle does not answer left out" in found.caption()


def test_what_cannot_be_compared_is_refused_in_a_sentence() -> None:
    first = answers()
    others = {
        "the labels of their tasks are": answers(Task(labels=("yes", "no"))),
        "the kind of their tasks are classification and multilabel": first._replace(
            task=Task(kind="multilabel", labels=MELD.labels)
        ),
        "read different units of these data, one of them alone has": answers(dialogues=281),
        "read different labels of these data": first._replace(labels=first.labels[::-1].copy()),
        "no labelled unit that all bundles answer": first._replace(scores=np.full_like(first.scores, np.nan)),
    }
    for said, other in others.items():
        with pytest.raises(UsageError, match=said) as caught:
            beside(first, other)
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small bundle with other weights; what was exported of it is gone."""
    bundle = Bundle.open(shutil.copytree(BUNDLE, tmp_path_factory.mktemp("compared") / "second"))
    with bundle.commit() as change:
        for variant in list(change.manifest.variants):
            change.manifest.variants.remove(variant)
        held = load_file(bundle.root / WEIGHTS)
        draw = np.random.default_rng(0)
        save_file(
            {
                n: v + draw.normal(0, 0.3, v.shape).astype(v.dtype) if v.dtype == np.float32 else v
                for n, v in held.items()
            },
            change.file(WEIGHTS),
        )
    return bundle.root


def test_the_command_says_metrics_intervals_and_p_as_text_json_and_pages(
    mer: Mer, second: Path, tmp_path: Path
) -> None:
    words = ["eval", BUNDLE, second, "--data", DIALOGUES, "--split", "test", "--runtime", "torch", "--resamples", 200]
    code, out, err = mer(*words)
    assert code == 0, err
    assert "p is of a two-sided paired permutation test by dialogue" in out
    assert f"second less {BUNDLE}" in out
    code, printed, err = mer(*words, "--json", "-o", tmp_path / "both.html")
    assert code == 0, err
    read = Comparison.model_validate_json(printed)
    assert [len(c.classes) for c in read.contenders] == [1, 1]
    assert (tmp_path / "both.html").read_text().count("<svg") == 2
    write_evaluation(read, tmp_path / "both.md")
    assert (tmp_path / "both.md").read_text().count("True (rows) and predicted (columns):") == 2
    write_evaluation(read, tmp_path / "both.json")
    assert json.loads((tmp_path / "both.json").read_text()) == json.loads(printed)
    code, printed, err = mer(*words, "--dry-run", "--json")
    assert (code, set(json.loads(printed)["bundles"])) == (0, {str(BUNDLE), str(second)}), err
    code, _, err = mer(*words, "--missing-rate", "0.5")
    assert (code, "name one bundle" in err) == (2, True), err
    other = DATA / "bundles" / "emt"
    code, _, err = mer("eval", BUNDLE, other, "--data", DIALOGUES, "--split", "test", "--runtime", "torch")
    assert (code, f"{other} cannot be compared: " in err) == (2, True), err


def test_one_bundle_says_how_each_label_was_decided(mer: Mer, tmp_path: Path) -> None:
    words = ["eval", BUNDLE, "--data", DIALOGUES, "--split", "test", "--runtime", "torch"]
    code, out, err = mer(*words, "-o", tmp_path / "one.html")
    assert code == 0, err
    assert all(word in out for word in ("labels ", "support", "precision", "recall", "true \\ predicted"))
    assert "<svg" in (tmp_path / "one.html").read_text()
    found = json.loads(mer(*words, "--json")[1])
    (table,) = found["classes"]
    assert sum(r["right"] for r in table["rows"]) / found["units"] == pytest.approx(found["metrics"]["accuracy"] / 100)
    code, _, err = mer(*words, "-o", tmp_path / "one.pdf")
    assert (code, "is written as .html, .md, .json" in err) == (2, True), err


@pytest.mark.parametrize(
    ("system", "dataset", "unit", "group"),
    [
        ("emt", "mosi", "train0$_$1", "train0"),
        ("facialmmt", "meld", "train/dia0_utt1", "0"),
    ],
)
def test_utterances_of_the_authors_files_know_their_video_or_dialogue(
    tmp_path: Path, system: str, dataset: str, unit: str, group: str
) -> None:
    synthesise(system, dataset, tmp_path, dialogues=24, seed=3)
    found = {s.id: s.group for s in open_corpus(tmp_path, DataSpec())}
    assert found[unit] == group
    assert len({*found.values()}) < len(found)
