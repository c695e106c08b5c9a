"""Every network of mtee in every format gives PyTorch's answers, and exported emotions stay data."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import mtee_bundles as tiny
import numpy as np
import onnx
import pytest
from conftest import Once
from small_bundle import part_of

from mer_export.bundle import CONFIG, Bundle
from mer_export.data.samples import Sample
from mer_export.errors import InputError
from mer_export.exporters import export_variant
from runtimes.parity.run import run_parity
from runtimes.predict.output import write
from runtimes.predict.predictor import Predictor

QUICK = ("eea_unaligned", "rnn_lf", "mult")
ATOL = 1e-5


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in tiny.CONFIGS])
def test_every_network_answers_alike_in_every_format(once: Once, name: str) -> None:
    bundle = tiny.export_mtee(once, name)
    report = run_parity(bundle, tiny.make_samples(tiny.config_of(name)))
    ran = [c for c in report.ran if c.precision == "fp32"]
    assert {c.runtime for c in ran} >= {"torch", "onnxruntime", *tiny.FORMATS.get(name, ())} - {"onnx"}
    for candidate in report.ran:
        assert candidate.verdict != "fail", (candidate.name, candidate.reasons)
    for candidate in ran:
        assert candidate.comparison is not None
        scale = max(1.0, max(float(np.abs(o).max()) for o in _scores(bundle, name)))
        assert candidate.comparison.outputs[0].max_abs <= ATOL * scale, candidate.name
        assert candidate.comparison.flips == 0


def _scores(bundle: Bundle, name: str) -> list[np.ndarray]:
    with Predictor(bundle, "torch") as predictor:
        return predictor.scores(tiny.make_samples(tiny.config_of(name)))


@pytest.fixture(scope="module")
def onnx_bundle(once: Once, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    exported = tiny.export_mtee(once, "eea")
    longest = exported.manifest.contract.buckets[-1].values()
    return part_of(exported, tmp_path_factory.mktemp("b") / "b", ("onnx", *longest))


def test_recurrent_layers_become_operators_that_know_the_lengths(onnx_bundle: Bundle) -> None:
    graph = onnx.load(onnx_bundle.variant_files(onnx_bundle.manifest.variants[0])).graph
    nodes = [n for n in graph.node if n.op_type == "LSTM"]
    with_lengths = [n for n in nodes if len(n.input) > 4 and n.input[4]]
    assert len(with_lengths) == 6, "two layers of three modalities"
    assert [d.dim_value for d in graph.input[-1].type.tensor_type.shape.dim] == [5, tiny.WORDS]


@pytest.mark.skipif(find_spec("tensorrt_rtx_bindings") is None, reason="tensorrt-rtx is not installed")
def test_an_engine_of_recurrent_layers_builds_in_fp16(onnx_bundle: Bundle) -> None:
    bundle = Bundle.open(onnx_bundle.root)
    variant = export_variant(bundle, "tensorrt", bundle.manifest.contract.buckets[-1], precision="fp16")
    assert bundle.path(variant.model).stat().st_size > 1000


def test_emotions_that_were_never_seen_are_scored_without_a_new_export(onnx_bundle: Bundle) -> None:
    samples = tiny.make_samples(tiny.config_of("eea"))
    draw = np.random.default_rng(3)
    table = {n: tuple(draw.normal(size=tiny.WORDS).tolist()) for n in ("bored", "calm", "anger", "proud")}
    with Predictor(onnx_bundle, "torch", shared={"emotions": table}) as predictor:
        wanted = predictor.scores(samples)
    with Predictor(onnx_bundle, "onnxruntime", batch=4, shared={"emotions": table}) as predictor:
        found = predictor.scores(samples)
        answers = list(predictor.predict(samples))
    assert np.allclose(np.concatenate(found), np.concatenate(wanted), atol=ATOL)
    assert set(answers[0].probabilities) == set(table)
    for answer, row in zip(answers, wanted, strict=True):
        assert answer.labels == tuple(n for n, s in zip(table, row[0], strict=True) if s > 0)
        assert answer.label == list(table)[int(np.argmax(row[0]))]
    too_many = {f"e{i}": table["calm"] for i in range(6)}
    with (
        Predictor(onnx_bundle, "onnxruntime", shared={"emotions": too_many}) as predictor,
        pytest.raises(InputError, match=r"6 emotions are more than the fixed 5: re-export with --seq-len emotions=6"),
    ):
        predictor.scores(samples)


def test_a_rewrite_of_precision_is_judged_by_the_real_emotions_alone(onnx_bundle: Bundle) -> None:
    samples = tiny.make_samples(tiny.config_of("eea"))
    variant = export_variant(
        onnx_bundle, "onnx", onnx_bundle.manifest.contract.buckets[-1], precision="fp16", example=samples
    )
    assert variant.precision == "fp16"


def test_several_labels_of_a_unit_are_written(onnx_bundle: Bundle, tmp_path: Path) -> None:
    samples = tiny.make_samples(tiny.config_of("eea"))
    with Predictor(onnx_bundle, "onnxruntime") as predictor:
        answers = list(predictor.predict(samples))
        for suffix in ("jsonl", "csv"):
            write(answers, tmp_path / f"a.{suffix}", predictor.task)
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [tuple(line["labels"]) for line in lines] == [a.labels for a in answers]
    with (tmp_path / "a.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [r["labels"] for r in rows] == ["+".join(a.labels) for a in answers]
    assert rows[2]["modalities"] == "text+audio"


def test_an_utterance_that_is_too_long_is_refused_or_cut_at_its_beginning(onnx_bundle: Bundle) -> None:
    long = tiny.make_samples(tiny.config_of("eea"))[0]
    long = Sample("long", {m: np.concatenate([x, x]) for m, x in long.inputs.items()}, ("long",))
    last = Sample("last", {m: x[-9:] for m, x in long.inputs.items()}, ("last",))
    with Predictor(onnx_bundle, "onnxruntime") as predictor, pytest.raises(InputError, match="10 steps"):
        predictor.scores([long])
    with Predictor(onnx_bundle, "onnxruntime", overflow="truncate") as predictor:
        assert np.array_equal(predictor.scores([long])[0], predictor.scores([last])[0])


def test_serving_emotions_needs_no_torch(onnx_bundle: Bundle, tmp_path: Path) -> None:
    words = {n: [0.1] * tiny.WORDS for n in ("bored", "calm")}
    (tmp_path / "words.json").write_text(json.dumps(words))
    script = f"""
import sys
import numpy as np
from mer_export.data.samples import Sample
from mer_export.data.word_vectors import read_word_vectors
from runtimes import load
table = {{w: tuple(v.tolist()) for w, v in read_word_vectors({str(tmp_path / "words.json")!r}).items()}}
inputs = {{"text": np.ones((4, 6), "f4"), "audio": np.ones((4, 5), "f4")}}
with load({str(onnx_bundle.root)!r}, shared={{"emotions": table}}) as predictor:
    (answer,) = predictor.predict([Sample("u", inputs, ("u",))])
assert set(answer.probabilities) == {{"bored", "calm"}} and answer.modalities == ("text", "audio")
assert not {{"torch", "transformers"}} & set(sys.modules), sorted(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_command_line_scores_given_emotions(onnx_bundle: Bundle, tmp_path: Path) -> None:
    with onnx_bundle.commit() as change:
        change.write(CONFIG, "data: {}\n")
    draw = np.random.default_rng(0)
    (tmp_path / "clips.csv").write_text("clip,label\na,bored\nb,calm\n")
    np.savez(tmp_path / "f.npz", **{m: draw.normal(size=(2, 4, n)) for m, n in tiny.WIDTHS.items()})
    sources = {m: {"file": "f.npz", "array": m} for m in tiny.WIDTHS}
    sets = [f"data.{m}={json.dumps(s)}" for m, s in sources.items()]
    sets += [
        "data.format=dialogue_table",
        "data.unit=utterance",
        "data.table=clips.csv",
        "data.utterance=clip",
        "data.label=label",
    ]
    (tmp_path / "words.json").write_text(json.dumps({n: draw.normal(size=6).tolist() for n in ("bored", "calm")}))
    command = [sys.executable, "cli.py", "infer", str(onnx_bundle.root), str(tmp_path), "-o", str(tmp_path / "o.jsonl")]
    command += ["--emotions", str(tmp_path / "words.json"), *(part for s in sets for part in ("--set", s))]
    subprocess.run([*command, "--with", "gold"], check=True, cwd=Path(__file__).parents[1])
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [line["sample"] for line in lines] == ["a", "b"]
    assert [line["gold"] for line in lines] == [["bored"], ["calm"]]
    assert set(lines[0]["probabilities"]) == {"bored", "calm"}
