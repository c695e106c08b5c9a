"""Features unlike those of training are named, those of held-out data are not, and other extractors are refused."""

from __future__ import annotations

import json
import logging
import shutil
import tracemalloc
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SAMPLE_DATA, Mer
from small_bundle import make_bundle, make_samples

from mer_export import registry
from mer_export.bundle import Bundle, FeatureStatistics
from mer_export.data.bundle_data import bundle_spec
from mer_export.data.feature_check import FEW, FeatureCheck, extractor_problem
from mer_export.data.missing import incomplete
from mer_export.data.open import open_corpus, said_extractors
from mer_export.data.samples import Sample
from mer_export.data.spec import DataSpec, Extractor
from mer_export.errors import InputError, UsageError
from runtimes.predict.evaluate import evaluate
from runtimes.predict.predictor import Predictor
from train.config import load_preset
from train.provenance import feature_statistics, width_statistics

needs_data = pytest.mark.skipif(not (SAMPLE_DATA / "mosi_utt").is_dir(), reason=f"no sample data in {SAMPLE_DATA}")
SMALL = Path(__file__).parent / "data"
BUNDLE, DIALOGUES = SMALL / "bundles" / "cmerc", SMALL / "small" / "dialogues.jsonl"
PRESETS = {
    "sample/mosi": "mosi_utt",
    "sample/mosi_text": "mosi_utt",
    "sample/mosi_emt": "mosi_utt",
    "sample/mosi_emt_tokens": "mosi_utt",
    "sample/ravdess_mtee": "ravdess_av",
    "sample/ravdess_emt": "ravdess_av",
    "sample/meld_text": "meld_text",
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose statistics are those of `make_samples`."""
    made = make_bundle(tmp_path_factory.mktemp("features") / "bundle")
    with made.commit() as change:
        change.manifest.features = feature_statistics(make_samples(40), made.manifest.contract, {})
    return Bundle.open(made.root)


def changed(samples: Iterable[Sample], name: str, change: Any) -> list[Sample]:
    return [replace(s, inputs={**s.inputs, name: change(s.inputs[name]).astype(np.float32)}) for s in samples]


def checked(bundle: Bundle, samples: Iterable[Sample]) -> FeatureCheck:
    found = FeatureCheck(bundle.manifest.features)
    found.add(samples)
    return found


@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("change", [lambda a: 1e4 * a, lambda a: 1e-4 * a, lambda a: 0 * a, lambda a: a + 50])
def test_features_of_another_size_are_named(bundle: Bundle, count: int, change: Any) -> None:
    found = checked(bundle, changed(make_samples(count, seed=5), "audio", change))
    assert found.verdict == "not as in training: audio"
    assert found.warning is not None
    assert "\n" not in found.warning
    assert "audio: " in found.warning
    assert "text" not in found.warning


@pytest.mark.parametrize("count", [1, 40])
def test_features_like_those_of_training_are_not(bundle: Bundle, count: int) -> None:
    found = checked(bundle, make_samples(count, seed=5))
    assert (found.verdict, found.warning) == ("as in training", None)


def test_the_numbers_are_those_of_the_values_themselves(bundle: Bundle) -> None:
    samples, known = make_samples(20, seed=3), bundle.manifest.features["audio"]
    values = np.concatenate([s.inputs["audio"].ravel() for s in samples]).astype(np.float64)
    found = next(f for f in checked(bundle, samples).findings() if f.input == "audio")
    assert found.units == sum(len(s.units) for s in samples)
    assert found.shift == pytest.approx(abs(values.mean() - known.mean) / known.std)
    assert found.scale == pytest.approx(values.std() / known.std)


def test_neither_padding_nor_batches_count(bundle: Bundle) -> None:
    samples = make_samples(12, seed=4)
    found = []
    for batch in (1, 5):
        with Predictor(bundle, "torch", batch=batch) as running:
            list(running.predict(samples))
            found.append(running.features.findings())
    assert found[0] == found[1] == checked(bundle, samples).findings()


def test_any_number_of_threads_may_add(bundle: Bundle) -> None:
    samples = make_samples(40)
    alone, together = checked(bundle, samples), FeatureCheck(bundle.manifest.features)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda sample: together.add([sample]), samples))
    for one, other in zip(alone.findings(), together.findings(), strict=True):
        assert one.units == other.units
        assert one[2:5] == pytest.approx(other[2:5])


def test_steps_that_are_dropped_on_purpose_count_as_they_were(bundle: Bundle) -> None:
    flat = [replace(s, inputs={n: s.inputs[n] for n in ("audio", "vision")}) for s in make_samples(10)]
    views = incomplete(flat, {"audio": 0.9, "vision": 0.9})
    assert checked(bundle, views).findings() == checked(bundle, flat).findings()


def test_a_predictor_warns_once_in_one_line(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    wrong = changed(make_samples(3), "audio", lambda a: 1e4 * a)
    with caplog.at_level(logging.WARNING, logger="mer"), Predictor(bundle, "torch") as running:
        for _ in range(2):
            evaluate(running, wrong)
    (record,) = caplog.records
    assert "audio: " in record.getMessage()


def test_a_strict_predictor_refuses_them(bundle: Bundle) -> None:
    wrong = changed(make_samples(3), "audio", lambda a: 1e4 * a)
    with Predictor(bundle, "torch", strict_features=True) as running, pytest.raises(UsageError, match="audio: "):
        list(running.predict(wrong))


def test_a_bundle_without_statistics_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    imported = make_bundle(tmp_path / "bundle")
    with Predictor(imported, "torch", strict_features=True) as running:
        list(running.predict(changed(make_samples(3), "audio", lambda a: 1e4 * a)))
        assert running.features.verdict == "not known"
    assert not caplog.records


def test_what_was_constant_in_training_is_held_by_its_range() -> None:
    known = {"audio": FeatureStatistics(width=2, mean=3, std=0, minimum=3, maximum=3)}
    for value, verdict in ((3.0, "as in training"), (3.001, "as in training"), (4.0, "not as in training: audio")):
        found = FeatureCheck(known)
        found.add([Sample("a", {"audio": np.full((4, 2), value, np.float32)}, ("a",))])
        assert found.verdict == verdict


@needs_data
@pytest.mark.parametrize("preset", PRESETS)
def test_no_held_out_split_of_real_data_warns_nor_any_part_of_it(preset: str) -> None:
    config = load_preset(preset)
    system = registry.get(config.system)
    contract = system.contract(system.parse(config.model))
    corpus = open_corpus(SAMPLE_DATA / PRESETS[preset], config.data.for_model(contract))
    known = feature_statistics([s for n in config.train_splits for s in corpus.split(n)], contract, {})
    assert known
    for split in {*corpus.splits} - {*config.train_splits}:
        for part in parts(corpus.split(split)):
            found = FeatureCheck(known)
            found.add(part)
            assert found.warning is None, (split, part[0].id, len(part))


def parts(samples: list[Sample]) -> Iterable[list[Sample]]:
    """The whole, every sample alone, and all parts in a row of at least as many units as make a run a long one."""
    yield samples
    yield from ([s] for s in samples)
    part: list[Sample] = []
    for sample in samples:
        part.append(sample)
        if sum(len(s.units) for s in part) >= FEW:
            yield part
            part = []


def lines(path: Path, header: dict[str, Any], factor: float = 1.0) -> Path:
    """The small dialogues with other words in their first line, and audio times a factor."""
    first, *rest = [json.loads(line) for line in DIALOGUES.read_text().splitlines()]
    if "dialogue" in first:
        first, rest = {}, [first, *rest]
    for utterance in (u for d in rest for u in d["utterances"]):
        if utterance.get("audio") is not None:
            utterance["audio"] = (factor * np.asarray(utterance["audio"])).tolist()
    path.write_text("\n".join(json.dumps(line) for line in [{**first, **header}, *rest] if line) + "\n")
    return path


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
@pytest.mark.parametrize("command", ["infer", "eval", "parity"])
def test_every_command_holds_features_against_training(
    mer: Mer, tmp_path: Path, command: str, runtime: str, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = shutil.copytree(BUNDLE, tmp_path / "bundle")
    ends = {"infer": ["--out", tmp_path / "o.jsonl"], "eval": ["--split", "train"], "parity": ["--split", "train"]}
    for factor, said in ((1.0, "as in training"), (1e4, "not as in training: audio")):
        data = lines(tmp_path / "d.jsonl", {}, factor)
        words = [command, bundle, *(["--data", data] if command != "infer" else [data]), *ends[command]]
        words += ["--runtime", runtime, "--quiet", "--json"]
        code, out, err = mer(*words, *(["--force"] if command == "infer" else []))
        # Answers to such features are of another size too, and rounded as that.
        assert code == 0 or (command, code, factor) == ("parity", 3, 1e4), err
        assert json.loads(out)["features"] == said
        assert ("mer" in {r.name for r in caplog.records}) == (factor > 1)
    (tmp_path / "o.jsonl").unlink(missing_ok=True)
    code, _, err = mer(*words, "--strict-features")
    assert (code, "audio: " in err, len(err.strip().splitlines())) == (2, True, 1)
    assert not (tmp_path / "o.jsonl").exists()


MINILM = "a" * 64


@pytest.mark.parametrize(
    ("known", "said", "problem"),
    [
        (("minilm", ""), None, False),
        (("minilm", ""), ("minilm", ""), False),
        (("minilm", ""), ("minilm", MINILM), False),
        (("minilm", MINILM), ("minilm", MINILM), False),
        (("all-MiniLM-L6-v2", MINILM), ("minilm", MINILM), False),
        (("unknown", ""), ("minilm", MINILM), False),
        (("minilm", ""), ("mpnet", ""), True),
        (("minilm", MINILM), ("minilm", "b" * 64), True),
    ],
)
def test_another_extractor_is_a_problem_where_both_are_known(
    known: tuple[str, str], said: tuple[str, str] | None, problem: bool
) -> None:
    own = FeatureStatistics(extractor=known[0], sha256=known[1], width=1, mean=0, std=1, minimum=0, maximum=1)
    given = {"text": Extractor(name=said[0], sha256=said[1])} if said else {}
    found = extractor_problem({"text": own}, given)
    assert (found is not None) == problem
    assert not problem or "text was extracted by" in str(found)


def test_training_keeps_what_the_data_say_of_their_extractors(tmp_path: Path) -> None:
    data = lines(tmp_path / "d.jsonl", {"extractors": {"text": "minilm", "audio": {"name": "smile", "sha256": MINILM}}})
    corpus = open_corpus(data)
    contract = Bundle.open(BUNDLE).manifest.contract
    found = feature_statistics(list(corpus), contract, corpus.info["extractors"])
    assert (found["text"].extractor, found["text"].sha256) == ("minilm", "")
    assert (found["audio"].extractor, found["audio"].sha256) == ("smile", MINILM)


def test_features_of_another_extractor_are_refused_and_unknown_ones_are_not(bundle: Bundle, tmp_path: Path) -> None:
    with bundle.commit() as change:
        own = change.manifest.features["text"].model_copy(update={"extractor": "minilm"})
        change.manifest.features["text"] = own
    named = Bundle.open(bundle.root)
    for header in ({}, {"extractors": {"text": "minilm"}}, {"extractors": {"audio": "mpnet"}}):
        bundle_spec(named, lines(tmp_path / "d.jsonl", header))
    with pytest.raises(InputError, match=r"text was extracted by mpnet, the model was trained on minilm: "):
        bundle_spec(named, lines(tmp_path / "d.jsonl", {"extractors": {"text": "mpnet"}}))
    with pytest.raises(InputError, match=r"text was extracted by mpnet"):
        bundle_spec(named, lines(tmp_path / "d.jsonl", {}), sets=["data.extractors.text=mpnet"])
    both = lines(tmp_path / "d.jsonl", {"extractors": {"text": "mpnet", "audio": "other"}})
    said = bundle_spec(named, both, sets=["data.extractors.text=minilm"])
    assert {n: e.name for n, e in said_extractors(both, said).items()} == {"text": "minilm", "audio": "other"}


def test_a_table_and_parquet_keep_their_extractors(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from mer_export.data.formats.parquet.writer import write_parquet

    corpus = open_corpus(lines(tmp_path / "d.jsonl", {"extractors": {"text": "minilm"}}))
    write_parquet(corpus, tmp_path / "d.parquet")
    again = open_corpus(tmp_path / "d.parquet")
    assert again.info["extractors"] == {"text": Extractor(name="minilm")}
    assert DataSpec.model_validate({"extractors": {"text": "minilm"}}).extractors == again.info["extractors"]
    # What a table says of them it says without its rows.
    (tmp_path / "table.yaml").write_text("{table: gone.csv, dialogue: d, extractors: {text: minilm}}")
    assert said_extractors(tmp_path, DataSpec()) == again.info["extractors"]


def test_statistics_of_training_data_take_less_memory_than_the_data() -> None:
    draw = np.random.default_rng(0)
    arrays = [draw.normal(3, 2, (40, 300)).astype(np.float32) for _ in range(100)]
    samples = [Sample(str(i), {"audio": a}, (str(i),)) for i, a in enumerate(arrays)]
    system = registry.get("mtee")
    contract = system.contract(system.parse({"modalities": ["audio"], "audio_dim": 300}))
    tracemalloc.start()
    whole, columns = feature_statistics(samples, contract, {})["audio"], width_statistics(samples, "audio")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < sum(a.nbytes for a in arrays)
    every = np.concatenate(arrays).astype(np.float64)
    assert (whole.mean, whole.std) == (pytest.approx(every.mean()), pytest.approx(every.std()))
    assert columns is not None
    assert np.array_equal(columns[0], every.mean(axis=0).astype(np.float32))
    assert np.array_equal(columns[1], every.std(axis=0).astype(np.float32))
    wide = [*samples, Sample("w", {"audio": np.ones((2, 9), np.float32)}, ("w",))]
    with pytest.raises(InputError, match="audio is 300 wide in 0 and 9 in w: give it one width"):
        width_statistics(wide, "audio")
