"""Every open source carries every shape: each system reads, trains and infers alike from a table, JSONL and Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mtee_bundles
import numpy as np
import pytest
import small_bundle
import small_emt
import small_facialmmt
import small_tab
import yaml
from safetensors.numpy import load_file

from mer_export.bundle import WEIGHTS
from mer_export.data.bundle_data import bundle_spec
from mer_export.data.dialogues import READY
from mer_export.data.formats.parquet.writer import write_parquet
from mer_export.data.open import open_corpus, stream_samples
from mer_export.data.samples import Sample
from mer_export.data.spec import DataSpec
from mer_export.errors import InputError, UsageError
from runtimes.backends.session import SessionOptions
from runtimes.predict.predictor import Predictor
from train.config import parse_config
from train.fit import fit

arrow = pytest.importorskip("pyarrow")

EMOTIONS = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
WORDS = ("oh", "no", "yes", "well", "fine", "so", "happy", "sad")
VOCABULARY = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", *WORDS)


@dataclass(frozen=True)
class Case:
    """Small data for one system: what an utterance has (dims; a range of steps is drawn), and how it is read."""

    model: dict[str, Any]
    features: dict[str, tuple[Any, ...]]
    kind: str = "label"
    labels: tuple[str, ...] = EMOTIONS
    sentences: bool = False
    unit: str = "utterance"
    data: dict[str, Any] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)


RANDOM = {"text_encoder": "random"}
FRAMES = {"audio": ((1, 5), 5), "vision": ((1, 4), 4)}
CASES = {
    "cmerc": Case(
        model=small_bundle.CONFIG,
        features={"text": (2, 16), "audio": (8,), "vision": (6,)},
        labels=small_bundle.CONFIG["labels"],  # type: ignore[arg-type]
        unit="dialogue",
    ),
    "emt": Case(
        model=small_emt.EMT | {"audio_dim": 5, "vision_dim": 4},
        features=FRAMES,
        kind="score",
        sentences=True,
        protocol=RANDOM | {"accumulate": 1},
    ),
    "mult": Case(
        model=small_emt.TRANSFORMER | {"audio_dim": 5, "vision_dim": 4},
        features={"input_ids": ((4, 9),), **FRAMES},
        kind="score",
        protocol=RANDOM,
    ),
    "tfr_net": Case(
        model=small_emt.TRANSFORMER | {"audio_dim": 5, "vision_dim": 4},
        features={"input_ids": ((4, 9),), **FRAMES},
        kind="score",
        protocol=RANDOM,
    ),
    "mtee": Case(
        model=mtee_bundles.BASE | {"aligned": False, "buckets": [{"text": 6, "audio": 9, "vision": 7}]},
        features={"text": ((2, 6), 6), **FRAMES},
        kind="labels",
        labels=("fear", "anger", "happy"),
        data={"emotions": {"vectors": "words.json"}},
    ),
    "tab": Case(
        model=small_tab.values("fusion"),
        features={"text": (small_tab.WIDTH,), "audio_tokens": ((3, 9),)},
        labels=("angry", "happy", "sad", "neutral"),
        sentences=True,
        data={"context": {"size": 1}},
        protocol=RANDOM | {"audio_encoder": "random", "margin": 0.4},
    ),
    "facialmmt": Case(
        model=small_facialmmt.VARIANTS["fusion"],
        features={"audio": ((1, 5), 5), "vision": (3, 4), "expression_logits": (3, 7)},
        sentences=True,
        data={"packing": "bert"},
        protocol=RANDOM | {"accumulate": 1},
    ),
}
TOKENIZED = ("emt", "tab", "facialmmt")


def make_dialogues(case: Case, seed: int = 0) -> list[dict[str, Any]]:
    """Random dialogues as their JSON lines; one utterance of each is not labelled."""
    draw = np.random.default_rng(seed)
    return [
        {
            "dialogue": f"d{i}",
            "split": "test" if i % 3 == 2 else "train",
            "utterances": [_utterance(case, draw, known=k > 0) for k in range(2 + i % 3)],
        }
        for i in range(6)
    ]


def _utterance(case: Case, draw: np.random.Generator, known: bool) -> dict[str, Any]:
    made: dict[str, Any] = {"speaker": str(draw.choice(["Ann", "Bob"]))}
    if case.kind == "label":
        made["label"] = str(draw.choice(case.labels)) if known else None
    elif case.kind == "score":
        made["score"] = float(np.float32(draw.uniform(-3, 3))) if known else None
    else:
        made["labels"] = {n: int(draw.integers(0, 2)) if known else None for n in case.labels}
    if case.sentences:
        made["sentence"] = " ".join(draw.choice(WORDS, draw.integers(1, 4)))
    for name, dims in case.features.items():
        shape = [int(draw.integers(*d)) if isinstance(d, tuple) else d for d in dims]
        ids = name in READY and READY[name].dtype == "int64"
        made[name] = (draw.integers(4, 60, shape) if ids else draw.standard_normal(shape).astype(np.float32)).tolist()
    return made


def write_lines(folder: Path, case: Case, dialogues: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    header = {"unit": case.unit, "speakers": 3} | ({} if case.kind == "score" else {"labels": case.labels})
    (folder / "d.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [header, *dialogues]))
    return folder / "d.jsonl"


def write_table(folder: Path, case: Case, dialogues: list[dict[str, Any]], ending: str = "csv") -> Path:
    """The same as a table with a ragged array for everything that is numbers."""
    folder.mkdir()
    rows = [(d["dialogue"], d["split"], u) for d in dialogues for u in d["utterances"]]
    cells: dict[str, list[Any]] = {"talk": [r[0] for r in rows], "part": [r[1] for r in rows]}
    cells |= {n: [r[2][n] for r in rows] for n in ("speaker", "sentence", "label", "score") if n in rows[0][2]}
    cells |= {n: [r[2]["labels"][n] for r in rows] for n in (case.labels if case.kind == "labels" else ())}
    write_cells(folder / f"u.{ending}", {n: ["" if v is None else str(v) for v in c] for n, c in cells.items()})
    arrays: dict[str, np.ndarray] = {}
    spec: dict[str, Any] = {"table": f"u.{ending}", "dialogue": "talk", "split": "part", "speaker": "speaker"}
    spec |= {"unit": case.unit, "speakers": 3} | ({"sentence": "sentence"} if case.sentences else {})
    spec |= {"label_columns": list(case.labels)} if case.kind == "labels" else {case.kind: case.kind}
    spec |= {"label_names": list(case.labels)} if case.kind == "label" else {}
    for name in case.features:
        parts = [np.asarray(r[2][name]) for r in rows]
        steps = [np.atleast_2d(p) if name not in READY else p for p in parts]
        arrays[name], arrays[f"{name}_at"] = np.concatenate(steps), np.cumsum([0, *map(len, steps)])
        source = {"file": "f.npz", "array": name, "offsets": f"{name}_at"}
        if name in READY:
            spec.setdefault("inputs", {})[name] = source
        elif name == "text" and "context" in case.data:
            spec["context"] = {"vectors": source}
        else:
            spec[name] = source
    np.savez(folder / "f.npz", **arrays)  # type: ignore[arg-type]
    (folder / "table.yaml").write_text(yaml.safe_dump(spec))
    return folder


def write_cells(path: Path, columns: dict[str, list[str]]) -> None:
    if path.suffix == ".parquet":
        from pyarrow import parquet

        parquet.write_table(arrow.table(columns), path)
        return
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerows([list(columns), *zip(*columns.values(), strict=True)])


def write_all(root: Path, system: str) -> dict[str, Path]:
    """The same data as every source, by its name; the Parquet file is converted from the lines."""
    case = CASES[system]
    dialogues = make_dialogues(case)
    found = {
        "csv": write_table(root / "table", case, dialogues),
        "jsonl": write_lines(root / "lines", case, dialogues),
        "parquet": root / "columns" / "d.parquet",
    }
    write_parquet(open_corpus(found["jsonl"], data_spec(root, system)), found["parquet"])
    vectors = {n: np.random.default_rng(i).normal(size=mtee_bundles.WORDS).tolist() for i, n in enumerate(EMOTIONS)}
    for folder in ("table", "lines", "columns"):
        (root / folder / "words.json").write_text(json.dumps(vectors | {"happy": vectors["joy"]}))
    return found


def data_section(root: Path, system: str) -> dict[str, Any]:
    """The data section of a configuration, the same for all sources."""
    if system not in TOKENIZED:
        return CASES[system].data
    (root / "tokenizer").mkdir(exist_ok=True)
    (root / "tokenizer" / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return CASES[system].data | {"tokenizer": str(root / "tokenizer")}


def data_spec(root: Path, system: str) -> DataSpec:
    return DataSpec.model_validate(data_section(root, system))


def assert_equal(a: Sample, b: Sample) -> None:
    assert (a.id, a.units, set(a.inputs), a.labels is None) == (b.id, b.units, set(b.inputs), b.labels is None)
    for name, array in a.inputs.items():
        assert (array.dtype, array.shape) == (b.inputs[name].dtype, b.inputs[name].shape), name
        np.testing.assert_array_equal(array, b.inputs[name])
    if a.labels is not None and b.labels is not None:
        assert a.labels.dtype == b.labels.dtype
        np.testing.assert_array_equal(a.labels, b.labels)


@pytest.fixture(params=list(CASES))
def system(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_source_gives_a_system_the_same_samples(system: str, tmp_path: Path) -> None:
    paths = write_all(tmp_path, system)
    first = open_corpus(paths["csv"], data_spec(tmp_path, system))
    assert {n: len(s) > 0 for n, s in first.splits.items()} == {"train": True, "test": True}
    wanted = set(CASES[system].features) - {"text"} | ({"input_ids"} if system in ("emt", "facialmmt") else set())
    assert all(set(s.inputs) >= wanted for s in first)
    for name in ("jsonl", "parquet"):
        other = open_corpus(paths[name], data_spec(tmp_path, system))
        assert list(other.splits) == list(first.splits)
        assert other.info["labels"] == first.info["labels"]
        assert other.info["sentences"] == first.info["sentences"]
        streamed = stream_samples(paths[name], data_spec(tmp_path, system), split="test")
        for a, b in zip(first, other, strict=True):
            assert_equal(a, b)
        for a, b in zip(first.split("test"), streamed, strict=True):
            assert_equal(a, b)


def test_every_system_trains_and_infers_alike_from_every_source(system: str, tmp_path: Path) -> None:
    case, paths = CASES[system], write_all(tmp_path, system)
    bundles = {}
    for name, path in paths.items():
        data = data_section(tmp_path, system)
        run = {"epochs": 1, "lr": 0.001, "device": "cpu", "threads": 1, "precision": "fp32", "keep": {"rule": "last"}}
        values = {"system": system, "model": case.model, "data": data, "protocol": case.protocol}
        bundles[name] = fit(parse_config(values | run), path, tmp_path / f"{name}.bundle", quiet=True)
    weights = [load_file(b.path(WEIGHTS)) for b in bundles.values()]
    for other in weights[1:]:
        assert all(np.array_equal(weights[0][n], other[n]) for n in weights[0])
    # A bundle reads the other sources too, whatever it was trained from.
    trained = bundles["jsonl"]
    with Predictor(trained, "torch", SessionOptions("cpu", 1)) as predictor:
        answers = [dict(predictions(predictor, trained, path)) for path in paths.values()]
    assert len(answers[0]) == 18
    assert answers[0] == answers[1] == answers[2]


def predictions(predictor: Predictor, bundle: Any, path: Path) -> Iterator[tuple[str, Any]]:
    samples = stream_samples(path, bundle_spec(bundle, path), bundle.manifest.task.labels)
    for found in predictor.predict(samples):
        yield found.unit, (found.numbers, found.modalities)


@pytest.mark.parametrize("ending", ["tsv", "parquet"])
def test_the_ending_of_a_table_changes_nothing(ending: str, tmp_path: Path) -> None:
    case, dialogues = CASES["mtee"], make_dialogues(CASES["mtee"])
    first, other = (open_corpus(write_table(tmp_path / e, case, dialogues, e)) for e in ("csv", ending))
    for a, b in zip(first, other, strict=True):
        assert_equal(a, b)


def test_face_images_come_from_every_source(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for place in ("faces/u0/2.png", "faces/u0/10.png", "faces/u1/1.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        image.new("RGB", (8, 8), (10 * len(place), 0, 0)).save(tmp_path / place)
    (tmp_path / "u.csv").write_text("clip,faces\nu0,faces/u0\nu1,faces/u1\n")
    said = [
        {"id": "u0", "images": ["faces/u0/10.png", "faces/u0/2.png"]},
        {"id": "u1", "images": ["faces/u1/1.png"]},
    ]
    lines = [{"unit": "utterance"}, *({"dialogue": u["id"], "utterances": [u]} for u in said)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, lines)))
    spec = DataSpec(unit="utterance", faces={"images": True, "size": 8, "column": "faces"})
    table = spec.model_copy(update={"table": "u.csv", "utterance": "clip"})
    write_parquet(open_corpus(tmp_path, table), tmp_path / "d.parquet")
    first = list(open_corpus(tmp_path, table))
    assert [s.inputs["images"].shape for s in first] == [(2, 3, 8, 8), (1, 3, 8, 8)]
    for name in ("d.jsonl", "d.parquet"):
        for a, b in zip(first, open_corpus(tmp_path / name, spec), strict=True):
            assert_equal(a, b)
        assert not any(s.inputs for s in open_corpus(tmp_path / name, DataSpec(unit="utterance")))


def test_a_model_of_some_labels_reads_those_of_a_set(tmp_path: Path) -> None:
    paths = write_all(tmp_path, "mtee")
    for path in paths.values():
        whole, two = open_corpus(path), open_corpus(path, labels=["happy", "fear"])
        for a, b in zip(whole, two, strict=True):
            assert a.labels is not None
            assert b.labels is not None
            np.testing.assert_array_equal(a.labels[:, [2, 0]], b.labels)
        with pytest.raises(InputError, match=r"has no labels \['bored'\]"):
            open_corpus(path, labels=["happy", "bored"])


@pytest.mark.parametrize(
    ("header", "utterance", "message"),
    [
        ({"unit": "clip"}, {"audio": [1.0]}, "line 1: unit"),
        ({"tokenizer": "x"}, {"audio": [1.0]}, r"line 1 has \['tokenizer'\]"),
        ({"unit": "utterance"}, {"audio": [1.0], "label": "joy", "score": 1.0}, "label and score: keep one"),
        ({"unit": "utterance"}, {"audio": [1.0], "label": ["joy"]}, "several stand under labels"),
        ({"unit": "utterance"}, {"audio": []}, "line 2 is not a dialogue: audio has shape"),
        ({"unit": "utterance"}, {"input_ids": [1.5]}, "line 2: input_ids must be ids in 1 dims"),
        ({"unit": "utterance"}, {"expression_logits": [[1, 2], [3]]}, "expression_logits must be numbers in 2 dims"),
        ({"unit": "dialogue"}, {"audio": [[1.0], [2.0]]}, r"one vector per utterance: sequences need data\.unit"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(header: dict, utterance: dict, message: str, tmp_path: Path) -> None:
    line = {"dialogue": "d", "utterances": [utterance]}
    (tmp_path / "d.jsonl").write_text(f"{json.dumps(header)}\n{json.dumps(line)}")
    with pytest.raises(InputError, match=message):
        open_corpus(tmp_path / "d.jsonl")


def test_words_that_are_ready_for_some_utterances_of_a_dialogue_are_refused(tmp_path: Path) -> None:
    said = [{"input_ids": [1, 2], "text_span": [0, 1]}, {"sentence": "oh no"}]
    (tmp_path / "d.jsonl").write_text(json.dumps({"dialogue": "d", "utterances": said}))
    with pytest.raises(InputError, match="for some utterances only"):
        open_corpus(tmp_path / "d.jsonl", DataSpec(packing="bert"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": "talk"}, r"data\.score and data\.label_columns"),
        ({"label_columns": ["fear", "bored"]}, r"no columns \['bored'\]"),
        ({"label_columns": ["talk"]}, "column talk holds 'd0', it must be a number"),
        ({"inputs": {"smell": {"file": "f.npz"}}}, r"data\.inputs \['smell'\]"),
        ({"inputs": {"input_ids": {"file": "f.npz", "array": "text", "offsets": "text_at"}}}, "must be ids in 1 dims"),
    ],
)
def test_what_is_wrong_with_a_mapping_is_said(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_table(tmp_path / "table", CASES["mtee"], make_dialogues(CASES["mtee"]))
    with pytest.raises(UsageError, match=message):
        open_corpus(path, DataSpec.model_validate(change))


def test_a_preset_for_the_authors_files_reads_a_line_file(tmp_path: Path) -> None:
    paths = write_all(tmp_path, "emt")
    spec = DataSpec(format="mmsa", dataset="mosi", tokenizer=data_spec(tmp_path, "emt").tokenizer)
    for name in ("jsonl", "parquet"):
        assert {"input_ids", "audio", "vision"} <= set(next(stream_samples(paths[name], spec)).inputs)
